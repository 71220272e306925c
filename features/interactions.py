"""What the interactions of each history tell, in one pass: the newest, by type too; the session."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, filled, given

Places = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@compiled(
    given("int64"),
    given("uint64"),
    given("uint8"),
    given("int64"),
    given("float32"),
    filled("int64", 3),
    filled("float32", 2),
)
def newest(
    splits: Places,
    item: Hashes,
    event_type: NDArray[np.uint8],
    time_ms: Places,
    value: NDArray[np.float32],
    told: Places,
    values: NDArray[np.float32],
) -> None:
    """
    Fill in the newest interactions of each history, the very newest last.

    Args:
        splits: [n + 1] of the histories, oldest first.
        item, event_type, time_ms, value: [h]
        told: [3, n, length] zeros: items as int64, event types, times.
        values: [n, length] zeros: those that are infinite as the largest there are, none as 0.
    """
    length, largest = values.shape[1], np.finfo(np.float32).max
    for i in range(len(values)):
        behind = length - splits[i + 1]
        for h in range(max(splits[i], -behind), splits[i + 1]):
            at = behind + h
            told[0, i, at] = np.int64(item[h])
            told[1, i, at], told[2, i, at] = event_type[h], time_ms[h]
            if not np.isnan(value[h]):
                values[i, at] = min(max(value[h], -largest), largest)


@compiled(
    given("int64"),
    given("uint8"),
    given("uint64"),
    given("int64"),
    filled("uint64", 3),
    filled("int64", 2),
)
def last_by_type(
    splits: Places,
    event_type: NDArray[np.uint8],
    item: Hashes,
    time_ms: Places,
    items: Hashes,
    newest_ms: Places,
) -> None:
    """
    Fill in the last items of each type, newest last, and the newest time of each type.

    Args:
        splits: [n + 1] of the histories, oldest first.
        event_type, item, time_ms: [h]
        items: [n, types, r] zeros.
        newest_ms: [n, types] zeros.

    Raises:
        ValueError: an event type that is not one of `types`.
    """
    types, recent = items.shape[1:]
    told = np.zeros(types, np.int64)
    for i in range(len(items)):
        told[:] = 0
        for h in range(splits[i + 1] - 1, splits[i] - 1, -1):
            kind = event_type[h]
            if kind >= types:
                raise ValueError("a history has an event type that there is not")
            newest_ms[i, kind] = max(newest_ms[i, kind], time_ms[h])
            if told[kind] < recent:
                told[kind] += 1
                items[i, kind, recent - told[kind]] = item[h]


@compiled(
    given("int64"),
    given("uint64"),
    given("int64"),
    given("int64"),
    "int64",
    "int64",
    filled("int64", 2),
)
def sessions(
    splits: Places,
    item: Hashes,
    time_ms: Places,
    now_ms: Places,
    most: int,
    gap_ms: int,
    found: Places,
) -> None:
    """
    Fill in how many interactions have no gap after them, the earliest one's time, how many items.

    What follows the newest interaction is now.

    Args:
        splits: [n + 1] of the histories, oldest first; of each the last `most` count.
        item, time_ms: [h]
        now_ms: [n]
        gap_ms: more than that is a gap.
        found: [n, 3] is filled; the time is the largest number where there is no session.
    """
    for i in range(len(found)):
        later, first = now_ms[i], np.iinfo(np.int64).max
        stop = splits[i + 1]
        begin = stop
        while begin > max(splits[i], stop - most):
            time = time_ms[begin - 1]
            if time <= 0 or later - time > gap_ms:
                break
            first, later = min(first, time), time
            begin -= 1
        items = np.sort(item[begin:stop])
        distinct = 0
        for h in range(len(items)):
            distinct += h == 0 or items[h] != items[h - 1]
        found[i, 0], found[i, 1], found[i, 2] = stop - begin, first, distinct
