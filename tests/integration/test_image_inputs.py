"""Images as tensors of bytes, over both protocols: checked before the graph decodes them."""

from __future__ import annotations

import base64
import struct

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from inference.api import ApiPolicy
from inference.listen import GrpcOptions
from inference.tensors import TensorLimits
from schemas.images import ImageLimits, check_image
from tests.network_world import Setup, served, tiny_model

pytestmark = pytest.mark.tf

PREDICT = "/v1/models/m:predict"
LIMITS = TensorLimits(
    image=ImageLimits(max_bytes=20_000, max_pixels=10_000),
    max_pixels=30_000,
    max_text_bytes=60_000,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = tiny_model(tmp_path_factory.mktemp("model") / "1")
    setup = Setup(grpc=GrpcOptions(), policy=ApiPolicy(tensors=LIMITS))
    with served(model, setup) as made:
        yield made


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.network.grpc_port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def picture(height: int, width: int) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3).astype(np.uint8)


def png(height: int = 5, width: int = 7) -> bytes:
    return tf.io.encode_png(picture(height, width)).numpy()


def jpeg(height: int = 5, width: int = 7) -> bytes:
    return tf.io.encode_jpeg(picture(height, width)).numpy()


def claiming(height: int, width: int) -> bytes:
    """A small file that says it is large: a decompression bomb."""
    whole = bytearray(png())
    whole[16:24] = struct.pack(">II", width, height)
    return bytes(whole)


def encoded(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def by_rest(server, *images: bytes):
    columns = {"image_bytes": [encoded(data) for data in images]}
    return server.post(PREDICT, {"signature_name": "measure", "inputs": columns})


def by_grpc(stub, *images: bytes, shape: list[int] | None = None):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.model_spec.signature_name = "measure"
    proto = request.inputs["image_bytes"]
    proto.dtype = tf.string.as_datatype_enum
    for size in shape or [len(images)]:
        proto.tensor_shape.dim.add(size=size)
    proto.string_val.extend(images)
    return stub.Predict(request, 20)


def test_images_are_decoded_by_the_model(server, stub):
    """Three of them, so that the batch is padded."""
    images = [png(), jpeg(), png(9, 2)]
    sizes = [[5, 7, 3], [5, 7, 3], [9, 2, 3]]
    answer = by_rest(server, *images)
    assert answer.status == 200, answer.body
    assert answer.json["outputs"]["sizes"] == sizes
    assert answer.json["outputs"]["given"] == [encoded(data) for data in images]
    found = by_grpc(stub, *images).outputs
    assert tf.make_ndarray(found["sizes"]).tolist() == sizes
    assert list(found["given"].string_val) == images


@pytest.mark.parametrize("named", [False, True])
def test_images_come_by_rows_as_well(server, named):
    rows = [{"image_bytes": encoded(png())} if named else encoded(png()) for _ in range(2)]
    answer = server.post(PREDICT, {"signature_name": "measure", "instances": rows})
    assert [row["sizes"] for row in answer.json["predictions"]] == [[5, 7, 3]] * 2


@pytest.mark.parametrize(
    ("image", "status", "told"),
    [
        (b"no image at all", 400, "number 1: no image: it begins with '6e 6f"),
        (b"", 400, "number 1: no image"),
        (png()[:20], 400, "number 1: an image/png that cannot be read"),
        (claiming(60_000, 60_000), 413, "60000 x 60000 pixels in 1 frames: at most 10000"),
        (claiming(0, 7), 400, "at least one pixel is expected"),
        (png() + bytes(20_000), 413, "at most 20000 are taken"),
    ],
)
def test_an_image_that_must_not_be_decoded_is_refused(server, stub, image, status, told):
    answer = by_rest(server, png(), image)
    assert (answer.status, told in answer.json["error"]) == (status, True), answer.body
    with pytest.raises(grpc.RpcError) as refused:
        by_grpc(stub, png(), image)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert told in refused.value.details()
    assert by_rest(server, png()).status == 200


def test_an_image_whose_header_is_fine_and_whose_rest_is_not_is_the_callers_fault(server):
    broken = png()[:40] + bytes(100)
    assert check_image(broken, None, LIMITS.image).width == 7
    answer = by_rest(server, broken)
    assert (answer.status, "measure" in answer.json["error"]) == (400, True)
    assert by_rest(server, png()).status == 200


def test_pixels_of_all_images_together_are_bounded(server):
    answer = by_rest(server, *[claiming(100, 99)] * 4)
    assert (answer.status, "39600 pixels in all images" in answer.json["error"]) == (413, True)


def test_one_image_said_to_stand_in_many_places_counts_in_each(stub):
    """As TensorFlow fills a tensor up with its last value: a message of one would become many."""
    large = png() + bytes(15_000)
    with pytest.raises(grpc.RpcError, match="bytes in all texts, at most 60000"):
        by_grpc(stub, large, shape=[400])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1], "no text and not"),
        ([None], "no text and not"),
        ([{"b64": "a", "c": 1}], "no text and not"),
        ([{"b64": 5}], "no text and not"),
        ([{"b64": "&&&&"}], "not base64"),
        ([{"b64": "abc"}], "not base64"),
        ([{"b64": "ü"}], "not base64"),
        ([["a"], ["b", "c"]], "differ in length"),
        ([["a"]], "is string [1, 1], expected string [-1]"),
        ("a", "is string [], expected string [-1]"),
        ([[[[[[[[[["a"]]]]]]]]]], "more than 8 dimensions"),
        (["a text"], "no image"),
    ],
)
def test_what_is_no_bytes_is_told_what_was_expected(server, value, told):
    body = {"signature_name": "measure", "inputs": {"image_bytes": value}}
    answer = server.post(PREDICT, body)
    assert (answer.status, told in answer.json["error"]) == (400, True), answer.body


def test_metadata_says_that_it_takes_strings(server):
    found = server.call("GET", "/v1/models/m/metadata").json["metadata"]["signature_def"]
    taken = found["signature_def"]["measure"]["inputs"]["image_bytes"]
    assert taken["dtype"] == "DT_STRING"
