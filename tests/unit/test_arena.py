"""Tiles of many items in one array: counted in place as they are when taken out."""

from __future__ import annotations

import numpy as np
import pytest

from features.arena import Arena
from features.tiles import DAY, HOUR, TOTAL, TYPES, Tiles, tile_key

KEYS = [
    [tile_key(TOTAL, 0, 3), tile_key(HOUR, 7, 0), tile_key(HOUR, 7, 15), tile_key(HOUR, 8, 0)],
    [tile_key(DAY, 1, 2)],
]


def filled(last: int) -> Arena:
    """Tiles of items 0 and `last`; no room for more items."""
    arena = Arena()
    arena.reserve(last + 1)
    splits = np.array([0, 4, 5])
    keys = np.array([key for one in KEYS for key in one], np.uint32)
    arena.put(np.array([0, last]), Tiles(splits, keys, np.arange(1, 6, dtype=np.uint32)))
    return arena


def test_keys_from_the_lowest_on_and_below_the_highest_are_counted() -> None:
    low = np.array([tile_key(HOUR, 7, 0), tile_key(HOUR, 7, 1), 0, tile_key(DAY, 1, 2)])
    high = np.array([tile_key(HOUR, 8, 0), tile_key(HOUR, 8, 1), TYPES, tile_key(DAY, 1, 3)])
    found = filled(63).view().counted(np.array([0, 0, 0, 63]), low[None], high[None])[:, 0]
    told = [{int(kind): int(row[kind]) for kind in np.flatnonzero(row)} for row in found]
    assert told == [{0: 2, 15: 3}, {0: 4, 15: 3}, {3: 1}, {2: 5}]


def test_of_an_unknown_item_there_are_none() -> None:
    every = np.zeros((1, 2), np.int64), np.full((1, 2), 2**32)
    found = filled(63).view().counted(np.array([-1, 63]), *every)
    assert found.sum(axis=(1, 2)).tolist() == [0, 5]


def test_an_item_that_there_cannot_be_is_refused() -> None:
    none = np.array([[0]])
    with pytest.raises(IndexError, match="there is no item 64 among 64"):
        filled(63).view().counted(np.array([64]), none, none)
