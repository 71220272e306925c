"""Tensors over JSON: by rows and by columns, they are the arrays that were sent."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.rest_rows import reader_of
from inference.rest_tensors import from_columns, from_rows, to_columns, to_rows
from inference.tensors import Signature, TensorSpec
from schemas.errors import Rejected
from tests.drawn import DTYPES, numbers

SPECS = st.lists(
    st.tuples(
        st.sampled_from(DTYPES), st.sampled_from(("rows", "pairs", "none")), st.integers(0, 2)
    ),
    min_size=2,
    max_size=5,
)


@st.composite
def calls(draw):
    """A signature, its inputs, their rows and how many pairs a row has."""
    rows, wide = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    specs, inputs = {}, {}
    for at, (dtype, lead, more) in enumerate(draw(SPECS)):
        first = {"rows": (rows,), "pairs": (rows * wide,), "none": ()}[lead]
        tail = (2,) * more if lead != "none" else ()
        name = f"{lead}-{at}"
        specs[name] = TensorSpec(dtype=dtype, shape=(None,) * len(first + tail), lead=lead)
        inputs[name] = draw(numbers(dtype, first + tail))
    return Signature(inputs=specs, outputs={}), inputs, rows, wide


def over_json(value):
    return json.loads(json.dumps(value))


def assert_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(calls())
def test_columns_are_the_arrays(call):
    signature, inputs, _, _ = call
    sent = over_json({name: array.tolist() for name, array in inputs.items()})
    assert_equal(from_columns(sent, signature), inputs)


@given(calls())
def test_rows_are_the_arrays_cut_apart(call):
    signature, inputs, rows, wide = call
    cut = {}
    for name, array in inputs.items():
        lead = signature.inputs[name].lead
        if lead == "none":
            cut[name] = [array] * rows
        else:
            cut[name] = array if lead == "rows" else array.reshape(rows, wide, *array.shape[1:])
    sent = [{name: parts[row].tolist() for name, parts in cut.items()} for row in range(rows)]
    assert_equal(from_rows(over_json(sent), signature), inputs)
    plain = reader_of(signature).read(msgspec.Raw(json.dumps(sent).encode()))
    assert len(plain) == rows
    assert_equal(plain.read([]), inputs)


@given(st.integers(1, 5), st.integers(1, 3))
def test_answers_say_the_same_by_rows_and_by_columns(rows, outputs):
    given_outputs = {f"o{n}": np.arange(rows * 2).reshape(rows, 2) + n for n in range(outputs)}
    columns = json.loads(to_columns(given_outputs))["outputs"]
    predictions = json.loads(to_rows(given_outputs))["predictions"]
    if outputs == 1:
        assert predictions == columns
    else:
        assert [row["o1"] for row in predictions] == columns["o1"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(JSON)
def test_whatever_is_sent_becomes_arrays_or_is_refused(value):
    signature = Signature(
        inputs={
            "a": TensorSpec(dtype="int64", shape=(None,)),
            "b": TensorSpec(dtype="float32", shape=(None, 2), lead="pairs"),
            "c": TensorSpec(dtype="int32", shape=(), lead="none"),
        },
        outputs={},
    )
    for inputs in (value, {"a": value, "b": value, "c": value}):
        try:
            found = from_columns(inputs, signature)
            found |= from_rows([inputs, inputs], signature)
        except Rejected:
            continue
        assert all(isinstance(array, np.ndarray) for array in found.values())


def test_an_input_without_a_name_is_the_signature_s_only_one():
    one = Signature(inputs={"x": TensorSpec(dtype="float32", shape=(None,))}, outputs={})
    assert_equal(from_columns([1, 2.5], one), {"x": np.array([1, 2.5], np.float32)})
    assert_equal(from_rows([1, 2.5], one), {"x": np.array([1, 2.5], np.float32)})
    with pytest.raises(Rejected, match="no tensor"):
        from_columns([[1], [2, 3]], one)
