"""What histories tell in one pass; that features have it, `test_catalog.py` shows."""

from __future__ import annotations

import numpy as np
import pytest

from features.interactions import last_by_type, newest, sessions


def session(times: list[int], now_ms: int, most: int = 50, gap_ms: int = 10) -> list[int]:
    found = np.zeros((1, 3), np.int64)
    items = np.arange(1, len(times) + 1, dtype=np.uint64)
    splits, at = np.array([0, len(times)]), np.array(times, np.int64)
    sessions(splits, items, at, np.array([now_ms]), most, gap_ms, found)
    return found[0].tolist()


def test_a_session_goes_back_to_the_last_gap() -> None:
    assert session([100, 111, 121], 131) == [2, 111, 2]  # as long as a gap may be is none
    assert session([100, 111, 121], 132) == [0, np.iinfo(np.int64).max, 0]
    assert session([], 132) == [0, np.iinfo(np.int64).max, 0]


def test_only_the_last_interactions_of_a_history_are_looked_at() -> None:
    assert session([100, 101, 102], 103, most=2) == [2, 101, 2]


def test_an_event_type_that_there_is_not_is_refused() -> None:
    items, newest = np.zeros((1, 16, 5), np.uint64), np.zeros((1, 16), np.int64)
    one = np.array([1])
    kinds, ids = np.array([16], np.uint8), np.array([7], np.uint64)
    with pytest.raises(ValueError, match="event type that there is not"):
        last_by_type(np.array([0, 1]), kinds, ids, one, items, newest)


def test_the_newest_stand_at_the_end_and_what_is_no_number_is_none() -> None:
    splits, ids = np.array([0, 3, 3, 4]), np.array([7, 8, 9, 2**64 - 1], np.uint64)
    kinds, times = np.array([1, 2, 3, 4], np.uint8), np.array([10, 20, 30, 40])
    given = np.array([1, np.nan, np.inf, -np.inf], np.float32)
    told, values = np.zeros((3, 3, 2), np.int64), np.zeros((3, 2), np.float32)
    newest(splits, ids, kinds, times, given, told, values)
    items, types, at = told.tolist()
    assert items == [[8, 9], [0, 0], [0, -1]]
    assert types == [[2, 3], [0, 0], [0, 4]]
    assert at == [[20, 30], [0, 0], [0, 40]]
    largest = np.finfo(np.float32).max
    assert values.tolist() == [[0, largest], [0, 0], [0, -largest]]
