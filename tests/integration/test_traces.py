"""One trace from a producer or a caller through `millstream serve` to the answer, on real Kafka."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import build
from features.catalog import CATALOG
from features.hashing import hash_ids
from inference.operator import promote
from inference.registry import FolderRegistry, ModelFacts
from inference.signature import ensure_key
from ingest.clock import SystemClock
from ingest.trace_context import SpanContext, read
from ingest.tracing import Kind, Span
from tests.collector import Collector, collecting
from tests.network_world import plain, retrieve_inputs
from tests.serving_process import ITEMS, Place, Server, settings_for

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.tf]

CHILDREN = ("queue", "read", "assemble", "score")


@dataclass
class Followed:
    """A server whose spans are collected."""

    place: Place
    server: Server
    collector: Collector
    ports: dict[str, int]

    def post(self, path: str, body, headers: dict[str, str]) -> tuple[int, dict[str, str], dict]:
        made = http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=30)
        try:
            given = {"Content-Type": "application/json", **headers}
            made.request("POST", path, json.dumps(body), given)
            answer = made.getresponse()
            return answer.status, dict(answer.getheaders()), json.loads(answer.read())
        finally:
            made.close()

    def scraped(self) -> str:
        asked = urllib.request.Request(f"http://127.0.0.1:{self.ports['metrics']}/metrics")
        asked.add_header("Accept", "application/openmetrics-text; version=1.0.0")
        with urllib.request.urlopen(asked) as answer:
            return answer.read().decode()


@pytest.fixture(scope="module")
def followed(kafka, valkey, registry, tmp_path_factory, eventually) -> Iterator[Followed]:
    from tests.tiny_model import export

    folder = tmp_path_factory.mktemp("traces")
    export(folder / "model", CATALOG, hash_ids(ITEMS))
    settings = settings_for(kafka, valkey, registry, f"tr-{folder.name}", folder)
    with collecting() as collector:
        settings = replace(settings, otlp_endpoint=collector.url, log_format="json")
        place = Place(settings)
        facts = ModelFacts(
            name=settings.model_name,
            fingerprint=CATALOG.fingerprint,
            profile="production",
            created_at=SystemClock().now_ms(),
        )
        key = ensure_key(settings.keys_dir)
        FolderRegistry(settings.models_dir).publish(folder / "model", facts, key)
        promote(settings, 1, "first")
        (folder / "logs").mkdir()
        server = Server(settings, folder / "logs", "0", "--http-port=0")
        try:
            eventually(server.ready, timeout_s=120)
            told = re.search(
                r"metrics on port (\d+), http on port (\d+)", server.errors.read_text()
            )
            assert told, server.errors.read_text()
            ports = {"metrics": int(told[1]), "http": int(told[2])}
            yield Followed(place, server, collector, ports)
            assert server.stop() == 0
        finally:
            server.close()
            place.close()


def caller(name: str, flags: int = 1) -> SpanContext:
    """A caller in a trace of that name."""
    return SpanContext(name.encode().hex().ljust(32, "0"), "cd" * 8, flags, "vendor=x")


def in_order(spans: dict[str, Span]) -> None:
    """The steps follow one another within their request."""
    steps = [spans[name] for name in CHILDREN]
    for before, after in itertools.pairwise(steps):
        assert before.start_ns <= before.end_ns <= after.start_ns + 1_000  # microseconds, rounded


def test_a_producers_trace_goes_through_to_the_answer(followed, eventually):
    mine = caller("through")
    followed.place.ask_with(mine.headers(), "through")
    eventually(lambda: followed.place.answer("through") is not None)
    told, ignored = read(followed.place.answer("through").headers)
    assert ignored == []
    assert (told.trace_id, told.flags, told.state) == (mine.trace_id, 1, "vendor=x")
    eventually(lambda: len(followed.collector.of(mine.trace_id)) == 6)
    spans, topics = followed.collector.of(mine.trace_id), followed.place.topics
    root, sent = spans[f"process {topics.requests}"], spans[f"send {topics.recommendations}"]
    assert (root.kind, root.parent.span_id) == (Kind.CONSUMER, mine.span_id)
    assert {spans[name].parent.span_id for name in CHILDREN} == {root.context.span_id}
    assert (sent.kind, sent.parent.span_id) == (Kind.PRODUCER, root.context.span_id)
    assert sent.context.span_id == told.span_id  # whoever reads the answer goes on from there
    assert {span.error for span in spans.values()} == {""}
    in_order(spans)
    assert root.start_ns <= spans["queue"].start_ns
    assert spans["score"].end_ns <= sent.start_ns
    assert sent.end_ns == root.end_ns
    assert root.attributes["messaging.system"] == "kafka"
    assert root.attributes["messaging.destination.name"] == topics.requests
    assert root.attributes["messaging.message.conversation_id"] == "through"
    score = spans["score"].attributes
    assert (score["millstream.model.version"], score["millstream.arm"]) == (1, "STABLE")
    assert score["millstream.batch.padded"] >= score["millstream.batch.rows"] == 1
    assert score["millstream.batch.cause"] in {"full", "deadline", "enough", "forced"}
    assert "ann" not in json.dumps([dict(span.attributes) for span in spans.values()])


def test_a_trace_that_is_not_sampled_is_passed_on_and_leaves_no_span(followed, eventually):
    mine = caller("unsampled", 0)
    followed.place.ask_with(mine.headers(), "unsampled")
    followed.place.ask_with((), "untraced")
    followed.place.ask_with((("traceparent", b"00-BAD"),), "malformed")
    names = ("unsampled", "untraced", "malformed")
    eventually(lambda: all(followed.place.answer(name) for name in names))
    assert followed.place.answer("unsampled").headers == mine.headers()
    assert followed.place.answer("untraced").headers == ()
    assert followed.place.answer("malformed").headers == ()
    parent = {"traceparent": mine.traceparent}
    status, told, _ = followed.post("/v1/recommend", {"user_id": "ann"}, parent)
    assert (status, told.get("traceresponse")) == (200, None)
    assert followed.collector.of(mine.trace_id) == {}
    malformed = 'millstream_tracing_malformed_total{header="traceparent"} 1.0'
    assert malformed in followed.scraped()


def test_a_refused_request_is_an_error_of_its_trace(followed, eventually):
    mine, bad = caller("refused"), caller("undecodable")
    followed.place.ask_with(mine.headers(), "refused", k=10_000)
    followed.place.send(followed.place.topics.requests, "ann", b"?", bad.headers())
    followed.place.flush()
    root = f"process {followed.place.topics.requests}"
    for one, text in ((mine, "INVALID: k must be between"), (bad, "dead letter: ")):
        eventually(lambda one=one: root in followed.collector.of(one.trace_id))
        assert followed.collector.of(one.trace_id)[root].error.startswith(text)


def test_a_callers_trace_goes_through_rest_and_onto_the_log(followed, eventually):
    mine = caller("over-rest")
    headers = {"traceparent": mine.traceparent, "tracestate": mine.state}
    body = {"user_id": "ann", "request_id": "over-rest"}
    status, told, _ = followed.post("/v1/recommend", body, headers)
    assert status == 200
    eventually(lambda: len(followed.collector.of(mine.trace_id)) == 6)
    spans = followed.collector.of(mine.trace_id)
    root = spans["POST /v1/recommend"]
    assert (root.kind, root.parent.span_id, root.error) == (Kind.SERVER, mine.span_id, "")
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["http.route"] == "/v1/recommend"
    answered = SpanContext(mine.trace_id, root.context.span_id, 1)
    assert told["traceresponse"] == answered.traceparent
    assert {spans[name].parent.span_id for name in CHILDREN} == {root.context.span_id}
    in_order(spans)
    assert root.start_ns <= spans["read"].start_ns <= spans["score"].end_ns <= root.end_ns
    eventually(lambda: followed.place.answer("over-rest") is not None)
    recorded, _ = read(followed.place.answer("over-rest").headers)
    sent = spans[f"send {followed.place.topics.recommendations}"]
    assert (recorded.trace_id, recorded.span_id) == (mine.trace_id, sent.context.span_id)


def test_a_model_call_and_a_refused_call_are_traced(followed, eventually):
    predicted, refused = caller("predicted"), caller("refused-call")
    path = f"/v1/models/{followed.place.settings.model_name}:predict"
    body = {"inputs": plain(retrieve_inputs(rows=2))}
    assert followed.post(path, body, {"traceparent": predicted.traceparent})[0] == 200
    eventually(lambda: len(followed.collector.of(predicted.trace_id)) == 2)
    call = followed.collector.of(predicted.trace_id)["predict"]
    assert (call.attributes["millstream.model.version"], call.attributes["millstream.rows"]) == (
        1,
        2,
    )
    wrong = {"user_id": "ann", "request_id": "wrong", "k": 501}
    status, told, _ = followed.post("/v1/recommend", wrong, {"traceparent": refused.traceparent})
    assert status == 400
    assert refused.trace_id in told["traceresponse"]
    eventually(lambda: len(followed.collector.of(refused.trace_id)) == 1)
    (root,) = followed.collector.of(refused.trace_id).values()
    assert (root.attributes["http.response.status_code"], root.error) == (400, "")
    lines = [json.loads(line) for line in _json_lines(followed.server.errors)]
    audit = [line for line in lines if line.get("trace_id") == refused.trace_id]
    assert [(line["event"], line["request_id"]) for line in audit] == [("audit.refused", "wrong")]


def _json_lines(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("{")]


def test_the_command_request_begins_a_trace_and_says_which(followed, eventually):
    settings = followed.place.settings
    environment = {
        "MILLSTREAM_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "MILLSTREAM_REGISTRY_URL": settings.registry_url,
        "MILLSTREAM_TOPIC_PREFIX": settings.topic_prefix,
        "MILLSTREAM_OTLP_ENDPOINT": settings.otlp_endpoint,
    }
    done = CliRunner().invoke(
        build(), ["request", "--user", "ann", "--json", "--timeout-s", "30"], env=environment
    )
    assert done.exit_code == 0, done.output
    trace_id = json.loads(done.stdout)["trace_id"]
    eventually(lambda: len(followed.collector.of(trace_id)) == 7)
    spans, topics = followed.collector.of(trace_id), followed.place.topics
    asked, root = spans[f"send {topics.requests}"], spans[f"process {topics.requests}"]
    assert asked.parent is None
    assert root.parent.span_id == asked.context.span_id
    assert asked.start_ns <= root.start_ns
    assert root.end_ns <= asked.end_ns


def test_a_scrape_shows_the_lag_and_a_trace_of_a_slow_bucket(followed, eventually):
    mine = caller("exemplar")
    followed.place.ask_with(mine.headers(), "exemplar")
    eventually(lambda: len(followed.collector.of(mine.trace_id)) == 6)
    lines = [line for line in followed.scraped().splitlines() if mine.trace_id in line]
    named = {line.partition("{")[0] for line in lines}
    assert named == {
        "millstream_serve_answer_seconds_bucket",
        "millstream_serve_latency_seconds_bucket",
    }
    eventually(lambda: 'millstream_serve_unread{partition="3"} 0.0' in followed.scraped())
