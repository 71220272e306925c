"""Tensor messages of many calls, read together, are what each holds by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.tensors import Signature, TensorCall, TensorLimits, TensorSpec, merged
from schemas.errors import Rejected
from tests.drawn import DTYPES, numbers

pytestmark = pytest.mark.tf

FIELDS = {"int64": "int64_val", "int32": "int_val", "float32": "float_val"}
MAX = 10_000


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    """TensorFlow is imported before values are drawn: it takes random numbers, and long."""
    import inference.protos  # noqa: F401


def signature() -> Signature:
    """Inputs of all kinds."""
    specs = {f"plain_{dtype}": TensorSpec(dtype=dtype, shape=(None,)) for dtype in DTYPES}
    specs |= {f"wide_{dtype}": TensorSpec(dtype=dtype, shape=(None, 3)) for dtype in DTYPES}
    specs["open"] = TensorSpec(dtype="int64", shape=(None, None))
    specs["words"] = TensorSpec(dtype="string", shape=(None,))
    specs["pairs"] = TensorSpec(dtype="float32", shape=(None,), lead="pairs")
    specs["candidates"] = TensorSpec(dtype="int64", shape=(None, None))
    specs["k"] = TensorSpec(dtype="int32", shape=(), lead="none")
    return Signature(inputs=specs, outputs={})


SPEC = signature()


@st.composite
def batches(draw) -> list[dict[str, np.ndarray]]:
    """The inputs of some calls that can be made as one."""
    wide, open_to = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    calls = []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 3))
        shapes = {"open": (rows, open_to), "candidates": (rows, wide), "pairs": (rows * wide,)}
        call = {"k": np.asarray(7, np.int32)}
        call["words"] = np.array([draw(st.binary(max_size=3)) for _ in range(rows)], object)
        for name, spec in SPEC.inputs.items():
            if name not in call:
                shape = shapes.get(name, (rows, *spec.shape[1:]))
                call[name] = draw(numbers(spec.dtype, shape))
        calls.append(call)
    return calls


@st.composite
def written(draw, call: dict[str, np.ndarray]) -> Any:
    """A call's inputs as a client may write them: by TensorFlow, value by value, or by bytes."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    for name, array in call.items():
        message = tf.make_tensor_proto(array)
        if array.dtype != object and draw(st.booleans()):
            message.ClearField("tensor_content")
            message.ClearField(FIELDS[array.dtype.name])
            getattr(message, FIELDS[array.dtype.name]).extend(array.ravel().tolist())
        if draw(st.integers(0, 9)) == 0 and message.tensor_shape.dim:
            message.tensor_shape.dim[0].name = "rows"  # allowed, and of no interest
        request.inputs[name].CopyFrom(message)
    return request.inputs


def as_call(inputs: Any) -> TensorCall:
    from inference.protos import Tensors, gathers

    rows = gathers(inputs, SPEC)
    return TensorCall(
        version=1,
        signature="s",
        spec=SPEC,
        inputs=Tensors(inputs, SPEC, rows, MAX),
        rows=rows,
    )


@given(st.data())
def test_together_they_are_what_each_is(data) -> None:
    given_ = data.draw(batches())
    calls = [as_call(data.draw(written(call))) for call in given_]
    assert len({call.key() for call in calls}) == 1
    found = merged(calls, TensorLimits())
    for name, spec in SPEC.inputs.items():
        parts = [call[name] for call in given_]
        expected = parts[0] if spec.lead == "none" else np.concatenate(parts)
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def plain_call(rows: int) -> dict[str, np.ndarray]:
    shapes = {"open": (rows, 2), "candidates": (rows, 1), "pairs": (rows,), "k": ()}
    return {
        name: np.full(rows, b"a", object)
        if spec.dtype == "string"
        else np.ones(shapes.get(name, (rows, *spec.shape[1:])), spec.dtype)
        for name, spec in SPEC.inputs.items()
    }


def inputs_of(call: dict[str, np.ndarray]) -> Any:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    for name, array in call.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request.inputs


@pytest.mark.parametrize("name", ["plain_int64", "wide_float32", "open", "words", "pairs"])
def test_rows_of_one_call_never_pass_to_another(name: str) -> None:
    """One brings a row too many, the other one too few: together they would be right."""
    more, fewer = plain_call(2), plain_call(2)
    more[name], fewer[name] = np.concatenate([more[name]] * 2)[:3], fewer[name][:1]
    with pytest.raises(Rejected, match="rows"):
        merged([as_call(inputs_of(more)), as_call(inputs_of(fewer))], TensorLimits())


@pytest.mark.parametrize("way", ["short", "type", "shape"])
def test_a_malformed_one_is_told_as_it_is_alone(way: str) -> None:
    broken = inputs_of(plain_call(2))
    message = broken["wide_float32"]
    if way == "short":
        message.tensor_content = message.tensor_content[:-4]
    elif way == "type":
        message.dtype = 9  # int64, in values of another number of bytes
    else:
        message.tensor_shape.dim[1].size = 4
    alone = as_call(broken)
    with pytest.raises(Rejected) as told:
        merged([alone], TensorLimits())
    assert "wide_float32" in told.value.detail
    with pytest.raises(Rejected):
        merged([as_call(inputs_of(plain_call(1))), alone], TensorLimits())


def test_calls_that_cannot_be_gathered() -> None:
    from inference.protos import MAX_GATHERED, gathers

    assert gathers(inputs_of(plain_call(MAX_GATHERED)), SPEC) == MAX_GATHERED
    assert gathers(inputs_of(plain_call(MAX_GATHERED + 1)), SPEC) == 0
    missing = plain_call(1)
    del missing["k"]
    assert gathers(inputs_of(missing), SPEC) == 0
    assert gathers(inputs_of(plain_call(1) | {"more": np.ones(1)}), SPEC) == 0
    bare = inputs_of(plain_call(1))
    bare["plain_int64"].tensor_shape.ClearField("dim")
    assert gathers(bare, SPEC) == 0
