"""Hash tables: what was put is found, what was not is not."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.hash_index import HashIndex, distinct

# Many of them want the same place of a table.
NAMES = st.one_of(st.integers(1, 2**64 - 1), st.integers(1, 40).map(lambda n: n << 40))


@settings(deadline=None)
@given(st.lists(st.lists(NAMES, max_size=30), max_size=6), st.lists(NAMES, max_size=20))
def test_places_as_a_dictionary_has_them(parts: list[list[int]], others: list[int]) -> None:
    index, known = HashIndex(), dict[int, int]()
    for part in parts:
        new = [name for name in dict.fromkeys(part) if name not in known]
        at = np.arange(len(known), len(known) + len(new))
        known |= dict(zip(new, at.tolist(), strict=True))
        index = index.with_added(np.array(new, np.uint64), at)
    asked = [*known, *others, 0]
    found = index.find(np.array(asked, np.uint64))
    assert found.tolist() == [known.get(name, -1) for name in asked]


def test_an_index_does_not_change_when_it_grows_by_many_and_by_few() -> None:
    names = np.random.default_rng(2).integers(1, 2**63, 30_000).astype(np.uint64)
    first = HashIndex().with_added(names[:20_000], np.arange(20_000))
    second = first
    for at in range(20_000, 30_000, 100):
        second = second.with_added(names[at : at + 100], np.arange(at, at + 100))
    assert second.find(names).tolist() == list(range(30_000))
    assert first.find(names).tolist() == [*range(20_000), *[-1] * 10_000]
    assert second.recent.count <= second.large.count // 16


@settings(deadline=None)
@given(st.lists(NAMES, max_size=60))
def test_distinct_names_in_the_order_of_their_first(names: list[int]) -> None:
    first, which = distinct(np.array(names, np.uint64))
    found = list(dict.fromkeys(names))
    assert [names[at] for at in first.tolist()] == found
    assert [found[at] for at in which.tolist()] == names
