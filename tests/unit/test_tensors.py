"""Calls of a model's signatures: what fits, what shares a model call, whose the outputs are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.tensors import (
    Signature,
    TensorCall,
    TensorLimits,
    TensorSpec,
    checked,
    divided,
    grouped,
    merged,
    signature_of,
)
from schemas.errors import NotServed, Reason, Rejected

RANK = Signature(
    inputs={
        "age": TensorSpec(dtype="int64", shape=(None,)),
        "taste": TensorSpec(dtype="float32", shape=(None, 3)),
        "price": TensorSpec(dtype="float32", shape=(None,), lead="pairs"),
        "candidates": TensorSpec(dtype="int64", shape=(None, None)),
    },
    outputs={"scores": TensorSpec(dtype="float32", shape=(None, None))},
)
RETRIEVE = Signature(
    inputs={
        "age": TensorSpec(dtype="int64", shape=(None,)),
        "k": TensorSpec(dtype="int32", shape=(), lead="none"),
    },
    outputs={},
)


def rank(rows: int = 2, wide: int = 4, **changed):
    inputs = {
        "age": np.arange(rows),
        "taste": np.zeros((rows, 3), np.float32),
        "price": np.zeros(rows * wide, np.float32),
        "candidates": np.ones((rows, wide), np.int64),
    }
    return {n: a for n, a in (inputs | changed).items() if a is not None}


def test_inputs_that_fit_are_taken_with_their_number_of_rows():
    assert checked(rank(3), RANK, TensorLimits())[1] == 3


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (rank(age=None), "input 'age' is missing"),
        (rank(extra=np.zeros(2)), "input 'extra' is not of this signature"),
        (rank(age=np.zeros(2, np.float32)), r"'age' is float32 \[2\], expected int64 \[-1\]"),
        (rank(taste=np.zeros((2, 4), np.float32)), r"expected float32 \[-1, 3\]"),
        (rank(taste=np.full((2, 3), np.nan, np.float32)), "'taste' holds NaN or infinity"),
        (rank(taste=np.full((2, 3), np.inf, np.float32)), "'taste' holds NaN or infinity"),
        (rank(age=np.arange(3)), "differ in their rows"),
        (rank(price=np.zeros(7, np.float32)), "7 values of 'price' for 2 x 4 candidates"),
        (rank(600), "600 rows: between 1 and 512"),
        (rank(0), "0 rows"),
        (rank(1, 10_000), "10000 candidates a row"),
        (rank(400, 4000), "at most 1000000 are taken"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_was_expected(inputs, told):
    with pytest.raises(Rejected, match=told):
        checked(inputs, RANK, TensorLimits())


@pytest.mark.parametrize("k", [0, -1, 501, 2**31 - 1])
def test_k_has_bounds(k):
    with pytest.raises(Rejected, match=f"between 1 and 500, got {k}"):
        checked({"age": np.arange(1), "k": np.array(k, np.int32)}, RETRIEVE, TensorLimits())


def test_all_problems_are_told_at_once():
    inputs = rank(age=np.zeros(2, np.float32), taste=np.full((2, 3), np.nan, np.float32))
    with pytest.raises(Rejected) as told:
        checked(inputs, RANK, TensorLimits())
    assert told.value.reason is Reason.OUT_OF_RANGE
    assert "'age'" in told.value.detail
    assert "'taste'" in told.value.detail


def test_an_unknown_signature_is_told_with_those_there_are():
    with pytest.raises(NotServed, match="no signature 'rnak': there are rank, serving_default"):
        signature_of({"rank": RANK, "serving_default": RETRIEVE}, "rnak")


def call(rows: int, k: int, version: int = 1) -> TensorCall:
    inputs = {"age": np.arange(rows), "k": np.array(k, np.int32)}
    return TensorCall(
        version=version, signature="serving_default", spec=RETRIEVE, inputs=inputs, rows=rows
    )


def test_calls_that_differ_in_more_than_rows_are_made_apart():
    calls = [call(1, 5), call(2, 6), call(3, 5), call(1, 5, version=2)]
    assert grouped(calls, 512) == [[0, 2], [1], [3]]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_every_call_gets_the_outputs_of_its_own_rows(given_calls, max_rows):
    calls = [call(rows, k) for rows, k in given_calls]
    seen: dict[int, list[int]] = {}
    for group in grouped(calls, max_rows):
        part = [calls[at] for at in group]
        assert len(group) == 1 or sum(c.rows for c in part) <= max_rows
        inputs = merged(part, TensorLimits())
        outputs = {"twice": 2 * inputs["age"] + inputs["k"]}
        for at, answer in zip(group, divided(outputs, [c.rows for c in part]), strict=True):
            seen[at] = answer["twice"].tolist()
    assert seen == {
        at: [2 * i + k for i in range(rows)] for at, (rows, k) in enumerate(given_calls)
    }
