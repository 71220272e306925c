"""
Calls of Predict: read from their bytes, together, they are what each holds by itself, whatever the
bytes are; and answers written as bytes are the messages that they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.tensor_layout import MAX_GATHERED, Layout, Scanned, layout_of, spec_stop
from inference.tensors import Signature, TensorCall, TensorLimits, TensorSpec, merged
from schemas.errors import Rejected
from tests.drawn import DTYPES, numbers

pytestmark = pytest.mark.tf

FIELDS = {"int64": "int64_val", "int32": "int_val", "float32": "float_val"}
MAX = 10_000
OUTPUTS = (*DTYPES, "float64", "string")


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    """TensorFlow is imported before values are drawn: it takes random numbers, and long."""
    import inference.protos  # noqa: F401


def signature() -> Signature:
    """Inputs of all kinds."""
    specs = {f"plain_{dtype}": TensorSpec(dtype=dtype, shape=(None,)) for dtype in DTYPES}
    specs |= {f"wide_{dtype}": TensorSpec(dtype=dtype, shape=(None, 3)) for dtype in DTYPES}
    specs["open"] = TensorSpec(dtype="int64", shape=(None, None))
    specs["pairs"] = TensorSpec(dtype="float32", shape=(None,), lead="pairs")
    specs["candidates"] = TensorSpec(dtype="int64", shape=(None, None))
    specs["k"] = TensorSpec(dtype="int32", shape=(), lead="none")
    return Signature(inputs=specs, outputs={})


SPEC = signature()
LAYOUT = Layout(SPEC, MAX)


@st.composite
def batches(draw) -> list[dict[str, np.ndarray]]:
    """The inputs of some calls that can be made as one."""
    wide, open_to = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    calls = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 3))
        shapes = {"open": (rows, open_to), "candidates": (rows, wide), "pairs": (rows * wide,)}
        call = {"k": np.asarray(7, np.int32)}
        for name, spec in SPEC.inputs.items():
            if name not in call:
                shape = shapes.get(name, (rows, *spec.shape[1:]))
                call[name] = draw(numbers(spec.dtype, shape))
        calls.append(call)
    return calls


@st.composite
def written(draw, call: dict[str, np.ndarray]) -> bytes:
    """A call as a client may write it: by TensorFlow, value by value, or by bytes."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    for name, array in call.items():
        message = tf.make_tensor_proto(array)
        if array.dtype != object and draw(st.booleans()):
            message.ClearField("tensor_content")
            message.ClearField(FIELDS[array.dtype.name])
            getattr(message, FIELDS[array.dtype.name]).extend(array.ravel().tolist())
        request.inputs[name].CopyFrom(message)
    return bytes(request.SerializeToString())


def scanned(data: bytes) -> Scanned | None:
    return LAYOUT.scan(data, spec_stop(data))


def as_call(data: bytes) -> TensorCall:
    plain = scanned(data)
    assert plain is not None
    return TensorCall(version=1, signature="s", spec=SPEC, inputs=plain, rows=len(plain))


@given(st.data())
def test_together_they_are_what_each_is(data) -> None:
    drawn = data.draw(batches())
    calls = [as_call(data.draw(written(call))) for call in drawn]
    assert len({call.key() for call in calls}) == 1
    found = merged(calls, TensorLimits())
    for name, spec in SPEC.inputs.items():
        parts = [call[name] for call in drawn]
        expected = parts[0] if spec.lead == "none" else np.concatenate(parts)
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


@given(st.data())
def test_what_is_read_of_any_bytes_is_what_the_message_says(data) -> None:
    """Bytes changed, cut out, or doubled: it is not plain, or TensorFlow's messages agree."""
    from tensorflow_serving.apis import predict_pb2

    from inference.protos import arrays

    sent = bytearray(data.draw(written(data.draw(batches())[0])))
    start = spec_stop(bytes(sent))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(start, len(sent)))
        stop = data.draw(st.integers(at, min(len(sent), at + 12)))
        sent[at:stop] = data.draw(st.one_of(st.binary(max_size=12), st.just(sent[at:stop] * 2)))
    plain = LAYOUT.scan(bytes(sent), start)
    if plain is None:
        return
    expected = arrays(predict_pb2.PredictRequest.FromString(bytes(sent)).inputs, MAX)
    found = plain.read([])
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def plain_call(rows: int) -> dict[str, np.ndarray]:
    shapes = {"open": (rows, 2), "candidates": (rows, 1), "pairs": (rows,), "k": ()}
    return {
        name: np.ones(shapes.get(name, (rows, *spec.shape[1:])), spec.dtype)
        for name, spec in SPEC.inputs.items()
    }


def message_of(call: dict[str, np.ndarray]) -> Any:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    for name, array in call.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


def bytes_of(call: dict[str, np.ndarray]) -> bytes:
    return bytes(message_of(call).SerializeToString())


def test_pairs_of_one_call_never_pass_to_another() -> None:
    """One brings pairs too many, the other one too few: together they would be right."""
    more, fewer = plain_call(2), plain_call(2)
    more["pairs"], fewer["pairs"] = np.ones(4, np.float32), np.ones(0, np.float32)
    assert as_call(bytes_of(more)).key() != as_call(bytes_of(fewer)).key()
    with pytest.raises(Rejected, match="pairs"):
        merged([as_call(bytes_of(more))], TensorLimits())
    more["pairs"] = np.ones(3, np.float32)
    assert scanned(bytes_of(more)) is None


@pytest.mark.parametrize("name", ["plain_int64", "wide_float32", "open"])
def test_rows_that_differ_are_not_plain(name: str) -> None:
    call = plain_call(2)
    call[name] = call[name][:1]
    assert scanned(bytes_of(call)) is None


def test_what_is_not_plain() -> None:
    assert len(scanned(bytes_of(plain_call(MAX_GATHERED)))) == MAX_GATHERED
    assert scanned(bytes_of(plain_call(MAX_GATHERED + 1))) is None
    missing = plain_call(1)
    del missing["k"]
    assert scanned(bytes_of(missing)) is None
    assert scanned(bytes_of(plain_call(1) | {"more": np.ones(1)})) is None
    for change in (
        lambda message: message.inputs["plain_int64"].tensor_shape.ClearField("dim"),
        lambda message: message.inputs["plain_int64"].ClearField("tensor_shape"),
        lambda message: message.inputs["plain_int64"].ClearField("dtype"),
        lambda message: message.inputs["wide_float32"].tensor_shape.dim[0].__setattr__("name", "x"),
        lambda message: message.inputs["wide_float32"].__setattr__("tensor_content", b"1234" * 2),
        lambda message: message.inputs["wide_float32"].__setattr__("dtype", 9),
        lambda message: message.inputs["wide_float32"].tensor_shape.dim[1].__setattr__("size", 4),
        lambda message: message.output_filter.append("scores"),
    ):
        message = message_of(plain_call(1))
        change(message)
        assert scanned(bytes(message.SerializeToString())) is None
    assert scanned(bytes_of(plain_call(1))) is not None
    # 12 inputs of one row, and what one more may bring.
    few = Layout(SPEC, sum(array.size for array in plain_call(1).values()) - 1)
    data = bytes_of(plain_call(1))
    assert few.scan(data, spec_stop(data)) is None


def entry(name: str, tensor: bytes, more: bytes = b"") -> bytes:
    """An input as it stands in a message; all lengths are short."""
    text = name.encode()
    held = bytes([0x0A, len(text)]) + text + bytes([0x12, len(tensor)]) + tensor + more
    return bytes([0x12, len(held)]) + held


def tensor_of(number: int, sizes: Sequence[int], values: bytes) -> bytes:
    """A tensor of this type and shape; `values` with their tag and length."""
    dims = b"".join(bytes([0x12, 2, 0x08, size]) for size in sizes)
    return bytes([0x08, number, 0x12, len(dims)]) + dims + values


PLAIN = tensor_of(9, [1], bytes([0x52, 1, 7]))
FLOATS = bytes([0x22, 12]) + bytes(12)


@pytest.mark.parametrize(
    ("name", "written_so"),
    [
        ("plain_int64", entry("plain_int64", PLAIN) * 2),
        ("plain_int64", entry("plain_int64", PLAIN, bytes([0x0A, 1, 0x6B]))),  # another name, "k"
        ("plain_int64", entry("plain_int64", tensor_of(9, [1], bytes([0x52, 2, 7, 0x80])))),
        (
            "plain_int64",
            entry("plain_int64", tensor_of(9, [1], bytes([0x52, 12, *[0x80] * 11, 0]))),
        ),
        ("plain_int64", entry("plain_int64", tensor_of(9, [1, 1], bytes([0x52, 1, 7])))),
        ("plain_int64", entry("plain_int64", PLAIN + bytes([0x08, 9]))),  # its type, twice
        ("plain_int64", entry("plain_int64", PLAIN + bytes([0x52, 0]))),  # values, twice
        # Its values stand behind the tensor.
        ("plain_int64", entry("plain_int64", tensor_of(9, [1], b""), bytes([0x52, 1, 7]))),
        ("open", entry("open", tensor_of(9, [1], bytes([0x52, 1, 7])))),
        ("open", entry("plain_int64", PLAIN)),  # one input twice, and another one not at all
        (
            "wide_float32",
            entry("wide_float32", tensor_of(1, [1, 4], bytes([0x22, 16]) + bytes(16))),
        ),
        ("wide_float32", entry("wide_float32", tensor_of(1, [1, 3], FLOATS[:-1]))),
    ],
)
def test_bytes_that_say_something_else(name: str, written_so: bytes) -> None:
    rest = plain_call(1)
    del rest[name]
    good = {
        "plain_int64": PLAIN,
        "open": tensor_of(9, [1, 1], bytes([0x52, 1, 7])),
        "wide_float32": tensor_of(1, [1, 3], FLOATS),
    }
    assert scanned(bytes_of(rest) + entry(name, good[name])) is not None
    assert scanned(bytes_of(rest) + written_so) is None


def test_shapes_that_claim_more_than_any_message_holds() -> None:
    message = message_of(plain_call(1))
    message.inputs["open"].tensor_shape.dim[1].size = 2**62
    message.inputs["open"].tensor_content = b""
    assert scanned(bytes(message.SerializeToString())) is None


def test_calls_that_differ_in_what_stands_for_all_are_made_apart() -> None:
    one, other = plain_call(1), plain_call(1)
    other["k"] = np.asarray(2, np.int32)
    assert as_call(bytes_of(one)).key() != as_call(bytes_of(other)).key()
    wider = plain_call(1) | {"open": np.ones((1, 3), np.int64)}
    assert as_call(bytes_of(one)).key() != as_call(bytes_of(wider)).key()


def test_a_signature_with_texts_is_not_read_so() -> None:
    texts = Signature(inputs={"words": TensorSpec(dtype="string", shape=(None,))}, outputs={})
    assert layout_of(texts, MAX) is None
    assert layout_of(SPEC, MAX) is not None


@st.composite
def outputs(draw) -> dict[str, np.ndarray]:
    """What a model may give for one to three rows."""
    rows, found = draw(st.integers(1, 3)), {}
    for at in range(draw(st.integers(0, 3))):
        dtype, wide = draw(st.sampled_from(OUTPUTS)), draw(st.integers(0, 3))
        if dtype in DTYPES:
            array = draw(numbers(dtype, (rows, wide)))
        elif dtype == "string":
            array = np.full((rows, wide), draw(st.binary(max_size=3)), object)
        else:
            array = np.full((rows, wide), draw(st.floats(allow_nan=False)))
        found[draw(st.sampled_from(["scores", "items", "x" * 200])) + str(at)] = array
    return found


@given(outputs())
def test_an_answer_written_as_bytes_is_its_message(given_outputs) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    from inference.protos import model_spec
    from inference.reply_bytes import reply

    spec = model_spec("m", 300, "s")
    told = predict_pb2.PredictResponse.FromString(
        reply(bytes(spec.SerializeToString()), given_outputs)
    )
    assert told.model_spec == spec
    assert told.outputs.keys() == given_outputs.keys()
    for name, array in given_outputs.items():
        message = told.outputs[name]
        found = tf.make_ndarray(message)
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        np.testing.assert_array_equal(found, array)
        if array.size and array.dtype.name in FIELDS:  # where clients look for them
            assert list(getattr(message, FIELDS[array.dtype.name])) == array.ravel().tolist()
