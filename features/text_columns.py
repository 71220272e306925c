"""Columns of text as bytes: their lengths and the hashes of `features.hashing`, all at once."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from features.hashing import hash_bytes

# Below this the 60 NumPy calls of a length cost more than hashing one by one.
LEAST = 96

Hashes = NDArray[np.uint64]


class Texts(NamedTuple):
    """n texts in UTF-8: text i is `data[starts[i] : starts[i] + lengths[i]]`."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]  # [n]
    lengths: NDArray[np.int64]  # [n] 0 where there is none
    given: NDArray[np.bool_] | None  # [n] None: all of them


def texts_of(column: pl.Series) -> Texts:
    """
    The bytes of a column of strings.

    >>> texts_of(pl.Series(["ab", None, "c"])).lengths.tolist()
    [2, 0, 1]
    """
    # In the oldest layout: offsets into one buffer. 6 us, where a query of polars costs 60.
    array: Any = column.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    places = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(column) + 1]
    return Texts(
        data=np.frombuffer(b"" if data is None else data, np.uint8),
        starts=places[:-1],
        lengths=np.diff(places),
        given=column.is_not_null().to_numpy() if column.null_count() else None,
    )


def hash_texts(column: pl.Series) -> Hashes:
    """
    Hash of each text, [n] uint64; 0 where there is none: as `hash_ids`, in half the time.

    >>> from features.hashing import hash_ids
    >>> ids = ["movie-1", None, "movie-22"] * 100
    >>> bool((hash_texts(pl.Series(ids)) == hash_ids(ids)).all())
    True
    """
    texts = texts_of(column)
    found = np.zeros(len(column), np.uint64)
    there = np.arange(len(column)) if texts.given is None else np.flatnonzero(texts.given)
    there = there[np.argsort(texts.lengths[there], kind="stable")]
    lengths = texts.lengths[there]
    for index in np.split(there, np.flatnonzero(np.diff(lengths)) + 1):
        found[index] = _of_one_length(texts, index)
    return found


def _of_one_length(texts: Texts, index: NDArray[np.int64]) -> Hashes | list[int]:
    """The hashes of some texts, all of them equally long."""
    length = int(texts.lengths[index[0]]) if len(index) else 0
    starts = texts.starts[index]
    if not length or len(index) < LEAST:
        data = texts.data.data
        return [hash_bytes(data[a : a + length]) for a in starts.tolist()]
    rows = sliding_window_view(texts.data, length)[starts]
    return np.maximum(xxh64(rows), np.uint64(1))


def xxh64(rows: NDArray[np.uint8]) -> Hashes:
    """
    xxHash64, seed 0, of each row [n, length], after the specification.

    >>> hex(xxh64(np.frombuffer(b"abc", np.uint8).reshape(1, 3))[0])
    '0x44bc2cf5ad770999'
    """
    n, length = rows.shape
    striped, words = length // 32, length // 8
    found = np.full(n, _P5, np.uint64)
    lanes = np.ascontiguousarray(rows[:, : 8 * words]).view("<u8")
    if striped:
        found = _stripes(lanes[:, : 4 * striped])
    found += np.uint64(length)
    for at in range(4 * striped, words):
        found ^= _round(_NOTHING, lanes[:, at])
        found = _turned(found, 27) * _P1 + _P4
    at = 8 * words
    if length - at >= 4:
        half = np.ascontiguousarray(rows[:, at : at + 4]).view("<u4")[:, 0].astype(np.uint64)
        found = _turned(found ^ half * _P1, 23) * _P2 + _P3
        at += 4
    for last in range(at, length):
        found = _turned(found ^ rows[:, last].astype(np.uint64) * _P5, 11) * _P1
    found = (found ^ (found >> np.uint64(33))) * _P2
    found = (found ^ (found >> np.uint64(29))) * _P3
    return found ^ (found >> np.uint64(32))


_P1: Final = np.uint64(0x9E3779B185EBCA87)
_P2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_P3: Final = np.uint64(0x165667B19E3779F9)
_P4: Final = np.uint64(0x85EBCA77C2B2AE63)
_P5: Final = np.uint64(0x27D4EB2F165667C5)
_NOTHING: Final = np.uint64(0)
# What the four accumulators start from: P1 + P2, P2, 0, -P1, modulo 2**64.
_STARTS: Final = ((int(_P1) + int(_P2)) % 2**64, int(_P2), 0, 2**64 - int(_P1))


def _stripes(lanes: Hashes) -> Hashes:
    """The accumulators over whole stripes [n, 4 a stripe], merged."""
    sums = [np.full(len(lanes), start, np.uint64) for start in _STARTS]
    for at in range(lanes.shape[1]):
        sums[at % 4] = _round(sums[at % 4], lanes[:, at])
    found: Hashes = sum(_turned(s, by) for s, by in zip(sums, (1, 7, 12, 18), strict=True))  # type: ignore[assignment]
    for one in sums:
        found = (found ^ _round(_NOTHING, one)) * _P1 + _P4
    return found


def _round(state: Hashes | np.uint64, lane: Hashes) -> Hashes:
    return _turned(state + lane * _P2, 31) * _P1


def _turned(value: Hashes, by: int) -> Hashes:
    """Rotated to the left."""
    return (value << np.uint64(by)) | (value >> np.uint64(64 - by))
