"""
Stored values: parts laid out row by row in one buffer, and cut into values behind checksums.

A value begins with 64 bits: xxh3 of what follows, xor what the value is (its kind, its form's
version, its feature set's fingerprint). So one comparison tells a value that is whole and ours from
one that is cut, damaged, of an older form or of another feature set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from features.ragged import spans, splits_of

SEAL_BYTES: Final = 8
_PADDING_BYTES: Final = 8  # behind the last value, so that a word may begin at its last byte

Bytes = NDArray[np.uint8]


class Part(NamedTuple):
    """
    Something that every row has `lengths[i]` of (None: one), row after row.

    Of each entry the first `size` bytes are stored. What lies above them must be nothing.
    """

    flat: NDArray[Any]
    lengths: NDArray[np.int64] | None  # [n]
    size: int


class LaidOut(NamedTuple):
    """Every row's parts one after the other, behind room for its checksum; padded."""

    data: Bytes
    splits: NDArray[np.int64]  # [n + 1]


def laid_out(n: int, parts: Sequence[Part]) -> LaidOut:
    """
    Lay out the parts of n rows.

    Words are written whole, in ascending order: what an entry writes beyond its size is written
    over by the next entry, the next part, or the checksum of the next row.
    """
    some = [part for part in parts if len(part.flat)]
    sizes = np.full(n, SEAL_BYTES, np.int64)
    for _, lengths, size in some:
        sizes += size if lengths is None else lengths * size
    splits = splits_of(sizes)
    data = np.empty(int(splits[-1]) + _PADDING_BYTES, np.uint8)
    at = splits[:-1] + SEAL_BYTES
    for flat, lengths, size in some:
        place = at if lengths is None else spans(at, lengths, size)
        _anywhere(data, flat.dtype)[place] = flat
        at = at + (size if lengths is None else lengths * size)
    return LaidOut(data, splits)


def sealed(laid: LaidOut, kind: int) -> list[bytes]:
    """Put each value's checksum before it, and cut the values apart."""
    digest = xxhash.xxh3_64_intdigest
    bounds = laid.splits.tolist()
    ends = bounds[1:]
    # Slices of bytes, though they are copies, take half the time of slices of a memoryview.
    whole = laid.data.tobytes()
    found = np.fromiter(
        (digest(whole[a + SEAL_BYTES : b]) for a, b in zip(bounds, ends, strict=False)),
        np.uint64,
        len(ends),
    )
    _anywhere(laid.data, np.dtype("u8"))[laid.splits[:-1]] = found ^ np.uint64(kind)
    whole = laid.data.tobytes()
    return [whole[a:b] for a, b in zip(bounds, ends, strict=False)]


class Unsealed:
    """
    The m values that are whole and ours, one after the other, to be read part by part.

    `there` are their places among the values given, `corrupt` those of values that were given and
    are not whole or not ours. `at` is where in `data` each one's next part begins; reading moves
    it.
    """

    def __init__(self, values: Sequence[bytes | None], kind: int, least: int) -> None:
        """`least`: bytes that a value of this kind has at least, checksum included."""
        sizes = np.array([-1 if v is None else len(v) for v in values], np.int64)
        good = sizes >= least
        kept = [v for v in values if v is not None and len(v) >= least]
        digest = xxhash.xxh3_64_intdigest
        found = np.array([digest(v[SEAL_BYTES:]) for v in kept], np.uint64)
        self.data, at = _joined(kept, sizes[good])
        fine = _anywhere(self.data, np.dtype("u8"))[at] == found ^ np.uint64(kind)
        good[good] = fine
        self.there = np.flatnonzero(good)
        self.corrupt = tuple(np.flatnonzero((sizes >= 0) & ~good).tolist())
        self.at = at[fine] + SEAL_BYTES

    def one(self, dtype: str, size: int) -> NDArray[Any]:
        """The next part, of which every row has one entry, [m]."""
        found = _cut(_anywhere(self.data, np.dtype(dtype))[self.at], size)
        self.at = self.at + size
        return found

    def next(self, dtype: str, size: int, lengths: NDArray[np.int64]) -> NDArray[Any]:
        """The next part, of which every row has so many entries."""
        words = _anywhere(self.data, np.dtype(dtype))
        if not lengths.any():
            return np.empty(0, words.dtype)
        at = spans(self.at, lengths, size)
        self.at = self.at + lengths * size
        return _cut(words[at], size)


def _joined(values: list[bytes], sizes: NDArray[np.int64]) -> tuple[Bytes, NDArray[np.int64]]:
    """All values in one buffer, padded, and where each begins."""
    data = np.frombuffer(b"".join([*values, bytes(_PADDING_BYTES)]), np.uint8)
    return data, np.cumsum(sizes) - sizes


def _anywhere(data: Bytes, kind: np.dtype[Any]) -> NDArray[Any]:
    """The buffer as a little-endian word from every byte on: they overlap."""
    shape = (len(data) - kind.itemsize + 1,)
    return np.ndarray(shape, kind.newbyteorder("<"), data, strides=(1,))


def _cut(words: NDArray[Any], size: int) -> NDArray[Any]:
    """Only the first `size` bytes of each."""
    if size < words.itemsize:
        words &= words.dtype.type((1 << 8 * size) - 1)
    return words
