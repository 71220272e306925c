"""What an attacker sends, byte by byte: each is refused or cut off, and good calls are answered."""

from __future__ import annotations

import json
import resource
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from inference import http as inference_http
from inference.listen import GrpcOptions, HttpOptions, Tls
from inference.rest import RestPolicy
from tests import raw_http2
from tests.network_world import Served, Setup, plain, retrieve_inputs, served, tiny_model
from tests.serving import ITEMS
from tests.tls_proxy import Authority

pytestmark = pytest.mark.tf

PREDICT = "/v1/models/m:predict"
METHOD = "/tensorflow.serving.PredictionService/Predict"
MAX_MESSAGE = 4 << 20
INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, RESOURCE_EXHAUSTED = "3", "4", "5", "8"
UNIMPLEMENTED, INTERNAL = "12", "13"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "1")


@pytest.fixture(scope="module")
def server(model) -> Iterator[Served]:
    setup = Setup(
        rest=RestPolicy(max_body_bytes=MAX_MESSAGE, body_s=1.0),
        http=HttpOptions(header_s=0.5, max_header_bytes=8_000, unread_s=0.5),
        grpc=GrpcOptions(max_message_bytes=MAX_MESSAGE, message_s=1.0),
    )
    with served(model, setup) as made:
        yield made


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.network.grpc_port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(autouse=True)
def goes_on(server, stub):
    """After each attack the same server answers good calls, over both protocols."""
    yield
    assert server.post("/v1/recommend", {"user_id": "ann"}).status == 200
    assert stub.Predict(good(), 20).outputs["items"].dtype == tf.int64


def good() -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    for name, array in retrieve_inputs().items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


@contextmanager
def connected(port: int, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as raw:
        if receive_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.settimeout(20)
        raw.connect(("127.0.0.1", port))
        yield raw


def head(path: str = "/v1/recommend", **fields: object) -> bytes:
    given = {"Host": "x", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): str(value) for name, value in fields.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def rest_of(raw: socket.socket) -> bytes:
    """What comes until the server closes; a reset is a close."""
    got = b""
    try:
        while piece := raw.recv(65_536):
            got += piece
    except ConnectionResetError:
        pass
    return got


# --- HTTP connections


def drip(raw: socket.socket, piece: bytes) -> bytes:
    """Send a little again and again until the server has had enough; what it says."""
    raw.settimeout(0.05)
    got = b""
    while True:
        try:
            raw.sendall(piece)
            while True:
                found = raw.recv(4096)
                if not found:
                    return got
                got += found
        except TimeoutError:
            continue
        except ConnectionError:
            return got


def test_a_head_that_drips_is_cut_off(server, eventually):
    before = server.refused("slow-header")
    with connected(server.network.http_port) as raw:
        raw.sendall(b"POST /v1/recommend HTTP/1.1\r\n")
        assert drip(raw, b"X-A: b\r\n") == b""
    eventually(lambda: server.refused("slow-header") == before + 1)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_drips_is_cut_off(server, eventually, chunked):
    before = server.refused("slow-body")
    start = head(Transfer_Encoding="chunked") if chunked else head(Content_Length=1_000_000)
    with connected(server.network.http_port) as raw:
        raw.sendall(start)
        assert drip(raw, b"1\r\n \r\n" if chunked else b" ").startswith(b"HTTP/1.1 408 ")
    eventually(lambda: server.refused("slow-body") == before + 1)


def test_a_body_that_never_begins_is_cut_off_as_a_head_is(server, eventually):
    before = server.refused("slow-body")
    with connected(server.network.http_port) as raw:
        raw.sendall(head(Content_Length=10))
        assert rest_of(raw) == b""
    eventually(lambda: server.refused("slow-body") == before + 1)


def flooded(raw: socket.socket, piece: bytes, most_bytes: int) -> bool:
    """Whether the server closes before that many bytes have gone to it."""
    try:
        for _ in range(most_bytes // len(piece)):
            raw.sendall(piece)
    except ConnectionError:
        return True
    return False


ENDLESS = [
    pytest.param(b"GET / HTTP/1.1\r\nX-A: ", b"a" * 10_000, id="a header"),
    pytest.param(b"GET / HTTP/1.1\r\n", b"X-A: b\r\n" * 1_000, id="headers"),
    pytest.param(b"GET /", b"a" * 10_000, id="a path"),
    pytest.param(b"G", b"E" * 10_000, id="a method"),
    pytest.param(
        head(Transfer_Encoding="chunked") + b"1;", b"x" * 10_000, id="an extension of a chunk"
    ),
    pytest.param(
        head(Transfer_Encoding="chunked") + b"1\r\n{\r\n0\r\nX-A: b\r\n",
        b"X-A: b\r\n" * 1_000,
        id="headers after a body",
    ),
]


@pytest.mark.parametrize(("start", "piece"), ENDLESS)
def test_what_never_ends_and_is_no_body_is_cut_off(server, start, piece):
    """More than the kernel's buffers hold: had the server gone on reading, all of it would go."""
    with connected(server.network.http_port) as raw:
        raw.sendall(start)
        assert flooded(raw, piece, 64 << 20)


def test_headers_of_a_next_request_are_bounded_while_the_first_is_answered(server, eventually):
    before = server.refused("large-header")
    with server.world.live._changed, connected(server.network.http_port) as raw:  # none is answered
        body = json.dumps({"inputs": plain(retrieve_inputs())}).encode()
        raw.sendall(head(PREDICT, Content_Length=len(body)) + body)
        raw.sendall(b"GET / HTTP/1.1\r\n")
        assert flooded(raw, b"X-A: b\r\n" * 1_000, 64 << 20)
    eventually(lambda: server.refused("large-header") == before + 1)


def test_who_never_reads_an_answer_loses_the_connection(server, eventually):
    """Answers of megabytes in all, into a buffer of a few thousand bytes."""
    before = server.refused("unread-answer")
    body = json.dumps({"inputs": plain(retrieve_inputs(rows=512, k=50))}).encode()
    call = head(PREDICT, Content_Length=len(body)) + body
    with connected(server.network.http_port, receive_bytes=4096) as raw:
        raw.settimeout(0.2)
        try:
            for _ in range(40):
                raw.sendall(call)
        except (TimeoutError, ConnectionError):
            pass  # the server reads no more before its answer is read
        eventually(lambda: server.refused("unread-answer") == before + 1, timeout_s=20)


def test_who_never_reads_over_tls_loses_the_connection_too(model, tmp_path, eventually):
    authority = Authority(tmp_path, "authority")
    identity = authority.issue("serve")
    tls = Tls(cert_file=identity.certificate, key_file=identity.key)
    body = json.dumps({"inputs": plain(retrieve_inputs(rows=512, k=50))}).encode()
    call = head(PREDICT, Content_Length=len(body)) + body
    trusting = ssl.create_default_context(cafile=str(authority.file))
    options = HttpOptions(tls=tls, unread_s=0.5)
    with (
        served(model, Setup(http=options)) as safe,
        connected(safe.network.http_port, receive_bytes=4096) as raw,
        trusting.wrap_socket(raw, server_hostname="127.0.0.1") as client,
    ):
        client.settimeout(0.2)
        with suppress(OSError):  # the server reads no more before its answer is read
            for _ in range(40):
                client.sendall(call)
        eventually(lambda: safe.refused("unread-answer") == 1)
        safe.tls = trusting
        assert safe.post("/v1/recommend", {"user_id": "ann"}).status == 200


def test_a_slow_reader_that_reads_gets_everything(server):
    body = json.dumps({"inputs": plain(retrieve_inputs(rows=512, k=50))}).encode()
    with connected(server.network.http_port, receive_bytes=4096) as raw:
        raw.sendall(head(PREDICT, Content_Length=len(body), Connection="close") + body)
        answer = rest_of(raw)
    payload = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert np.array(payload["outputs"]["items"]).shape == (512, 50)


def test_too_many_connections_are_told_so_or_closed_and_the_others_go_on(
    model, monkeypatch, eventually
):
    monkeypatch.setattr(inference_http, "SPARE_CONNECTIONS", 3)
    options = HttpOptions(max_connections=4, header_s=1.0)
    with served(model, Setup(http=options)) as small, ExitStack() as stack:
        port = small.network.http_port
        idle = [stack.enter_context(connected(port)) for _ in range(6)]
        assert small.post("/v1/recommend", {"user_id": "ann"}).status == 503
        more = [stack.enter_context(connected(port)) for _ in range(5)]
        assert rest_of(more[-1]) == b""
        assert small.refused("too-many-connections") >= 1
        assert [rest_of(raw) for raw in idle] == [b""] * 6  # they never asked for anything
        eventually(lambda: small.post("/v1/recommend", {"user_id": "ann"}).status == 200)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100, id="TLS"),
        pytest.param(raw_http2.PREFACE + raw_http2.SETTINGS_FRAME, id="HTTP/2"),
        pytest.param(b"GET / HTTP/9.9\r\n\r\n", id="another version"),
        pytest.param(b"GET /%zz%00 HTTP/1.1\r\nHost: x\r\n\r\n", id="a path that is none"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", id="a path of other bytes"),
        pytest.param(head(Content_Length="-1"), id="negative length"),
        pytest.param(head(Content_Length="1" * 400), id="overflowing length"),
        pytest.param(head(Content_Length="1_0") + b"x" * 10, id="length with an underscore"),
        pytest.param(
            head(Content_Length=4, Transfer_Encoding="chunked") + b"0\r\n\r\n", id="two lengths"
        ),
        pytest.param(head(Transfer_Encoding="chunked") + b"zz\r\n", id="chunk size is no number"),
        pytest.param(
            head(Transfer_Encoding="chunked") + b"f" * 40 + b"\r\n", id="overflowing chunk"
        ),
        pytest.param(head(X_A="b\0c"), id="NUL in a header"),
    ],
)
def test_what_is_not_http_gets_an_error_at_most(server, sent):
    with connected(server.network.http_port) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        answer = rest_of(raw)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:200]


# --- JSON


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 2_000_000, id="nested lists"),
        pytest.param(b'{"user_id":' * 300_000, id="nested objects"),
        pytest.param(b'{"user_id": "ann", "k": NaN}', id="NaN"),
        pytest.param(b'{"user_id": "ann", "k": -Infinity}', id="infinity"),
        pytest.param(b'{"user_id": "ann", "k": 1e400}', id="overflowing number"),
        pytest.param(b'{"user_id": "ann", "k": 1' + b"0" * 1_000_000 + b"}", id="a million digits"),
        pytest.param(b'{"user_id": "\xff\xfe"}', id="not UTF-8"),
        pytest.param(b'{"user_id": "\\ud800"}', id="lone surrogate"),
        pytest.param('{"user_id": "ann"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"user_id": "ann"} {}', id="two bodies"),
        pytest.param(b'{"user_id": "ann"', id="truncated"),
        pytest.param(b'{"user_id": "' + b"a" * 3_000_000 + b'"}', id="endless id"),
    ],
)
def test_json_that_is_none_or_too_much_is_refused(server, body):
    answer = server.call("POST", "/v1/recommend", body)
    assert (answer.status, answer.json["reason"]) == (400, "undecodable")
    assert len(answer.body) < 1_000


def test_of_a_key_given_twice_the_last_counts(server):
    """As for every reader of JSON that we know of: what a proxy checked is what is served."""
    answer = server.call("POST", "/v1/recommend", b'{"user_id": "bob", "user_id": "ann"}')
    assert (answer.status, answer.json["user_id"]) == (200, "ann")


def inputs_with(exclude: str) -> bytes:
    """A call whose one input is this JSON."""
    others = json.dumps({n: v for n, v in plain(retrieve_inputs()).items() if n != "exclude"})
    return f'{{"inputs": {{"exclude": {exclude}, {others[1:]}}}'.encode()


@pytest.mark.parametrize(
    ("exclude", "told"),
    [
        ("[" * 900 + "]" * 900, "more than 8 dimensions"),
        ("[[[[[[[[[[[[1]]]]]]]]]]]]", "more than 8 dimensions"),
        ("[[18446744073709551616],[0]]", "not int64"),
        ("[[true],[1]]", "not int64"),
        ("[[{}],[1]]", "not int64"),
        ('["' + "a" * 1_000_000 + '",' + ",".join(['"b"'] * 500_000) + "]", "not int64"),
        (json.dumps({"a" * 1000 + str(n): n for n in range(1000)}), "not int64"),
    ],
)
def test_tensors_that_are_none_are_refused_before_they_take_memory(server, exclude, told):
    """The texts would be two terabytes as an array."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = server.call("POST", PREDICT, inputs_with(exclude))
    assert (answer.status, told in answer.json["error"]) == (400, True), answer.body[:300]
    assert len(answer.body) < 1_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 500_000


def test_rows_with_endless_names_are_refused_in_few_words(server):
    rows = [{"k": 1}, {"x" * 1_000_000: 1, **{f"{n}" * 500: 1 for n in range(50)}}]
    answer = server.post(PREDICT, {"instances": rows})
    assert answer.status == 400
    assert len(answer.body) < 5_000


# --- requests with little in them


def test_candidates_that_nobody_knows_are_ranked_last_and_all_come_back(server):
    """They may be in the caller's catalogue before they are in ours."""
    unknown = [f"unheard-of-{n}" for n in range(20)]
    body = {"user_id": "ann", "k": 5, "candidates": unknown}
    found = server.post("/v1/recommend", body).json
    assert found["status"] == "OK"
    assert len({item["item_id"] for item in found["items"]} & set(unknown)) == 5
    body["candidates"] = [*unknown, "item-3"]
    assert server.post("/v1/recommend", body).json["items"][0]["item_id"] == "item-3"


def test_a_user_whose_row_has_no_history_is_answered_by_the_model(server):
    server.world.row("nothing-yet", next_offset=3)
    found = server.post("/v1/recommend", {"user_id": "nothing-yet", "k": 3}).json
    assert (found["status"], found["events_offset"], len(found["items"])) == ("OK", 3, 3)


def test_who_excludes_everything_gets_an_empty_answer(server):
    body = {"user_id": "ann", "exclude": ITEMS}
    found = server.post("/v1/recommend", body)
    assert (found.status, found.json["items"]) == (200, [])


def test_a_request_without_a_deadline_is_answered_within_that_of_the_server(model):
    policy = RestPolicy(answer_s=0.3)
    with served(model, Setup(rest=policy)) as slow:
        assert slow.post("/v1/recommend", {"user_id": "ann"}).json["status"] == "OK"
        with slow.world.live._changed:  # no model call can start
            late = slow.post("/v1/recommend", {"user_id": "ann"})
        assert (late.status, late.json["reason"]) == (504, "timeout")
        assert slow.post("/v1/recommend", {"user_id": "ann"}).status == 200


# --- gRPC frames


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", id="bad preface"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP/1.1"),
        pytest.param(
            raw_http2.PREFACE + b"\xff\xff\xff" + b"\x04\0" + b"\0\0\0\0", id="huge SETTINGS"
        ),
        pytest.param(
            raw_http2.PREFACE
            + raw_http2.SETTINGS_FRAME
            + raw_http2.frame(raw_http2.DATA, 1, 1, b"x"),
            id="data of no stream",
        ),
        pytest.param(
            raw_http2.PREFACE
            + raw_http2.SETTINGS_FRAME
            + raw_http2.frame(raw_http2.HEADERS, 5, 1, b"\xff" * 100),
            id="headers that do not decode",
        ),
        pytest.param(
            raw_http2.PREFACE
            + raw_http2.SETTINGS_FRAME
            + raw_http2.frame(raw_http2.HEADERS, 5, 2, raw_http2.headers((b":path", b"/"))),
            id="a stream of the server's",
        ),
    ],
)
def test_frames_that_are_none_do_no_harm(server, sent):
    with connected(server.network.grpc_port) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        assert b"grpc-status\x010" not in rest_of(raw)


def test_a_raw_call_is_answered(server):
    """So those below are refused for what is wrong with them."""
    body = raw_http2.message(good().SerializeToString())
    assert raw_http2.called(server.network.grpc_port, METHOD, body) == "answered"


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        pytest.param(
            lambda data: raw_http2.message(data, length=len(data) + 100),
            {INVALID_ARGUMENT},
            id="shorter than its prefix says",
        ),
        pytest.param(
            lambda data: raw_http2.message(data, length=2**32 - 1),
            {RESOURCE_EXHAUSTED},
            id="prefix of 4 GiB",
        ),
        pytest.param(
            lambda data: raw_http2.message(data, length=len(data) - 5),
            {INVALID_ARGUMENT, INTERNAL, UNIMPLEMENTED, "reset"},
            id="longer than its prefix says",
        ),
        pytest.param(
            lambda data: raw_http2.message(data, flag=1), {INTERNAL, UNIMPLEMENTED}, id="compressed"
        ),
        pytest.param(lambda data: raw_http2.message(data, flag=7), {NOT_FOUND}, id="odd flag"),
        pytest.param(lambda _: b"\0\0", {INVALID_ARGUMENT}, id="half a prefix"),
        pytest.param(lambda _: b"", {INVALID_ARGUMENT}, id="no message"),
        pytest.param(
            lambda data: raw_http2.message(data[:-7]), {INVALID_ARGUMENT}, id="truncated message"
        ),
        pytest.param(
            lambda data: raw_http2.message(data) * 2,
            {"answered"},  # the first
            id="two messages",
        ),
    ],
)
def test_a_message_that_is_none_is_told_so(server, body, statuses):
    """Of one with an odd flag grpc gives an empty message, which names no model."""
    found = raw_http2.called(server.network.grpc_port, METHOD, body(good().SerializeToString()))
    assert found in statuses


def test_a_packed_message_that_unpacks_to_too_much_is_refused(server):
    """A message of zeros packs a thousandfold."""
    import gzip

    packed = gzip.compress(b"\0" * (64 << 20))
    body = raw_http2.message(packed, flag=1)
    more = [(b"grpc-encoding", b"gzip")]
    found = raw_http2.called(server.network.grpc_port, METHOD, body, more)
    assert found in {RESOURCE_EXHAUSTED, INTERNAL, UNIMPLEMENTED, INVALID_ARGUMENT}
    assert found != "answered"


# --- tensors


def tensor(sizes: list[int], dtype: int, content: bytes, **more) -> predict_pb2.PredictRequest:
    """A good call but for one tensor."""
    request = good()
    proto = request.inputs["exclude"]
    proto.Clear()
    proto.dtype = dtype
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_content = content
    proto.MergeFrom(type(proto)(**more))
    return request


INT64 = tf.int64.as_datatype_enum
EIGHT = struct.pack("<q", 1)


@pytest.mark.parametrize(
    ("request_of", "told"),
    [
        pytest.param(lambda: tensor([2, 1], INT64, EIGHT), "malformed tensor", id="too short"),
        pytest.param(lambda: tensor([2, 1], INT64, EIGHT * 3), "malformed tensor", id="too long"),
        pytest.param(lambda: tensor([2, 1], INT64, EIGHT[:3]), "malformed tensor", id="odd length"),
        pytest.param(lambda: tensor([-1, -1], INT64, EIGHT), "no full shape", id="negative"),
        pytest.param(lambda: tensor([-(2**63)], INT64, EIGHT), "no full shape", id="most negative"),
        pytest.param(lambda: tensor([2**62] * 2, INT64, EIGHT), "values in all", id="overflow"),
        pytest.param(lambda: tensor([2**32] * 2, INT64, EIGHT), "values in all", id="2**64 is 0"),
        pytest.param(lambda: tensor([2**63 - 1], INT64, b""), "values in all", id="huge"),
        pytest.param(lambda: tensor([0, 2**62], INT64, b""), "", id="nothing of much"),
        pytest.param(
            lambda: tensor([2**62] * 250_000, INT64, b""), "250000 dimensions", id="many huge"
        ),
        pytest.param(lambda: tensor([1] * 9, INT64, EIGHT), "9 dimensions", id="many ones"),
        pytest.param(lambda: tensor([2, 1], 9999, EIGHT), "unknown type 9999", id="unknown type"),
        pytest.param(lambda: tensor([2, 1], 0, EIGHT), "'exclude' is", id="no type"),
        pytest.param(
            lambda: tensor([2, 1], tf.variant.as_datatype_enum, b"x"), "is variant", id="variant"
        ),
        pytest.param(
            lambda: tensor([2, 1], tf.resource.as_datatype_enum, b"x"), "is resource", id="resource"
        ),
        pytest.param(
            lambda: tensor([2, 1], tf.string.as_datatype_enum, b"", string_val=[b"x"]),
            "is string [2, 1], expected int64",
            id="string",
        ),
        pytest.param(
            lambda: tensor([2, 1], tf.qint8.as_datatype_enum, b"xx"), "is qint8", id="quantized"
        ),
    ],
)
def test_a_tensor_unlike_what_it_says_is_refused(stub, request_of, told):
    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(request_of(), 10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.value.details()
    assert told in refused.value.details()


def test_calls_whose_message_never_comes_end_and_make_room(model, eventually):
    """As many as may be under way, from one connection."""
    options = GrpcOptions(max_calls=3, message_s=0.5)
    with served(model, Setup(grpc=options)) as small, connected(small.network.grpc_port) as raw:
        block = raw_http2.headers(*raw_http2.call_fields(METHOD))
        calls = [raw_http2.frame(raw_http2.HEADERS, 4, 2 * n + 1, block) for n in range(3)]
        raw.sendall(b"".join([raw_http2.PREFACE, raw_http2.SETTINGS_FRAME, *calls]))
        assert raw_http2.outcome(raw) == DEADLINE_EXCEEDED
        value = small.world.metrics.value
        eventually(lambda: value("network.refused", protocol="grpc", reason="timeout") == 3)
        with grpc.insecure_channel(f"127.0.0.1:{small.network.grpc_port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert stub.Predict(good(), 20).outputs


def test_an_old_connection_has_to_come_anew(model):
    options = GrpcOptions(age_s=1, answer_s=1.0)
    with served(model, Setup(grpc=options)) as small, connected(small.network.grpc_port) as raw:
        raw.sendall(raw_http2.PREFACE + raw_http2.SETTINGS_FRAME)
        assert raw_http2.outcome(raw) == "goaway"
