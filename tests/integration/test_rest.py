"""The REST API on real sockets and a real SavedModel: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import structlog

from deploy.ports import reserve
from inference.api import ApiPolicy
from inference.gather import Bounds
from inference.http import HttpServer
from inference.listen import HttpOptions, Tls
from inference.quota import Quotas, parsed
from inference.rest import RestPolicy
from ingest.clock import SystemClock
from schemas.codec import Decoder
from schemas.errors import Misconfigured, ProcessFailed
from schemas.events import EventType, Recommendation, UserEvent
from tests.network_world import (
    HASHES,
    Setup,
    plain,
    rank_inputs,
    retrieve_inputs,
    served,
    tiny_model,
)
from tests.serving import ITEMS, place
from tests.serving import model as constant_model
from tests.tls_proxy import Authority
from tests.tokens import Issuer

pytestmark = pytest.mark.tf

PREDICT = "/v1/models/m:predict"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "1")


@pytest.fixture(scope="module")
def rest(model):
    """Open to everybody, with small bounds."""
    setup = Setup(
        rest=RestPolicy(max_body_bytes=400_000, body_s=0.5, origins=("https://shop.example",)),
        http=HttpOptions(header_s=0.5, max_header_bytes=8_000),
    )
    with served(model, setup) as made:
        yield made


def goes_on(rest) -> None:
    """The next call is answered."""
    assert rest.post("/v1/recommend", {"user_id": "ann"}).status == 200


# --- recommendations


def test_a_recommendation_has_its_items_and_lineage(rest):
    answer = rest.post("/v1/recommend", {"user_id": "ann", "k": 3, "request_id": "r1"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json
    assert [i["item_id"] for i in found["items"]] == ITEMS[:3]
    assert (found["request_id"], found["user_id"]) == ("r1", "ann")
    assert (found["status"], found["model_name"], found["model_version"]) == ("OK", "m", 1)
    assert found["events_partition"] == place("ann")
    assert "title" not in found["items"][0]


def test_titles_come_when_asked_for(rest):
    body = {"user_id": "ann", "k": 2, "titles": True, "candidates": ["item-3", "unheard-of"]}
    items = rest.post("/v1/recommend", body).json["items"]
    assert [(i["item_id"], i["title"]) for i in items] == [("item-3", "ITEM-3"), ("unheard-of", "")]


def test_an_answer_is_recorded_with_its_features_for_learning(rest, eventually):
    rest.post("/v1/recommend", {"user_id": "bob", "request_id": "recorded"})
    decoder = Decoder(rest.registry, Recommendation)

    def recorded() -> list[Recommendation]:
        answers = [decoder.decode(value) for value in rest.values("recommendations")]
        return [one for one in answers if one.request_id == "recorded"]

    eventually(recorded)
    (found,) = recorded()
    assert found.user_id == "bob"
    assert found.user_floats
    assert found.items[0].floats


def test_an_unknown_user_gets_an_answer(rest):
    found = rest.post("/v1/recommend", {"user_id": "never seen before"}).json
    assert (found["status"], found["row_age_ms"]) == ("OK", -1)


def test_who_asks_for_an_event_hears_whether_the_answer_holds_it(rest):
    rest.world.row("cyd", "item-9", next_offset=7)
    for offset, stale in ((6, False), (7, True)):
        after = {"partition": place("cyd"), "offset": offset}
        found = rest.post("/v1/recommend", {"user_id": "cyd", "after_offset": after}).json
        assert (found["stale"], found["events_offset"]) == (stale, 7)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"user_id": "ann", "k": 501}, "k must be between 1 and 500, got 501"),
        ({"user_id": "ann", "k": 10**30}, "<= 2147483647"),
        ({"user_id": "ann", "k": 0}, ">= 1"),
        ({"user_id": "ann", "k": "five"}, r"Expected `int`, got `str` - at `$.k`"),
        ({"k": 5}, "missing required field `user_id`"),
        ({"user_id": ""}, "length >= 1"),
        ({"user_id": "ann", "amount": 5}, "unknown field `amount`"),
        ({"user_id": "ann", "candidates": [f"i{n}" for n in range(10_000)]}, "at most 5000"),
        ({"user_id": "ann", "candidates": [""]}, "length >= 1"),
        ({"user_id": "ann", "event_time": -5}, ">= 1"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_a_request_that_is_not_served_is_told_what_was_expected(rest, body, told):
    answer = rest.post("/v1/recommend", body)
    assert answer.status == 400
    assert told in answer.json["error"]
    goes_on(rest)


def test_without_a_model_users_get_popular_items():
    with served(None) as rest:
        found = rest.post("/v1/recommend", {"user_id": "ann"}).json
        assert (found["status"], found["fallback_reason"]) == ("FALLBACK", "no-model")
        assert rest.post(PREDICT, {"inputs": {}}).status == 404


def test_a_request_that_breaks_its_batch_is_told_alone(model):
    with served(model) as rest, ThreadPoolExecutor(8) as pool:
        read = rest.world.store.snapshots

        def breaking(users):
            if any("poison" in one for of in users.values() for one in of):
                raise ZeroDivisionError("a bug that this user provokes")
            return read(users)

        rest.world.store.snapshots = breaking
        users = [f"u{n}" for n in range(20)] + ["poison"]
        calls = {u: pool.submit(rest.post, "/v1/recommend", {"user_id": u}) for u in users}
        answers = {user: call.result(20) for user, call in calls.items()}
    bad = answers.pop("poison")
    assert (bad.status, bad.json["reason"]) == (500, "poison")
    assert {answer.status for answer in answers.values()} == {200}


# --- tensors


def test_a_model_without_signatures_recommends_and_takes_no_tensors():
    with served(constant_model()) as rest:
        assert rest.post("/v1/recommend", {"user_id": "ann"}).json["status"] == "OK"
        answer = rest.post(PREDICT, {"inputs": {}})
        assert (answer.status, answer.json["error"]) == (404, "version 1 takes no tensors")


def plain_rows(inputs: dict[str, np.ndarray]) -> list[dict]:
    """An object a row; `k` is one value for all."""
    columns = plain(inputs)
    k = columns.pop("k")
    return [
        dict(zip(columns, row, strict=True)) | {"k": k}
        for row in zip(*columns.values(), strict=True)
    ]


def test_columns_and_rows_give_what_the_model_gives(rest, model):
    inputs = retrieve_inputs(rows=3, k=4)
    expected = model.predict("serving_default", inputs, 3)
    columns = rest.post(PREDICT, {"inputs": plain(inputs)})
    assert columns.status == 200, columns.body
    assert columns.json["outputs"]["items"] == expected["items"].tolist()
    assert columns.json["outputs"]["scores"] == expected["scores"].tolist()
    rows = plain_rows(inputs)
    by_rows = rest.post("/v1/models/m/versions/1:predict", {"instances": rows})
    assert by_rows.status == 200, by_rows.body
    assert [row["items"] for row in by_rows.json["predictions"]] == expected["items"].tolist()


def test_candidates_are_ranked_by_columns_and_by_rows(rest, model):
    inputs = rank_inputs(rows=2, wide=3)
    expected = model.predict("rank", inputs, 2)["scores"].tolist()
    body = {"signature_name": "rank", "inputs": plain(inputs)}
    found = rest.post("/v1/models/m/labels/stable:predict", body)
    assert found.json == {"outputs": expected}
    pairs = {n for n, a in inputs.items() if len(a) == 6}
    cut = {n: a.reshape(2, 3, *a.shape[1:]) if n in pairs else a for n, a in inputs.items()}
    rows = [{n: a[at].tolist() for n, a in cut.items()} for at in range(2)]
    by_rows = rest.post(PREDICT, {"signature_name": "rank", "instances": rows})
    assert by_rows.json == {"predictions": expected}


def changed(**given):
    return plain(retrieve_inputs()) | given


def without(name: str):
    return {n: v for n, v in plain(retrieve_inputs()).items() if n != name}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"inputs": changed(exclude=[[0.5], [1]])}, 400, "'exclude' holds values that are not"),
        ({"inputs": changed(exclude=["a", "b"])}, 400, "'exclude' holds values that are not"),
        ({"inputs": changed(exclude=None)}, 400, "'exclude' holds values that are not"),
        (
            {"inputs": changed(exclude=[[2**63], [2**63]])},
            400,
            "'exclude' holds values beyond int64",
        ),
        ({"inputs": changed(exclude=[0, 1])}, 400, "is int64 [2], expected int64 [-1, -1]"),
        ({"inputs": changed(exclude=[[0]])}, 400, "differ in their rows"),
        ({"inputs": changed(exclude=[[0], [1, 2]])}, 400, "its lists differ in length"),
        ({"inputs": changed(k=501)}, 400, "k must be between 1 and 500, got 501"),
        ({"inputs": changed(k=2**40)}, 400, "'k' holds values beyond int32"),
        ({"inputs": changed(k=400)}, 400, "model m version 1, serving_default"),
        ({"inputs": changed(more=[1])}, 400, "input 'more' is not of this signature"),
        ({"inputs": without("k")}, 400, "input 'k' is missing"),
        ({"inputs": 7}, 400, "several inputs, name them"),
        ({"inputs": {}, "instances": []}, 400, "either instances (rows) or inputs"),
        ({}, 400, "either instances (rows) or inputs"),
        ({"instances": []}, 400, "instances is empty"),
        ({"instances": [1, 2]}, 400, "several inputs, name them"),
        ({"instances": [{"k": 1}, {"l": 1}]}, 400, "instances[1] has other inputs"),
        ({"instances": [{"k": 1}, {"k": 2}]}, 400, "one value for the whole call"),
        ({"inputs": changed(), "signature_name": "rnak"}, 404, "no signature 'rnak': there are"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_what_was_expected(rest, body, status, told):
    answer = rest.post(PREDICT, body)
    assert (answer.status, told in answer.json["error"]) == (status, True), answer.body
    goes_on(rest)


def test_values_beyond_float32_are_refused(rest):
    inputs = retrieve_inputs(rows=1)
    name = next(n for n, a in inputs.items() if a.dtype == np.float32)
    big = plain(inputs) | {name: np.full(inputs[name].shape, 1e39).tolist()}
    answer = rest.post(PREDICT, {"inputs": big})
    assert (answer.status, "NaN or infinity" in answer.json["error"]) == (400, True)


@pytest.mark.parametrize("body", [b'{"user_id": NaN}', b"[1e999]", b"", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_refused(rest, body):
    answer = rest.call("POST", "/v1/recommend", body)
    assert (answer.status, answer.json["reason"]) == (400, "undecodable")
    goes_on(rest)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v1/models/m/versions/7", "no version 7: in memory are 1"),
        ("/v1/models/m/versions/999999999999999999", "no version 999999999999999999: in"),
        ("/v1/models/m/versions/" + "9" * 5000, "versions are numbers"),
        ("/v1/models/m/versions/latest", "versions are numbers"),
        ("/v1/models/m/labels/canary", "no version with label 'canary': labels are stable"),
        ("/v1/models/other", "no model 'other': 'm' serves"),
    ],
)
def test_what_is_not_served_is_told_with_what_is(rest, path, told):
    for method, suffix in (("GET", ""), ("GET", "/metadata"), ("POST", ":predict")):
        body = {"inputs": changed()} if method == "POST" else None
        answer = rest.call(method, path + suffix, body)
        assert (answer.status, told in answer.json["error"]) == (404, True)


def test_status_and_metadata_are_those_of_tensorflow_serving(rest):
    status = rest.call("GET", "/v1/models/m").json["model_version_status"]
    fine = {"error_code": "OK", "error_message": ""}
    assert status == [{"version": "1", "state": "AVAILABLE", "status": fine, "labels": ["stable"]}]
    found = rest.call("GET", "/v1/models/m/versions/1/metadata").json
    assert found["model_spec"] == {"name": "m", "signature_name": "", "version": "1"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["k"]["dtype"] == "DT_INT32"
    sizes = signatures["rank"]["inputs"]["candidates"]["tensor_shape"]["dim"]
    assert [one["size"] for one in sizes] == ["-1", "-1"]


def test_calls_of_many_connections_share_model_calls_and_get_their_own_answers(rest, model):
    def ask(n: int) -> bool:
        inputs = retrieve_inputs(rows=1 + n % 3, k=3)
        inputs["exclude"][:] = HASHES[n % 5].view(np.int64)
        found = rest.post(PREDICT, {"inputs": plain(inputs)}).json
        expected = model.predict("serving_default", inputs, 1 + n % 3)
        return found["outputs"]["items"] == expected["items"].tolist()

    calls_before = rest.world.metrics.value("network.tensor_rows")
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))
    assert rest.world.metrics.value("network.tensor_rows") - calls_before < 200


def test_rows_of_many_connections_are_read_together_and_a_bad_one_spoils_its_own_call_alone(
    rest, model
):
    def ask(n: int) -> bool:
        inputs = retrieve_inputs(rows=1 + n % 2, k=3)
        rows = plain_rows(inputs)
        if n % 7 == 0:
            name = next(name for name in inputs if name not in ("k", "exclude"))
            rows[0][name] = "not a number"
            refused = rest.post(PREDICT, {"instances": rows})
            return refused.status == 400 and name in refused.json["error"]
        expected = model.predict("serving_default", inputs, 1 + n % 2)
        found = rest.post(PREDICT, {"instances": rows}).json
        return [row["items"] for row in found["predictions"]] == expected["items"].tolist()

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


# --- events


def test_an_event_is_on_the_log_where_the_answer_says(rest):
    body = {"user_id": "ann", "event_type": "CLICK", "item_id": "item-1", "event_id": "e-1"}
    answer = rest.post("/v1/events", body)
    assert answer.status == 200, answer.body
    assert (answer.json["event_id"], answer.json["partition"]) == ("e-1", place("ann"))
    decoder = Decoder(rest.registry, UserEvent)
    found = [decoder.decode(value) for value in rest.values("user-events")]
    (event,) = [one for one in found if one.event_id == "e-1"]
    assert (event.user_id, event.event_type, event.item_id) == ("ann", EventType.CLICK, "item-1")
    assert event.event_time == rest.world.clock.now_ms()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"event_type": "GLANCE"}, "out-of-range"),
        ({"event_type": "UNKNOWN"}, "out-of-range"),
        ({"event_time": 4_000_000_000_000}, "in-future"),
        ({"event_time": 2**70}, "undecodable"),
        ({"user_id": ""}, "undecodable"),
        ({"user_id": "\u00e9" * 400}, "too-large"),
        ({"profile": [{"name": "a"}]}, "undecodable"),
    ],
)
def test_an_event_that_would_not_be_folded_is_refused(rest, given, reason):
    before = len(rest.values("user-events"))
    answer = rest.post("/v1/events", {"user_id": "ann", "event_type": "CLICK", **given})
    assert (answer.status, answer.json["reason"]) == (413 if "large" in reason else 400, reason)
    assert len(rest.values("user-events")) == before


# --- HTTP itself


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/anything", 404),
        ("GET", "/v1/recommend", 405),
        ("DELETE", "/v1/models/m", 405),
        ("POST", "/v1/models/m:classify", 405),
    ],
)
def test_a_path_that_is_none_of_ours_is_told_in_json(rest, method, path, status):
    answer = rest.call(method, path)
    assert (answer.status, "error" in answer.json) == (status, True)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_content_type_is_refused(rest, kind):
    answer = rest.call("POST", "/v1/recommend", b'{"user_id": "ann"}', Content_Type=kind)
    assert (answer.status, answer.json["reason"]) == (415, "content-type")


def test_a_packed_body_is_refused(rest):
    answer = rest.call("POST", "/v1/recommend", b"\x1f\x8b", Content_Encoding="gzip")
    assert (answer.status, "Content-Encoding" in answer.json["error"]) == (415, True)


def test_a_body_over_the_limit_is_refused_before_it_is_read(rest):
    with socket.create_connection(("127.0.0.1", rest.network.http_port), 20) as raw:
        raw.sendall(head(content_length=10**9))
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")
    goes_on(rest)


def test_a_chunked_body_over_the_limit_is_refused(rest):
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", rest.network.http_port), 20) as raw:
        raw.sendall(head(more="Transfer-Encoding: chunked\r\n"))
        try:
            for _ in range(20):
                raw.sendall(chunk)
            answer = raw.recv(4096)
        except ConnectionError:  # closed with our bytes unread: the answer may be lost with them
            answer = b"HTTP/1.1 413 "
        assert answer.startswith(b"HTTP/1.1 413 ")
    assert rest.refused("too-large") >= 1
    goes_on(rest)


def head(content_length: int | None = None, more: str = "") -> bytes:
    length = "" if content_length is None else f"Content-Length: {content_length}\r\n"
    start = "POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{start}{length}{more}\r\n".encode()


def test_a_slow_client_loses_its_connection_and_others_go_on(rest, eventually):
    """One never ends its headers, one never ends its body, one sends endless headers."""
    port = rest.network.http_port
    with (
        socket.create_connection(("127.0.0.1", port), 20) as headers,
        socket.create_connection(("127.0.0.1", port), 20) as body,
        socket.create_connection(("127.0.0.1", port), 20) as idle,
        socket.create_connection(("127.0.0.1", port), 20) as endless,
    ):
        headers.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")
        body.sendall(head(content_length=100) + b'{"user_id"')
        endless.sendall(b"GET /healthz HTTP/1.1\r\n" + b"X-A: b\r\n" * 2000)
        goes_on(rest)
        assert headers.recv(100) == b""
        assert idle.recv(100) == b""
        assert body.recv(4096).startswith(b"HTTP/1.1 408 ")
        with suppress(ConnectionResetError):  # what had come was not all read
            assert endless.recv(100) == b""
    eventually(lambda: rest.refused("slow-header") >= 2)
    assert rest.refused("large-header") == 1
    assert rest.refused("slow-body") == 1
    goes_on(rest)


def test_a_client_that_never_ends_its_handshake_loses_its_connection(model, tmp_path):
    authority = Authority(tmp_path, "authority")
    identity = authority.issue("serve")
    tls = Tls(cert_file=identity.certificate, key_file=identity.key)
    with served(model, Setup(http=HttpOptions(tls=tls, header_s=0.3))) as rest:
        with socket.create_connection(("127.0.0.1", rest.network.http_port), 20) as raw:
            assert raw.recv(100) == b""
        rest.tls = ssl.create_default_context(cafile=str(authority.file))
        goes_on(rest)


def test_a_certificate_that_does_not_load_is_told_at_start(tmp_path):
    for name in ("cert", "key"):
        (tmp_path / name).write_text("no PEM")
    tls = Tls(cert_file=tmp_path / "cert", key_file=tmp_path / "key")
    with (
        pytest.raises(Misconfigured, match="cannot serve HTTP on"),
        served(None, Setup(http=HttpOptions(tls=tls))),
    ):
        pass


def test_one_connection_can_make_many_calls(rest):
    with rest.connection() as connection:
        for _ in range(20):
            answer = rest.over(connection, "POST", "/v1/recommend", {"user_id": "ann"})
            assert answer.status == 200


def test_only_listed_web_pages_may_call(rest):
    asked = {"Access_Control_Request_Method": "POST"}
    friend = rest.call("OPTIONS", "/v1/recommend", Origin="https://shop.example", **asked)
    assert friend.headers["access-control-allow-origin"] == "https://shop.example"
    stranger = rest.call("OPTIONS", "/v1/recommend", Origin="https://evil.example", **asked)
    assert "access-control-allow-origin" not in stranger.headers


def test_no_web_page_may_call_unless_one_is_listed(model):
    with served(model) as rest:
        answer = rest.call("GET", "/healthz", Origin="https://shop.example")
        assert "access-control-allow-origin" not in answer.headers


# --- who may


@pytest.fixture(scope="module")
def guarded(model, tmp_path_factory):
    issuer = Issuer(tmp_path_factory.mktemp("keys"))
    with served(model, Setup(rules=issuer.rules())) as made:
        yield made, issuer


def test_a_token_with_the_scope_lets_in(guarded):
    rest, issuer = guarded
    bearer = issuer.bearer(scope="recommend")
    assert rest.post("/v1/recommend", {"user_id": "a"}, Authorization=bearer).status == 200


@pytest.mark.parametrize(
    ("claims", "status", "told"),
    [
        (None, 401, "bearer token is needed"),
        ({"exp": 1_000}, 401, "expired"),
        ({"aud": "others"}, 401, "Audience"),
        ({"scope": "predict events"}, 403, "lacks the scope 'recommend'"),
    ],
)
def test_who_may_not_is_told_why_and_written_down_by_hash(guarded, claims, status, told):
    rest, issuer = guarded
    bearer = None if claims is None else issuer.bearer(sub="nosy-client", **claims)
    with structlog.testing.capture_logs() as logs:
        answer = rest.post("/v1/recommend", {"user_id": "secret-user"}, Authorization=bearer)
    assert (answer.status, told in answer.json["error"]) == (status, True)
    assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    (entry,) = [one for one in logs if one["event"] == "audit.refused"]
    assert entry["reason"] in ("unauthenticated", "forbidden")
    assert "nosy-client" not in str(entry)
    assert "secret-user" not in str(entry)


def test_guessing_tokens_has_a_quota(model, tmp_path):
    with reserve(1) as nowhere:  # no store: the process counts
        url = f"redis://127.0.0.1:{nowhere.numbers[0]}/0"
        issuer, clock = Issuer(tmp_path), SystemClock()
        quotas = Quotas(parsed("3/hour"), url, clock, prefix="guess-")
        with served(model, Setup(rules=issuer.rules(), quotas=quotas)) as rest:
            wrong = [rest.post("/v1/recommend", {}, Authorization="Bearer x") for _ in range(5)]
            assert [answer.status for answer in wrong] == [401] * 3 + [429] * 2
            right = rest.post("/v1/recommend", {"user_id": "a"}, Authorization=issuer.bearer())
            assert right.status == 200


def test_callers_are_sent_here_once_items_and_model_are_read():
    setup = Setup()
    with served(None, setup) as rest:
        assert rest.call("GET", "/healthz").status == 200
        assert rest.call("GET", "/readyz").status == 503
        setup.started.set()
        assert rest.call("GET", "/readyz").status == 200


def test_probes_and_the_description_need_no_token(guarded):
    rest, _ = guarded
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert rest.call("GET", path).status in (200, 503)
    assert rest.call("GET", "/v1/models/m").status == 401


# --- bounds


def test_calls_beyond_what_may_wait_are_told_to_come_back(model, eventually):
    policy = ApiPolicy(recommend=Bounds(batch=1, waiting=2))
    with served(model, Setup(policy=policy)) as rest, ThreadPoolExecutor(12) as pool:
        go = threading.Event()
        before_reading(rest, lambda: go.wait(20))
        calls = [pool.submit(rest.post, "/v1/recommend", {"user_id": f"u{n}"}) for n in range(12)]
        eventually(lambda: sum(call.done() for call in calls) >= 9)
        refused = [call.result() for call in calls if call.done()]
        go.set()
        assert {answer.status for answer in refused} == {429}
        assert refused[0].headers["retry-after"]
        assert sorted(call.result(20).status for call in calls) == [200] * 3 + [429] * 9
        goes_on(rest)


def before_reading(rest, act) -> None:
    """Do something whenever rows are read."""
    read = rest.world.store.snapshots

    def acting(users):
        act()
        return read(users)

    rest.world.store.snapshots = acting


def test_bodies_in_memory_are_bounded_together(model):
    with served(model, Setup(max_waiting_bytes=200)) as rest:
        answer = rest.post("/v1/recommend", {"user_id": "a" * 300})
        assert (answer.status, answer.json["reason"]) == (429, "overloaded")
        goes_on(rest)


def test_a_deadline_that_passes_is_told(model):
    with served(model) as rest:
        before_reading(rest, lambda: rest.world.clock.advance(0.1))
        answer = rest.post("/v1/recommend", {"user_id": "ann", "deadline_ms": 50})
        assert (answer.status, answer.json["reason"]) == (504, "timeout")
        assert rest.post("/v1/recommend", {"user_id": "ann", "deadline_ms": 500}).status == 200


def test_a_taken_port_is_told_at_start(rest):
    taken = Setup(http=HttpOptions(port=rest.network.http_port))
    with pytest.raises(Misconfigured, match="cannot serve HTTP on"), served(None, taken):
        pass


def test_calls_under_way_are_answered_when_the_server_stops(model, eventually):
    with served(model) as rest, ThreadPoolExecutor(2) as pool:
        reading, go = threading.Event(), threading.Event()
        before_reading(rest, lambda: (reading.set(), go.wait(20)))
        call = pool.submit(rest.post, "/v1/recommend", {"user_id": "ann"})
        assert reading.wait(20)
        closing = pool.submit(rest.network.close)
        eventually(lambda: is_closed(rest.network.http_port))
        go.set()
        assert call.result(20).status == 200
        closing.result(20)


def is_closed(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_server_that_ends_by_itself_is_told(model, monkeypatch, eventually):
    go, ended = threading.Event(), threading.Event()

    async def broken(self) -> None:
        await asyncio.to_thread(go.wait, 20)
        self._socket.close()
        raise OSError("no more files")

    monkeypatch.setattr(HttpServer, "serve", broken)

    def serving() -> None:
        with served(model, Setup(ended=ended.set)):
            go.set()
            assert ended.wait(20)

    with pytest.raises(ProcessFailed, match="no more files"):
        serving()


def test_numbers_of_calls_are_counted_by_route_and_code(rest):
    rest.call("GET", "/healthz")
    value = rest.world.metrics.value
    assert value("network.requests", protocol="http", route="healthz", code="ok") >= 1
    assert value("network.latency_s", protocol="http", route="recommend") >= 1
    assert json.loads(rest.call("GET", "/openapi.json").body)["openapi"] == "3.1.0"
