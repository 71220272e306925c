"""What is seen of requests on their way, on a log in memory and the real service."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import structlog

from inference.batcher import BatchPolicy, Cause
from inference.commits import Ends, Step, Written
from inference.consumer import Consumer, ConsumerPolicy, Costs
from inference.encoding import AnswerWriter
from inference.release import Why, first
from inference.requests import Bad, RequestReader
from inference.trail import Names, Trail, timestamps_ms
from ingest.clock import ManualClock, SystemClock
from ingest.dead_letter import DeadLetters
from ingest.log import Outgoing, RecordBatch, TopicPartition
from ingest.memory import (
    MemoryGroupSource,
    MemoryLog,
    MemoryProducer,
    MemorySource,
    MemoryTransactionalProducer,
)
from ingest.metrics import MemoryMetrics
from ingest.otlp import ExportPolicy, OtlpTracer
from ingest.trace_context import SpanContext, read
from ingest.tracing import CountedIds, MemoryTracer, Sampler, Tracer
from schemas.codec import Codec
from schemas.errors import ModelFault, Reason, Rejected
from schemas.events import DeadLetter, Recommendation, RecommendationRequest
from schemas.registry import MemoryRegistry
from tests.serving import World, model, request

PARTITIONS = 3
MINE = SpanContext("ab" * 16, "cd" * 8, 1)


@dataclass
class Course:
    """A consumer on topics in memory."""

    tracer: Tracer
    world: World

    def __post_init__(self) -> None:
        self.log, self.registry = MemoryLog(), MemoryRegistry()
        for topic in ("requests", "answers", "dead"):
            self.log.create_topic(topic, PARTITIONS)
        codec = Codec(self.registry, RecommendationRequest, "requests")
        self._encode = codec.encode

    def ask(self, count: int, headers=()) -> None:
        producer = MemoryProducer(self.log)
        for i in range(count):
            value = self._encode(request(f"u{i}"))
            record = Outgoing(topic="requests", key=f"u{i}".encode(), value=value)
            producer.send(replace(record, headers=headers))

    def answers(self) -> list[RecordBatch]:
        source, found = MemorySource(self.log), []
        source.assign({TopicPartition("answers", p): 0 for p in range(PARTITIONS)})
        while batch := source.poll(1000, 0):
            found.append(batch)
        return found

    def count(self) -> int:
        return sum(map(len, self.answers()))

    def serve(self, until, eventually) -> MemoryMetrics:
        """Serve until that holds."""
        clock, metrics = SystemClock(), MemoryMetrics()
        ends = Ends(
            source=MemoryGroupSource(self.log, "serve"),
            producers=[MemoryTransactionalProducer(self.log, "a")],
            dead_letters=DeadLetters(
                MemoryProducer(self.log),
                Codec(self.registry, DeadLetter, "dead"),
                "dead",
                clock,
            ),
            reader=RequestReader(self.registry, self.tracer),
            writer=AnswerWriter(Codec(self.registry, Recommendation, "answers")),
            requests_topic="requests",
            trail=Trail(clock, metrics, self.tracer, Names(answers_topic="answers")),
        )
        policy = ConsumerPolicy(batch=BatchPolicy(max_size=8, objective_s=0.001))
        costs = Costs.unknown([8])
        consumer = Consumer(ends, self.world.service, policy, clock, costs, metrics)
        stop = threading.Event()
        with ThreadPoolExecutor() as pool:
            running = pool.submit(consumer.run, stop)
            try:
                eventually(lambda: until() or running.done())
            finally:
                stop.set()
            running.result(30)
        return metrics


@pytest.fixture
def world() -> World:
    made = World()
    made.deploy(first("m", 1, Why(at_ms=0, reason="test")), model())
    return made


def test_each_followed_request_of_a_batch_is_a_whole_tree(world, eventually):
    tracer = MemoryTracer()
    course = Course(tracer, world)
    course.ask(30, MINE.headers())
    metrics = course.serve(lambda: course.count() == 30, eventually)
    roots = [span for span in tracer.spans if span.name == "process requests"]
    assert len(roots) == 30
    assert {root.parent for root in roots} == {MINE}
    for root in roots:
        below = [span for span in tracer.spans if span.parent == root.context]
        names = [span.name for span in below]
        assert names == ["queue", "read", "assemble", "score", "send answers"]
    sent = {s.context.span_id for s in tracer.spans if s.name == "send answers"}
    told = {
        read(headers)[0].span_id for batch in course.answers() for headers in batch.headers.values()
    }
    assert told == sent
    assert len(told) == 30
    assert metrics.value("serve.answer_s") == 30
    assert set(metrics.exemplars("serve.answer_s")) == {MINE.trace_id}


def test_requests_that_bring_no_trace_get_no_header_and_no_span(world, eventually):
    tracer = MemoryTracer()
    course = Course(tracer, world)
    course.ask(5)
    metrics = course.serve(lambda: course.count() == 5, eventually)
    assert tracer.spans == []
    assert [batch.headers for batch in course.answers() if batch.headers] == []
    assert metrics.exemplars("serve.answer_s") == []
    ages = metrics.observed("serve.queue_age_s")
    assert len(ages) == sum(metrics.value("serve.batches", cause=c.value) for c in Cause)


def test_a_share_of_untraced_requests_is_followed_from_here(world, eventually):
    tracer = MemoryTracer(ratio=1.0)
    course = Course(tracer, world)
    course.ask(5)
    course.serve(lambda: course.count() == 5, eventually)
    roots = [span for span in tracer.spans if span.name == "process requests"]
    assert [root.parent for root in roots] == [None] * 5
    assert len({root.context.trace_id for root in roots}) == 5


def test_requests_are_answered_while_the_collector_refuses(world, eventually):
    metrics = MemoryMetrics()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        tracer = OtlpTracer(
            f"http://127.0.0.1:{taken.getsockname()[1]}",
            "test",
            Sampler(1.0, CountedIds(), metrics),
            metrics,
            ExportPolicy(queue=50, batch=10, every_s=0.01, timeout_s=0.2, close_s=0.2),
        )
        course = Course(tracer, world)
        course.ask(200)
        course.serve(lambda: course.count() == 200, eventually)
        tracer.close()
    lost = [metrics.value("tracing.spans", outcome=o) for o in ("queue-full", "not-taken")]
    assert sum(lost) == 200 * 6
    assert min(lost) > 0


def noted(world: World, *requests):
    """The traces of these requests after they were answered."""
    tracer = MemoryTracer()
    asked = [replace(one, trace=tracer.begin(MINE.headers())) for one in world.asked(*requests)]
    answers = world.service.answer(asked)
    trail = Trail(world.clock, world.metrics, tracer, padded=lambda rows: 4)
    trail.dispatched(asked, Cause.FULL)
    trail.answered(asked, answers)
    return [one.trace for one in asked]


def test_a_step_says_who_answered_and_with_how_many(world):
    world.row("ann", "item-1", age_ms=7_000)
    traces = noted(world, request("ann"), request("bob"), request("cid"))
    (score,) = [span for span in traces[0].children if span.name == "score"]
    assert score.attributes == {
        "millstream.model.name": "m",
        "millstream.model.version": 1,
        "millstream.arm": "STABLE",
        "millstream.batch.rows": 3,
        "millstream.batch.padded": 4,
        "millstream.batch.cause": "full",
    }
    rows = [span.attributes for one in traces for span in one.children if span.name == "read"]
    assert [row.get("millstream.row.age_ms") for row in rows] == [7_000, None, None]
    assert world.metrics.value("serve.padded_rows") == 1
    assert world.metrics.observed("serve.row_age_s") == [7.0]
    assert world.metrics.value("serve.answers", version="1", arm="STABLE") == 3


def test_a_fallback_and_a_refusal_are_errors(world):
    world.deploy(None)
    fallback, refused = noted(world, request("ann"), request("bob", k=0))
    assert fallback.error == "fallback: no-model"
    assert [(s.name, s.error) for s in fallback.children if s.error] == [("score", "no-model")]
    assert refused.error.startswith("INVALID: k must be")
    assert refused.children == []


def test_a_store_that_is_gone_is_an_error_of_reading(world):
    world.store.gone = True
    (trace,) = noted(world, request("ann"))
    assert [(s.name, s.error) for s in trace.children if s.error] == [("read", "no-store")]


def test_log_lines_of_one_request_name_it_and_its_trace(world):
    class Picky:
        """Fails where a certain request takes part."""

        def __init__(self, model) -> None:
            self._model, self.ref = model, model.ref

        def retrieve(self, users, *rest):
            if len(users) != 1 or self.fail:
                raise ModelFault("not this one")
            return self._model.retrieve(users, *rest)

        def close(self) -> None:
            """Nothing."""

    picky = Picky(model())
    picky.fail = True
    world.deploy(first("m", 1, Why(at_ms=0, reason="test")), picky)
    with structlog.testing.capture_logs() as lines:
        noted(world, request("ann"))
    (line,) = [line for line in lines if line["event"] == "serve.model_failed_on"]
    assert (line["request_id"], line["trace_id"]) == ("r-ann", MINE.trace_id)
    with structlog.testing.capture_logs() as lines:
        noted(world, *(request(f"u{i}") for i in range(9)))
    assert [line for line in lines if line["event"] == "serve.model_failed_on"] == []


class Lagging:
    """A source of which the lag is told."""

    def __init__(self, *looks) -> None:
        self._looks = list(looks)

    def unread(self):
        return {TopicPartition("requests", p): n for p, n in self._looks.pop(0).items()}


def test_the_lag_is_told_once_a_second_and_is_none_of_what_others_own():
    clock, metrics = ManualClock(), MemoryMetrics()
    trail, source = Trail(clock, metrics), Lagging({0: 5, 1: 7}, {1: 2})

    def told() -> list[float]:
        return [metrics.value("serve.unread", partition=p) for p in "01"]

    trail.look(source)
    clock.advance(0.9)
    trail.look(source)
    assert told() == [5, 7]
    clock.advance(0.2)
    trail.look(source)
    assert told() == [0, 2]


def test_a_run_tells_how_long_its_requests_took(world):
    (old,) = world.asked(request("ann"), age_ms=2_000)
    bad = Bad(batch=old.batch, index=0, rejected=Rejected(Reason.UNDECODABLE, "?"))
    others = world.asked(request("bob"), request("cid"), age_ms=500)
    trail = Trail(world.clock, world.metrics)
    assert timestamps_ms([old, bad, *others]).tolist() == [
        one.timestamp_ms for one in (old, old, *others)
    ]
    assert timestamps_ms([]).tolist() == []
    steps = [Step([old, bad], Written([], [], 0.0)), Step(others, Written([], [], 0.0))]
    world.clock.advance(0.25)
    trail.committed(steps, since_s=world.clock.monotonic_s() - 0.125)
    took = world.metrics.observed("serve.answer_s")
    assert np.allclose(took, [2.25, 2.25, 0.75, 0.75])
    assert world.metrics.observed("serve.latency_s", stage="commit") == [0.125]
