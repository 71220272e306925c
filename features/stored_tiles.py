"""
The stored form of tiles, in rows and in partials: mostly a byte a tile.

Within a row and span, a tile's key is told by its distance to the next one's; the newest one's by
its distance to the last key that the row's newest event time allows. Four times the distance, plus
the count less 1 if that is below 3, else plus 3: that is the tile's step. Larger counts follow.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features import escapes
from features.escapes import Widths
from features.ragged import owners, splits_of, sums
from features.stored import Bytes, Part, Unsealed
from features.tiles import SPANS, Tiles, newest_key, span_of
from schemas.compiled import compiled, filled, given

_STEP_BYTES, _COUNT_BYTES = 4, 6  # of those that do not fit into one
_ESCAPE: Final = 255
_STEP: Final = Widths(short=1, long=_STEP_BYTES)  # 3.9 days or hours
_COUNT: Final = Widths(short=1, long=_COUNT_BYTES)
_COUNT_BITS: Final = 2
_MANY: Final = 4  # the smallest count that follows

# Tiles of each span, in one word: 16 totals at most, 16,000 of days and of hours.
_SPAN_BITS: Final = np.array([5, 14, 14], np.uint64)
LENGTH_BITS: Final = int(_SPAN_BITS.sum())
_SPAN_SHIFTS: Final = np.array([0, 5, 19], np.uint64)


def packed_lengths(tiles: Tiles) -> NDArray[np.uint64]:
    """Tiles of each span, packed into the lower LENGTH_BITS, [n]."""
    n = len(tiles.splits) - 1
    group = owners(tiles.splits) * SPANS + span_of(tiles.key)
    sizes = np.bincount(group, minlength=n * SPANS).reshape(n, SPANS).astype(np.uint64)
    if (sizes >> _SPAN_BITS).any():
        raise ValueError(f"a row has too many tiles: {sizes.max(axis=0).tolist()} by span")
    return np.asarray((sizes << _SPAN_SHIFTS).sum(axis=1, dtype=np.uint64))


def parts_of(
    tiles: Tiles, lengths: NDArray[np.uint64], newest_ms: NDArray[np.int64]
) -> tuple[Part, ...]:
    """
    Steps and counts of tiles with these lengths (from `packed_lengths`).

    Raises:
        ValueError: a tile is newer than its row's newest event, or counts nothing.
    """
    group = _groups(lengths)
    key = tiles.key.astype(np.int64)
    following = np.empty(len(key), np.int64)
    following[:-1] = key[1:]
    some = group[1:] > group[:-1]
    following[group[1:][some] - 1] = _upto(newest_ms)[some]
    step = following - key
    if step.min(initial=0) < 0 or tiles.count.min(initial=1) < 1:
        raise ValueError("a tile is newer than its row's newest event, or counts nothing")
    step = (step << _COUNT_BITS) + np.minimum(tiles.count, _MANY) - 1
    many = tiles.count >= _MANY
    told = tiles.count[many].astype(np.int64) - _MANY
    counts = escapes.parts_of(told, splits_of(sums(many, tiles.splits)), _COUNT)
    return (*escapes.parts_of(step, tiles.splits, _STEP), *counts)


def read(values: Unsealed, lengths: NDArray[np.uint64], newest_ms: NDArray[np.int64]) -> Tiles:
    """The tiles, from the next parts of rows with these lengths."""
    groups = _groups(lengths)
    key, count = np.empty(int(groups[-1]), np.uint32), np.empty(int(groups[-1]), np.uint32)
    _read(values.data, values.at, groups, _upto(newest_ms), key, count)
    return Tiles(groups[::SPANS], key, count)


@compiled(given("uint8"), "int64")
def _check(data: Bytes, stop: int) -> None:
    if stop > len(data):
        raise ValueError("stored tiles are shorter than they say")


@compiled(given("uint8"), "int64", "int64")
def _number(data: Bytes, place: int, size: int) -> Any:
    """`size` bytes, the lowest first, in two's complement."""
    _check(data, place + size)
    found = np.int64(0)
    for at in range(size):
        found |= np.int64(data[place + at]) << 8 * at
    sign = 1 << 8 * size - 1
    return (found ^ sign) - sign


@compiled(given("int64"), "int64", filled("uint32"))
def _place(steps: NDArray[np.int64], upto: int, key: NDArray[np.uint32]) -> None:
    """Fill in the keys of a span, each before the next one."""
    following = upto
    for j in range(len(key) - 1, -1, -1):
        following -= steps[j] >> _COUNT_BITS
        key[j] = following


@compiled(
    given("uint8"),
    filled("int64"),
    given("int64"),
    given("int64"),
    filled("uint32"),
    filled("uint32"),
)
def _read(
    data: Bytes,
    places: NDArray[np.int64],
    groups: NDArray[np.int64],
    upto: NDArray[np.int64],
    key: NDArray[np.uint32],
    count: NDArray[np.uint32],
) -> None:
    """
    Read steps and counts: fills in keys and counts.

    Args:
        groups: [n * spans + 1] splits of the rows' spans.
        upto: [n * spans] the largest key of each.
    """
    spans = len(upto) // max(1, len(places))
    for i in range(len(places)):
        start, stop = groups[i * spans], groups[(i + 1) * spans]
        steps = np.empty(stop - start, np.int64)
        place, many = places[i] + len(steps), 0
        _check(data, place)
        for j in range(len(steps)):
            steps[j] = data[places[i] + j]
            if steps[j] == _ESCAPE:
                steps[j] = _number(data, place, _STEP_BYTES)
                place += _STEP_BYTES
            many += steps[j] & (_MANY - 1) == _MANY - 1
        longs = place + many
        _check(data, longs)
        for j in range(len(steps)):
            told = (steps[j] & (_MANY - 1)) + 1
            if told == _MANY:
                more = np.int64(data[place])
                place += 1
                if more == _ESCAPE:
                    more = _number(data, longs, _COUNT_BYTES)
                    longs += _COUNT_BYTES
                told += more
            count[start + j] = told
        for group in range(i * spans, (i + 1) * spans):
            begin, end = groups[group], groups[group + 1]
            _place(steps[begin - start : end - start], upto[group], key[begin:end])
        places[i] = longs


def _groups(lengths: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Splits of the rows' spans, [n * SPANS + 1]."""
    mask = (np.uint64(1) << _SPAN_BITS) - np.uint64(1)
    return splits_of(((lengths[:, None] >> _SPAN_SHIFTS) & mask).astype(np.int64).reshape(-1))


def _upto(newest_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest key that each span of each row may have, [n * SPANS]."""
    return newest_key(newest_ms).T.reshape(-1)
