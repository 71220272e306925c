"""
Numbers to the bytes that Avro has for them, many at once.

A number is at most ten bytes: eight of them lie in a 64-bit word, lowest first, those of a long
that needs more beside it. The words of a record are written one after the other, each over what the
one before had too much: no byte is looked at by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_WORD_BYTES: Final = 8
_INT32: Final = (-(1 << 31), (1 << 31) - 1)


@dataclass(frozen=True, slots=True)
class Numbers:
    """
    The numbers of n records, in their order: matrices [n, some] of int64 (longs) or float32.

    They become bytes together, by `pieces`: one set of operations for all longs that there are.
    """

    columns: tuple[NDArray[Any], ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    def repeated(self, n: int) -> Numbers:
        """The one record n times."""
        return Numbers(tuple(np.broadcast_to(c, (n, c.shape[1])) for c in self.columns))


def longs(values: NDArray[Any]) -> Numbers:
    """[n, v] of a type that int64 holds."""
    return Numbers((np.asarray(values, np.int64),))


def ints(values: NDArray[Any]) -> Numbers:
    """
    As `longs`.

    Raises:
        ValueError: a value does not fit 32 bits.
    """
    if values.size and not (_INT32[0] <= values.min() and values.max() <= _INT32[1]):
        raise ValueError(f"{values.min()} to {values.max()} do not fit an Avro int")
    return longs(values)


def booleans(values: NDArray[np.bool_]) -> Numbers:
    """One byte, 0 or 1: as the longs 0 and -1 have."""
    return longs(-values.astype(np.int64))


def floats(values: NDArray[np.float32]) -> Numbers:
    """[n, v] IEEE 754 singles, little-endian."""
    return Numbers((np.asarray(values, "<f4"),))


def side_by_side(parts: Iterable[Numbers]) -> Numbers:
    """The numbers of each record, part after part."""
    return Numbers(tuple(column for part in parts for column in part.columns))


def pieces(numbers: Numbers) -> list[bytes]:
    """[n] the bytes of each record."""
    words = _words(numbers)
    n, count = words.low.shape
    if not words.low.size:
        return [b""] * n
    ends = np.cumsum(words.size, dtype=np.int64)
    starts = ends - words.size.ravel()
    data = np.empty(int(ends[-1]) + _WORD_BYTES, np.uint8)
    # NumPy assigns in the order of the index: what a word has too much, the next one overwrites.
    anywhere(data, np.dtype("u8"))[starts] = words.low.ravel()
    top = words.top.ravel()
    long = np.flatnonzero(top)
    ninth, rest = starts[long] + _WORD_BYTES, top[long]
    data[ninth] = rest
    more = np.flatnonzero(rest >> np.uint8(7))
    data[ninth[more] + 1] = 1  # all that 64 bits leave for a tenth byte
    cut = [0, *ends[count - 1 :: count].tolist()]
    whole = data.tobytes()
    return [whole[start:stop] for start, stop in pairwise(cut)]


def anywhere(data: NDArray[np.uint8], kind: np.dtype[Any]) -> NDArray[Any]:
    """The buffer as a little-endian word from every byte on: they overlap."""
    shape = (len(data) - kind.itemsize + 1,)
    return np.ndarray(shape, kind.newbyteorder("<"), data, strides=(1,))


class _Words(NamedTuple):
    """v numbers of each of n records, all [n, v]."""

    low: NDArray[np.uint64]  # the first eight bytes; those past `size` are 0
    top: NDArray[np.uint8]  # what a long has beyond 56 bits: 0 for whatever needs no ninth byte
    size: NDArray[np.uint8]  # bytes, 1 to 10


def _words(numbers: Numbers) -> _Words:
    columns = numbers.columns
    whole = [c for c in columns if c.dtype == np.int64]
    found = _varints(np.concatenate([np.zeros((len(numbers), 0), np.int64), *whole], axis=1))
    if len(whole) == len(columns):
        return found
    parts, at = [], 0
    for column in columns:
        if column.dtype == np.int64:
            there = slice(at, at + column.shape[1])
            parts.append(_Words(found.low[:, there], found.top[:, there], found.size[:, there]))
            at = there.stop
        else:
            parts.append(_singles(column))
    return _Words(*(np.concatenate(part, axis=1) for part in zip(*parts, strict=True)))


def _varints(given: NDArray[np.int64]) -> _Words:
    """
    Zigzag varints: 7 bits a byte, lowest first, the high bit on all but the last (Avro
    specification 1.12, binary encoding).
    """
    zigzag = ((given << 1) ^ (given >> 63)).view(np.uint64)
    top = (zigzag >> _TOP_SHIFT).astype(np.uint8)
    # 56 bits into eight groups of 7: halves, quarters and eighths of the word move apart.
    low = zigzag & _BITS_56
    for keep, move, by in _APART:
        moved = (low & move) << by
        low &= keep
        low |= moved
    used = (low + _SEVENS) & _HIGHS  # the high bit of each byte that is not 0
    beyond = (top != 0).astype(np.uint64)
    used |= beyond * _HIGHS
    for by in _SMEARS:
        used |= used >> by
    size = np.maximum(np.bitwise_count(used), np.uint8(1))
    used >>= _BYTE
    used |= beyond << _LAST_BIT  # a ninth byte follows
    low |= used & _HIGHS
    size += beyond.astype(np.uint8)
    size += top >> np.uint8(7)  # and a tenth
    return _Words(low, top, size)


def _singles(values: NDArray[Any]) -> _Words:
    """Two to a word, and the last of an odd number by itself."""
    n, count = values.shape
    bits = np.zeros((n, count + count % 2), "<f4")
    bits[:, :count] = values
    low = bits.view(np.uint64)
    size = np.full(low.shape, _WORD_BYTES, np.uint8)
    if count % 2:
        size[:, -1] = _WORD_BYTES // 2
    return _Words(low, np.zeros(low.shape, np.uint8), size)


def _all_bytes(value: int) -> np.uint64:
    return np.uint64(value * 0x0101010101010101)


_TOP_SHIFT: Final = np.uint64(56)
_BITS_56: Final = np.uint64((1 << 56) - 1)
_SEVENS: Final = _all_bytes(0x7F)
_HIGHS: Final = _all_bytes(0x80)
_BYTE: Final = np.uint64(8)
_LAST_BIT: Final = np.uint64(63)
_SMEARS: Final = (np.uint64(8), np.uint64(16), np.uint64(32))
_APART: Final = tuple(
    (np.uint64(keep), np.uint64(move), np.uint64(by))
    for keep, move, by in (
        (0x000000000FFFFFFF, 0x00FFFFFFF0000000, 4),
        (0x00003FFF00003FFF, 0x0FFFC0000FFFC000, 2),
        (0x007F007F007F007F, 0x3F803F803F803F80, 1),
    )
)
