"""Affinities are what counting the tags one by one gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.affinity import affinities

# Few distinct tags, some of which meet in one slot of a hash table of any size.
TAGS = st.sampled_from([0, 0, 1, 2, 1 << 40, 1 << 41, 2**64 - 1])


@settings(deadline=None)
@given(data=st.data())
def test_shares_counted_one_by_one(data: st.DataObject) -> None:
    wide = data.draw(st.integers(1, 3))
    table = data.draw(st.lists(st.tuples(*[TAGS] * wide), min_size=1, max_size=6))
    places = st.integers(-1, len(table))  # unknown, known, and newer than the table
    histories = data.draw(
        st.lists(st.lists(st.tuples(places, st.booleans()), max_size=9), min_size=1, max_size=4)
    )
    candidates = data.draw(
        st.lists(st.tuples(st.integers(0, len(histories) - 1), places), max_size=12)
    )
    expected = []
    for whose, item in candidates:
        counted = [held for held, counts in histories[whose] if counts]
        known = [tag for held in counted if 0 <= held < len(table) for tag in table[held]]
        own = [tag for tag in table[item] if tag] if 0 <= item < len(table) else []
        shares = [known.count(tag) / max(1, len(counted)) for tag in own]
        expected.append(sum(shares) / max(1, len(own)))
    found = np.full(len(candidates), np.nan, np.float32)
    affinities(
        np.array(table, np.uint64),
        np.array([item for _, item in candidates], np.int64),
        np.array([whose for whose, _ in candidates], np.int64),
        np.cumsum([0, *map(len, histories)]),
        np.array([held for one in histories for held, _ in one], np.int64),
        np.array([counts for one in histories for _, counts in one], np.bool_),
        found,
    )
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
