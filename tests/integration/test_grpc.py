"""TensorFlow Serving's own gRPC clients against our server: what they get, and what is refused."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from inference.listen import GrpcOptions
from inference.protos import arrays
from ingest.tracing import Kind, MemoryTracer
from schemas.errors import Misconfigured
from tests.network_world import Setup, rank_inputs, retrieve_inputs, served, tiny_model
from tests.tokens import Issuer

pytestmark = pytest.mark.tf

LARGE = GrpcOptions(max_message_bytes=1 << 20, max_values=50_000)
PREDICTION = "tensorflow.serving.PredictionService"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "1")


@pytest.fixture(scope="module")
def api(model):
    with served(model, Setup(grpc=LARGE)) as made:
        yield made


@pytest.fixture(scope="module")
def channel(api):
    with grpc.insecure_channel(f"127.0.0.1:{api.network.grpc_port}") as made:
        yield made


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def asked(inputs, signature: str = "", name: str = "m", **version) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if "version" in version:
        request.model_spec.version.value = version["version"]
    if "label" in version:
        request.model_spec.version_label = version["label"]
    for key, array in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
    return request


def code(call) -> tuple[grpc.StatusCode, str]:
    """How a call fails."""
    with pytest.raises(grpc.RpcError) as told:
        call()
    return told.value.code(), told.value.details()


def goes_on(stub) -> None:
    """The next call is answered."""
    assert stub.Predict(asked(retrieve_inputs()), 20).outputs["items"].dtype == tf.int64


def test_predict_gives_what_the_model_gives(stub, model):
    inputs = retrieve_inputs(rows=3, k=4)
    expected = model.predict("serving_default", inputs, 3)
    found = stub.Predict(asked(inputs), 20)
    assert (found.model_spec.name, found.model_spec.version.value) == ("m", 1)
    assert found.model_spec.signature_name == "serving_default"
    for name, array in expected.items():
        np.testing.assert_array_equal(tf.make_ndarray(found.outputs[name]), array)
    # Where much of TensorFlow Serving's clients' code looks for them.
    assert list(found.outputs["scores"].float_val) == expected["scores"].ravel().tolist()
    assert list(found.outputs["items"].int64_val) == expected["items"].ravel().tolist()


@pytest.mark.parametrize("version", [{}, {"version": 1}, {"label": "stable"}])
def test_a_version_is_chosen_by_number_by_label_or_not_at_all(stub, model, version):
    inputs = rank_inputs(rows=2, wide=4)
    found = stub.Predict(asked(inputs, "rank", **version), 20)
    expected = model.predict("rank", inputs, 2)["scores"]
    np.testing.assert_array_equal(tf.make_ndarray(found.outputs["scores"]), expected)


def test_only_the_outputs_asked_for_come(stub):
    request = asked(retrieve_inputs())
    request.output_filter.append("scores")
    assert list(stub.Predict(request, 20).outputs) == ["scores"]
    request.output_filter.append("sores")
    assert code(lambda: stub.Predict(request, 20))[0] is grpc.StatusCode.INVALID_ARGUMENT


def changed(**given):
    return retrieve_inputs() | given


def first_float() -> str:
    return next(n for n, a in retrieve_inputs().items() if a.dtype == np.float32)


def with_nan():
    name = first_float()
    return changed(**{name: np.full_like(retrieve_inputs()[name], np.nan)})


@pytest.mark.parametrize(
    ("request_of", "status", "told"),
    [
        (lambda: asked(changed(k=np.float32(3))), "INVALID_ARGUMENT", "float32 [], expected int32"),
        (
            lambda: asked(changed(k=np.int32(501))),
            "INVALID_ARGUMENT",
            "k must be between 1 and 500",
        ),
        (lambda: asked(changed(k=np.float64(3))), "INVALID_ARGUMENT", "'k' is float64"),
        (lambda: asked(changed(k=np.array("3"))), "INVALID_ARGUMENT", "'k' is string"),
        (
            lambda: asked(changed(exclude=np.zeros(2, np.int64))),
            "INVALID_ARGUMENT",
            "expected int64",
        ),
        (lambda: asked(with_nan()), "INVALID_ARGUMENT", "NaN or infinity"),
        (lambda: asked(rank_inputs(wide=3), "serving_default"), "INVALID_ARGUMENT", "is missing"),
        (lambda: asked(retrieve_inputs(), "rnak"), "NOT_FOUND", "no signature 'rnak'"),
        (lambda: asked(retrieve_inputs(), version=9), "NOT_FOUND", "no version 9"),
        (lambda: asked(retrieve_inputs(), label="canary"), "NOT_FOUND", "label 'canary'"),
        (lambda: asked(retrieve_inputs(), name="other"), "NOT_FOUND", "no model 'other'"),
        (lambda: asked({}), "INVALID_ARGUMENT", "is missing"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_with_what_was_expected(stub, request_of, status, told):
    found, message = code(lambda: stub.Predict(request_of(), 20))
    assert (found.name, told in message) == (status, True), message
    goes_on(stub)


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,), (1, 0)])
def test_tensors_come_as_they_were_sent(dtype, shape):
    sent = np.arange(-1, np.prod(shape, dtype=int) - 1).astype(dtype).reshape(shape)
    for proto in (tf.make_tensor_proto(sent), tf.make_tensor_proto(sent.tolist(), dtype, shape)):
        found = arrays({"a": proto}, 100)["a"]
        assert (found.dtype, found.shape) == (sent.dtype, sent.shape)
        assert found.tolist() == sent.tolist()


def test_one_value_may_stand_for_all():
    proto = tf.make_tensor_proto(7, "int64", [2, 2])
    assert len(proto.int64_val) == 1
    assert arrays({"a": proto}, 100)["a"].tolist() == [[7, 7], [7, 7]]


def claiming(dims: list[int], **content) -> predict_pb2.PredictRequest:
    """A tensor that claims a shape."""
    request = asked(retrieve_inputs())
    proto = request.inputs["exclude"]
    proto.Clear()
    proto.dtype = tf.int64.as_datatype_enum
    for size in dims:
        proto.tensor_shape.dim.add(size=size)
    proto.MergeFrom(type(proto)(**content))
    return request


@pytest.mark.parametrize(
    ("request_of", "told"),
    [
        (lambda: claiming([10**6, 10**6], int64_val=[1]), "more than 50000 values"),
        (lambda: claiming([2**62, 2**62, 0], int64_val=[1]), "malformed tensor"),
        (lambda: claiming([-1, 1], int64_val=[1]), "no full shape"),
        (lambda: claiming([2, 1], tensor_content=b"123"), "malformed tensor"),
        (lambda: claiming([2, 1], int64_val=[1, 2, 3]), "malformed tensor"),
    ],
)
def test_a_tensor_that_claims_more_than_it_holds_costs_no_memory(stub, request_of, told):
    status, message = code(lambda: stub.Predict(request_of(), 20))
    assert (status.name, told in message) == ("INVALID_ARGUMENT", True), message
    goes_on(stub)


def test_a_message_over_the_limit_is_refused(stub):
    big = asked(changed(exclude=np.zeros((2, 100_000), np.int64)))
    assert code(lambda: stub.Predict(big, 20))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    goes_on(stub)


def test_malformed_messages_and_frames_do_no_harm(api, channel, stub):
    raw = channel.unary_unary(f"/{PREDICTION}/Predict")
    assert code(lambda: raw(b"\xff\xff\xff", timeout=20))[0] is grpc.StatusCode.INVALID_ARGUMENT
    for garbage in (b"\x00" * 500, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500, b"GET /"):
        with socket.create_connection(("127.0.0.1", api.network.grpc_port), 20) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    goes_on(stub)


def test_a_method_that_is_not_served_is_told(stub):
    call = classification_pb2.ClassificationRequest()
    assert code(lambda: stub.Classify(call, 20))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_metadata_has_the_signatures(stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "m"
    found = stub.GetModelMetadata(request, 20)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert found.metadata["signature_def"].Unpack(signatures)
    k = signatures.signature_def["serving_default"].inputs["k"]
    assert (k.dtype, len(k.tensor_shape.dim)) == (tf.int32.as_datatype_enum, 0)
    candidates = signatures.signature_def["rank"].inputs["candidates"]
    assert [dim.size for dim in candidates.tensor_shape.dim] == [-1, -1]
    request.metadata_field[0] = "assets"
    assert code(lambda: stub.GetModelMetadata(request, 20))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_status_says_which_version_is_there(channel):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "m"
    (one,) = stub.GetModelStatus(request, 20).model_version_status
    assert (one.version, one.state) == (1, one.AVAILABLE)
    request.model_spec.version.value = 5
    assert code(lambda: stub.GetModelStatus(request, 20))[0] is grpc.StatusCode.NOT_FOUND


def test_health_and_reflection_are_there(channel, eventually):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", PREDICTION):
        check = health_pb2.HealthCheckRequest(service=service)
        eventually(lambda check=check: health.Check(check, timeout=20).status == 1)
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {PREDICTION, "tensorflow.serving.ModelService", "grpc.health.v1.Health"} <= set(services)


def test_health_says_that_no_model_serves(eventually):
    with (
        served(None, Setup(grpc=GrpcOptions())) as api,
        grpc.insecure_channel(f"127.0.0.1:{api.network.grpc_port}") as channel,
    ):
        check = health_pb2.HealthCheckRequest(service=PREDICTION)
        stub = health_pb2_grpc.HealthStub(channel)
        eventually(lambda: stub.Check(check, timeout=20).status == 2)


def test_calls_of_both_protocols_share_model_calls(api, stub, model):
    def over_grpc(n: int) -> bool:
        inputs = retrieve_inputs(rows=1 + n % 2)
        expected = model.predict("serving_default", inputs, 1 + n % 2)["items"]
        found = tf.make_ndarray(stub.Predict(asked(inputs), 20).outputs["items"])
        return bool((found == expected).all())

    before = api.world.metrics.value("network.tensor_rows")
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(over_grpc, range(200)))
    assert api.world.metrics.value("network.tensor_rows") - before < 200
    assert api.world.metrics.value("network.requests", protocol="grpc", route="predict", code="ok")


def test_a_caller_who_gives_up_is_noted_and_others_go_on(api, stub, eventually):
    value = api.world.metrics.value
    before = value("network.refused", protocol="grpc", reason="timeout")
    with api.world.live._changed:  # no model call can start
        call = stub.Predict.future(asked(retrieve_inputs()), 0.2)
        assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: value("network.refused", protocol="grpc", reason="timeout") == before + 1)
    goes_on(stub)


def test_a_token_is_asked_for(model, tmp_path):
    issuer = Issuer(tmp_path)
    with (
        served(model, Setup(grpc=GrpcOptions(), rules=issuer.rules())) as api,
        grpc.insecure_channel(f"127.0.0.1:{api.network.grpc_port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = asked(retrieve_inputs())

        def call(**claims):
            bearer = [("authorization", issuer.bearer(**claims))] if claims else []
            return stub.Predict(request, 20, metadata=bearer)

        assert call(scope="predict").outputs
        assert code(call)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert code(lambda: call(exp=1000))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert code(lambda: call(scope="events"))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), 20)


def test_a_taken_port_is_told_at_start(api):
    taken = Setup(grpc=GrpcOptions(port=api.network.grpc_port))
    with pytest.raises(Misconfigured, match="cannot serve gRPC on"), served(None, taken):
        pass


def test_a_callers_trace_goes_through_a_predict_call(model):
    tracer, caller = MemoryTracer(), "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    with (
        served(model, Setup(grpc=LARGE, tracer=tracer)) as api,
        grpc.insecure_channel(f"127.0.0.1:{api.network.grpc_port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        traced = [("traceparent", caller)]
        _, call = stub.Predict.with_call(asked(retrieve_inputs()), 30, metadata=traced)
        with pytest.raises(grpc.RpcError):
            stub.Predict(asked(retrieve_inputs(), name="other"), 30, metadata=traced)
    predicted, below, refused = tracer.spans
    assert (predicted.name, predicted.kind) == (f"{PREDICTION}/Predict", Kind.SERVER)
    assert predicted.parent.span_id == "cd" * 8
    assert (below.name, below.parent) == ("predict", predicted.context)
    codes = [span.attributes["rpc.response.status_code"] for span in (predicted, refused)]
    assert codes == ["OK", "NOT_FOUND"]
    assert dict(call.trailing_metadata())["traceresponse"] == predicted.context.traceparent
    metrics = api.world.metrics
    exemplars = metrics.exemplars("network.latency_s", protocol="grpc", route="predict")
    assert exemplars == ["ab" * 16] * 2
