"""Hashes of whole columns are those of their texts one by one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from features.hashing import hash_ids
from features.text_columns import LEAST, hash_texts, texts_of, xxh64


@pytest.mark.parametrize("length", [*range(40), 63, 64, 65, 100, 513])
def test_a_matrix_of_bytes_hashes_as_the_library_does(length: int) -> None:
    rows = np.random.default_rng(length).integers(0, 256, (5, length), np.uint8)
    wanted = [xxhash.xxh64_intdigest(row.tobytes()) for row in rows]
    assert xxh64(rows).tolist() == wanted


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=40)), max_size=8),
    times=st.sampled_from([1, LEAST]),
    first=st.integers(0, 3),
)
def test_a_column_hashes_as_its_texts_one_by_one(
    texts: list[str | None], times: int, first: int
) -> None:
    column = pl.Series(texts * times, dtype=pl.String)[first:]  # a slice is a view
    assert hash_texts(column).tolist() == hash_ids(column.to_list()).tolist()


def test_lengths_are_in_bytes_whatever_chunks_a_column_has() -> None:
    column = pl.concat([pl.Series(["ä", None]), pl.Series(["", "abc"])])
    found = texts_of(column)
    assert found.lengths.tolist() == [2, 0, 0, 3]
    assert found.given is not None
    assert found.given.tolist() == [True, False, True, True]
