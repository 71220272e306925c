"""Rows of JSON: those of several calls read together are those of each call."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.rest_rows import MAX_ROWS, Rows, reader_of
from inference.rest_tensors import from_rows
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


def read(rows: Sequence[object]) -> Rows | None:
    reader = reader_of(RANK)
    assert reader is not None
    return reader.read(msgspec.Raw(json.dumps(rows).encode()))


def call(*rows: dict[str, object]) -> TensorCall:
    inputs = read(rows)
    assert inputs is not None
    return TensorCall(version=1, signature="rank", spec=RANK, inputs=inputs, rows=len(rows))


calls_of = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([5, 10])), min_size=1
)


@given(calls_of)
def test_what_is_read_together_is_what_each_call_brought(shapes):
    sent = [
        [row(age=100 * at + n, wide=wide, k=k) for n in range(rows)]
        for at, (rows, wide, k) in enumerate(shapes)
    ]
    calls = [call(*rows) for rows in sent]
    for group in grouped(calls, 512):
        part = [calls[at] for at in group]
        assert len({shapes[at][1:] for at in group}) == 1  # as wide, and the same k
        found = merged(part, LIMITS)
        alone = [from_rows(sent[at], RANK) for at in group]
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
    [row(age=2**63), row(k=9999), row(k=2**31), {**row(), "taste": [1]}, {**row(), "price": [1]}],
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
        [row()] * (MAX_ROWS + 1),
        [1, 2],
        [{"age": 1}],
        [row(), {**row(), "more": 1}],
        [row(age="thirty")],
        [row(age=30.0)],
        [row(age=True)],
        [row(age=[1])],
        [{**row(), "taste": 1}],
        {"instances": []},
    ],
    ids=lambda rows: str(rows)[:30],
)
def test_other_rows_are_not_read_together(rows):
    assert read(rows) is None


def test_each_number_stands_in_its_own_column():
    specs = {
        name: TensorSpec(dtype=dtype, shape=(None,))
        for name, dtype in {
            **dict.fromkeys(("a", "c", "e"), "float32"),
            **dict.fromkeys(("b", "d", "f"), "int64"),
            **dict.fromkeys(("g", "h"), "int32"),
        }.items()
    }
    sent = [{name: 10 * row + at for at, name in enumerate(sorted(specs))} for row in range(3)]
    reader = reader_of(Signature(inputs=specs, outputs={}))
    assert reader is not None
    rows = reader.read(msgspec.Raw(json.dumps(sent).encode()))
    assert rows is not None
    for name, array in rows.read([]).items():
        assert array.dtype == specs[name].dtype
        assert array.tolist() == [row[name] for row in sent]


def test_rows_of_texts_are_not_read_together():
    specs = {"title": TensorSpec(dtype="string", shape=(None,))}
    assert reader_of(Signature(inputs=specs, outputs={})) is None
