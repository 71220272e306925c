"""Item aggregates: any order, any cut, any split over partitions gives the same counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.declare import DAY_MS, HOUR_MS, RowPolicy
from features.items import ItemTable, Partials, empty_partials, encode_partials, fold_partials
from schemas.events import ItemFeatures

FINGERPRINT = "0123456789abcdef"
NOW = 20_000 * DAY_MS
POLICY = RowPolicy(hour_tiles=4, day_tiles=3)
ITEMS = 3

events = st.lists(
    st.tuples(st.integers(0, ITEMS - 1), st.integers(0, 10), st.integers(-200, 0)), max_size=40
)


def folded(partials: Partials, given: list[tuple[int, int, int]]) -> Partials:
    return fold_partials(
        partials,
        np.array([item for item, _, _ in given], np.int64),
        np.array([kind for _, kind, _ in given], np.uint8),
        np.array([NOW + hour * HOUR_MS for _, _, hour in given], np.int64),
        POLICY,
    )


def stored(partials: Partials) -> list[bytes]:
    return encode_partials(partials, FINGERPRINT)


@settings(max_examples=200, deadline=None)
@given(given=events, data=st.data())
def test_neither_order_nor_cuts_change_a_partial(
    given: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    whole = folded(empty_partials(ITEMS), given)
    shuffled = data.draw(st.permutations(given))
    cut = data.draw(st.integers(0, len(given)))
    parts = folded(folded(empty_partials(ITEMS), shuffled[:cut]), shuffled[cut:])
    assert stored(parts) == stored(whole)


@settings(max_examples=100, deadline=None)
@given(
    given=events,
    partition=st.lists(st.integers(0, 2), min_size=40, max_size=40),
    order=st.permutations(range(3)),
)
def test_partitions_in_any_order_add_up_to_what_happened(
    given: list[tuple[int, int, int]], partition: list[int], order: list[int]
) -> None:
    table = ItemTable(FINGERPRINT)
    for p in order:
        mine = [e for e, where in zip(given, partition, strict=False) if where == p]
        partials = stored(folded(empty_partials(ITEMS), mine))
        table.put_partials(
            [
                ItemFeatures(
                    item_id=str(i),
                    partition=p,
                    fingerprint=FINGERPRINT,
                    events_offset=0,
                    partial=partial,
                )
                for i, partial in enumerate(partials)
            ]
        )
    index = np.array([table.by_id(str(i)) for i in range(ITEMS)])
    for kind in range(11):
        counted = table.window_counts(index, [kind], NOW)
        expected = [sum(e[:2] == (i, kind) for e in given) for i in range(ITEMS)]
        assert counted.tolist() == expected
