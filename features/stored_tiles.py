"""
The stored form of tiles, in rows and in partials: mostly a byte a tile.

Within a row and span, a tile's key is told by its distance to the next one's; the newest one's by
its distance to the last key that the row's newest event time allows. Four times the distance, plus
the count less 1 if that is below 3, else plus 3: that is the tile's step. Larger counts follow.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from features import escapes
from features.escapes import Widths
from features.ragged import lengths_of, owners, splits_of, suffix_sums, sums
from features.stored import Part, Unsealed
from features.tiles import SPANS, Tiles, newest_key, span_of

_STEP: Final = Widths(short=1, long=4)  # 3.9 days or hours
_COUNT: Final = Widths(short=1, long=6)
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
    group = _groups(lengths)
    splits = group[::SPANS]
    steps = escapes.read(values, splits, _STEP)
    count = (steps & (_MANY - 1)).astype(np.uint32) + np.uint32(1)
    many = count == _MANY
    told = escapes.read(values, splits_of(sums(many, splits)), _COUNT)
    count[many] = told + _MANY
    key = np.repeat(_upto(newest_ms), lengths_of(group)) - suffix_sums(steps >> _COUNT_BITS, group)
    return Tiles(splits, key.astype(np.uint32), count)


def _groups(lengths: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Splits of the rows' spans, [n * SPANS + 1]."""
    mask = (np.uint64(1) << _SPAN_BITS) - np.uint64(1)
    return splits_of(((lengths[:, None] >> _SPAN_SHIFTS) & mask).astype(np.int64).reshape(-1))


def _upto(newest_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest key that each span of each row may have, [n * SPANS]."""
    return newest_key(newest_ms).T.reshape(-1)
