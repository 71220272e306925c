"""
The stored form of a row's history: three bytes an interaction, its item, and what is seldom there.

A row with h interactions has h + 1 entries of 3 bytes, the first of them for `first seen`:

    0-3   event type
    4-5   bytes of the value / 2
    6     the item is that of the interaction before
    7     far: the time has 32 bits
    8-23  time to the next entry, ms; the newest one's to `last seen`

Of far times, 2**31 ms are added so that those before the next entry, too, are positive; the upper
half follows in a list of its own. Those that do not fit (24.8 days) are all ones, and follow in 6
bytes. Behind the entries come upper halves, long times, values (the upper half, and the lower one
unless it is 0), and 8 bytes for every item that differs from the one before.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.ragged import lengths_of, sums
from features.stored import Bytes, Part, Unsealed
from features.tiles import TYPES
from schemas.compiled import compiled, filled, given

_ENTRY_BYTES: Final = 3
_TIME_BYTES: Final = 6
_NEAR: Final = 1 << 16  # ms
_BIAS: Final = 1 << 31
_MARK: Final = (1 << 32) - 1
_SIGN: Final = 1 << 8 * _TIME_BYTES - 1

_VALUE_SHIFT, _SAME_SHIFT, _TIME_SHIFT, _HALF_SHIFT = 4, 6, 8, 16
_FAR_BIT, _CODE_BITS = 0x80, 0xFF
_FAR: Final = np.uint32(_FAR_BIT)
_HALF: Final = np.uint32(0xFFFF)
_NO_VALUE: Final = int(np.array(np.nan, np.float32).view(np.uint32))


class History(NamedTuple):
    """Interactions of n rows, oldest first; row i owns `splits[i]:splits[i + 1]`."""

    splits: NDArray[np.int64]  # [n + 1]
    item: NDArray[np.uint64]
    time_ms: NDArray[np.int64]
    event_type: NDArray[np.uint8]
    value: NDArray[np.float32]


def parts_of(
    history: History, first_ms: NDArray[np.int64], last_ms: NDArray[np.int64]
) -> tuple[Part, ...]:
    """
    The parts of histories between first and last seen [n].

    Raises:
        ValueError: an event type or a time that no event has.
    """
    if history.event_type.max(initial=0) >= TYPES:
        raise ValueError(f"event types must be below {TYPES}, got {history.event_type.max()}")
    entries = _entries(history.splits)
    first = _firsts(entries)
    steps = _steps(history.time_ms, first, entries, first_ms, last_ms)
    far = steps.view(np.uint64) >= np.uint64(_NEAR)
    at = np.flatnonzero(far)
    told = np.minimum((steps[at] + _BIAS).view(np.uint64), np.uint64(_MARK)).astype(np.uint32)
    count, halves = _halved(history.value)
    fresh = _fresh(history)
    words = steps.astype(np.uint32)
    words[at] = told & _HALF
    words <<= np.uint32(_TIME_SHIFT)
    words[at] |= _FAR
    same = (~fresh).astype(np.uint8)
    words[~first] |= history.event_type | count << _VALUE_SHIFT | same << _SAME_SHIFT
    long = at[told == _MARK]
    return (
        Part(words, lengths_of(entries), _ENTRY_BYTES),
        Part((told >> np.uint32(_HALF_SHIFT)).astype(np.uint16), sums(far, entries), 2),
        Part(_six_bytes(steps[long]), _counts(long, entries), _TIME_BYTES),
        Part(halves, sums(count, history.splits), 2),
        Part(history.item[fresh], sums(fresh, history.splits), 8),
    )


def read(
    values: Unsealed, splits: NDArray[np.int64], last_ms: NDArray[np.int64]
) -> tuple[NDArray[np.int64], History]:
    """First seen [n], and the histories of which each row has so many, from the next parts."""
    first_ms, h = np.empty(len(last_ms), np.int64), int(splits[-1])
    time_ms, codes = np.empty(h, np.int64), np.empty(h, np.uint8)
    _read_times(values.data, values.at, splits, last_ms, first_ms, time_ms, codes)
    bits, item = np.empty(h, np.uint32), np.empty(h, np.uint64)
    _read_values(values.data, values.at, splits, codes, bits, item)
    history = History(splits, item, time_ms, codes & np.uint8(TYPES - 1), bits.view(np.float32))
    return first_ms, history


_OF_ROWS: Final = (given("uint8"), filled("int64"), given("int64"))  # data, at, splits


@compiled(given("uint8"), "int64", "int64")
def _number(data: Bytes, place: int, size: int) -> Any:
    """`size` bytes, the lowest first."""
    if place + size > len(data):
        raise ValueError("a stored history is shorter than it says")
    found = np.int64(0)
    for at in range(size):
        found |= np.int64(data[place + at]) << 8 * at
    return found


@compiled(given("uint8"), "int64", "int64")
def _far(data: Bytes, place: int, entries: int) -> int:
    """How many of these entries have an upper half."""
    found = 0
    for e in range(entries):
        found += _number(data, place + _ENTRY_BYTES * e, _ENTRY_BYTES) & _FAR_BIT != 0
    return found


@compiled(*_OF_ROWS, given("int64"), filled("int64"), filled("int64"), filled("uint8"))
def _read_times(
    data: Bytes,
    places: NDArray[np.int64],
    splits: NDArray[np.int64],
    last_ms: NDArray[np.int64],
    first_ms: NDArray[np.int64],
    time_ms: NDArray[np.int64],
    codes: NDArray[np.uint8],
) -> None:
    """Read entries, upper halves and long times: fills in times, and what codes say beside them."""
    for i in range(len(last_ms)):
        start, length = splits[i], splits[i + 1] - splits[i]
        halves = places[i] + _ENTRY_BYTES * (length + 1)
        longs = halves + 2 * _far(data, places[i], length + 1)
        steps = np.empty(length + 1, np.int64)
        for e in range(length + 1):
            word = _number(data, places[i] + _ENTRY_BYTES * e, _ENTRY_BYTES)
            step = word >> _TIME_SHIFT
            if word & _FAR_BIT:
                step |= _number(data, halves, 2) << _HALF_SHIFT
                halves += 2
                if step == _MARK:
                    step = (_number(data, longs, _TIME_BYTES) ^ _SIGN) - _SIGN
                    longs += _TIME_BYTES
                else:
                    step -= _BIAS
            steps[e] = step
            if e > 0:
                codes[start + e - 1] = word & _CODE_BITS
        following = last_ms[i]
        for e in range(length, 0, -1):
            following -= steps[e]
            time_ms[start + e - 1] = following
        first_ms[i] = following - steps[0]
        places[i] = longs


@compiled(*_OF_ROWS, given("uint8"), filled("uint32"), filled("uint64"))
def _read_values(
    data: Bytes,
    places: NDArray[np.int64],
    splits: NDArray[np.int64],
    codes: NDArray[np.uint8],
    bits: NDArray[np.uint32],
    item: NDArray[np.uint64],
) -> None:
    """Read values and items: fills in the bits of the values, and the items."""
    for i in range(len(places)):
        place = places[i]
        for e in range(splits[i], splits[i + 1]):
            halves = (codes[e] >> _VALUE_SHIFT) & 3
            found = _NO_VALUE
            if halves > 0:
                found = _number(data, place, 2) << _HALF_SHIFT
                place += 2
            if halves > 1:
                found |= _number(data, place, 2)
                place += 2
            bits[e] = found
        last = np.uint64(0)
        for e in range(splits[i], splits[i + 1]):
            if codes[e] >> _SAME_SHIFT & 1 == 0:
                last = np.uint64(_number(data, place, 8))
                place += 8
            item[e] = last
        places[i] = place


def _entries(splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Splits of the entries: one more a row than it has interactions."""
    return splits + np.arange(len(splits))


def _firsts(entries: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which entries are for first seen."""
    first = np.zeros(int(entries[-1]), np.bool_)
    first[entries[:-1]] = True
    return first


def _steps(
    time_ms: NDArray[np.int64],
    first: NDArray[np.bool_],
    entries: NDArray[np.int64],
    first_ms: NDArray[np.int64],
    last_ms: NDArray[np.int64],
) -> NDArray[np.int64]:
    """From every entry's time to the next one's; from the newest one's to last seen."""
    times = np.empty(len(first), np.int64)
    times[first], times[~first] = first_ms, time_ms
    following = np.empty(len(first), np.int64)
    following[:-1] = times[1:]
    following[entries[1:] - 1] = last_ms
    return following - times


def _counts(places: NDArray[np.int64], splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of these few ascending places lie in each row."""
    return lengths_of(np.searchsorted(places, splits))


def _six_bytes(steps: NDArray[np.int64]) -> NDArray[np.uint64]:
    if len(steps) and not -_SIGN <= steps.min() <= steps.max() < _SIGN:
        raise ValueError(f"{steps.min()} to {steps.max()} ms lie between two events")
    return (steps & (2 * _SIGN - 1)).astype(np.uint64)


def _fresh(history: History) -> NDArray[np.bool_]:
    """Which interactions are with another item than the one before in their row."""
    fresh = np.ones(len(history.item), np.bool_)
    fresh[1:] = history.item[1:] != history.item[:-1]
    begins, ends = history.splits[:-1], history.splits[1:]
    fresh[begins[ends > begins]] = True
    return fresh


def _halved(value: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """How many halves each value has (none if NaN), and all halves, upper ones first."""
    count = np.zeros(len(value), np.uint8)
    some = np.flatnonzero(~np.isnan(value))
    bits = value[some].view(np.uint32)
    pairs = np.stack([bits >> np.uint32(_HALF_SHIFT), bits & _HALF], axis=1).astype(np.uint16)
    told = pairs != 0
    told[:, 0] = True
    count[some] = told.sum(axis=1)
    return count, pairs[told]
