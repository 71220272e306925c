"""Rows of JSON: those of several calls read together are those of each call."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.rest_tensors import MAX_PLAIN, Rows, from_rows, plain
from inference.tensors import Signature, TensorCall, TensorLimits, TensorSpec, grouped, merged
from schemas.errors import Rejected

RANK = Signature(
    inputs={
        "age": TensorSpec(dtype="int64", shape=(None,)),
        "taste": TensorSpec(dtype="float32", shape=(None, 2)),
        "price": TensorSpec(dtype="float32", shape=(None,), lead="pairs"),
        "candidates": TensorSpec(dtype="int64", shape=(None, None)),
        "k": TensorSpec(dtype="int32", shape=(), lead="none"),
    },
    outputs={},
)
LIMITS = TensorLimits()


def row(age: object = 30, wide: int = 3, k: int = 5) -> dict[str, object]:
    return {
        "age": age,
        "taste": [0.5, 1],
        "price": [float(n) for n in range(wide)],
        "candidates": list(range(wide)),
        "k": k,
    }


def call(*rows: dict[str, object]) -> TensorCall:
    assert plain(rows, RANK)
    inputs = Rows(rows, RANK)
    return TensorCall(version=1, signature="rank", spec=RANK, inputs=inputs, rows=len(rows))


calls_of = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([5, 10])), min_size=1
)


@given(calls_of)
def test_what_is_read_together_is_what_each_call_brought(shapes):
    calls = [
        call(*(row(age=100 * at + n, wide=wide, k=k) for n in range(rows)))
        for at, (rows, wide, k) in enumerate(shapes)
    ]
    for group in grouped(calls, 512):
        part = [calls[at] for at in group]
        assert len({shapes[at][1:] for at in group}) == 1  # as wide, and the same k
        found = merged(part, LIMITS)
        alone = [from_rows(one.inputs.instances, RANK) for one in part]
        for name in ("age", "taste", "price", "candidates"):
            assert found[name].tolist() == np.concatenate([a[name] for a in alone]).tolist()
            assert found[name].dtype == alone[0][name].dtype
        assert found["k"] == alone[0]["k"]


def test_calls_of_the_same_kind_share_a_group():
    assert grouped([call(row(), row()), call(row(k=6)), call(row()), call(row(wide=4))], 512) == [
        [0, 2],
        [1],
        [3],
    ]


@pytest.mark.parametrize(
    "wrong",
    [row(age="thirty"), row(age=1e300), row(age=[1]), row(k=9999), {**row(), "taste": [1]}],
)
def test_a_call_that_does_not_fit_spoils_those_it_is_read_with(wrong):
    """Who made which is told by reading each by itself."""
    with pytest.raises(Rejected):
        merged([call(row()), call(wrong)], LIMITS)
    with pytest.raises(Rejected):
        merged([call(wrong)], LIMITS)
    assert merged([call(row())], LIMITS)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row()] * (MAX_PLAIN + 1),
        [1, 2],
        [{"age": 1}],
        [row(), {**row(), "more": 1}],
    ],
    ids=["none", "many", "bare", "missing", "more"],
)
def test_other_rows_are_not_read_together(rows):
    assert not plain(rows, RANK)
