"""
tf.train.Example as bytes, from columns: protobuf's wire format, a column at a time.

An Example is a map from names to lists (tensorflow/core/example/example.proto and feature.proto);
its wire form (protobuf.dev/programming-guides/encoding) nests lengths, so what stands before a
feature's data depends on the length of the data alone and is computed once for each length.
A map's entries come in any order: those of one size in all rows come first, as one matrix, and the
others lie in a matrix wide enough for the longest, whose filled places are then drawn together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEN = 2  # wire type of length-delimited fields
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3  # fields of tf.train.Feature
# Values encoded at once: what is written by one step is still in the cache for the next, and the
# calls are few.
_VALUES = 1 << 17
_ONE_BYTE = 1 << 7  # the first number whose varint takes two

Octets = NDArray[np.uint8]
Entries = tuple[memoryview, ...]  # of one example


class Column(NamedTuple):
    """One feature of n examples: its name, which list it is, and its values."""

    name: str
    kind: int
    values: NDArray[np.float32] | NDArray[np.uint64] | list[bytes]  # [n, length], texts [n]


class _Ragged(NamedTuple):
    """n byte strings in a matrix as wide as the longest needs."""

    octets: Octets  # [n, width]
    filled: NDArray[np.bool_]  # [n, width] which of them are there
    lengths: NDArray[np.int64]  # [n]


def floats(name: str, values: NDArray[np.float32]) -> Column:
    """A float feature from [n] or [n, length] values."""
    return Column(name, FLOAT_LIST, np.ascontiguousarray(_matrix(values), "<f4"))


def longs(name: str, values: NDArray[np.int64]) -> Column:
    """An int64 feature from [n] or [n, length] values, as varints."""
    return Column(name, INT64_LIST, _matrix(values).astype(np.int64).view(np.uint64))


def texts(name: str, values: Sequence[str]) -> Column:
    """A bytes feature from n texts, one each, UTF-8."""
    return Column(name, BYTES_LIST, [value.encode() for value in values])


def entries(columns: Sequence[Column]) -> list[Entries]:
    """
    The map entries of n examples. Nothing is copied until `example` puts them together.

    Raises:
        ValueError: columns of unequal length.
    """
    sizes = {len(column.values) for column in columns}
    if len(sizes) != 1:
        raise ValueError(f"columns of lengths {sorted(sizes)}")
    [n] = sizes
    found: list[Entries] = []
    rows = max(1, _VALUES // sum(_width(column) for column in columns))
    for start in range(0, n, rows):
        found += _entries([_rows(column, start, start + rows) for column in columns])
    return found


def example(parts: Entries) -> bytes:
    """
    One serialized tf.train.Example from map entries, of one `entries` or of several.

    >>> [example(e).hex() for e in entries([floats("a", np.ones(1, np.float32))])]
    ['0a0f0a0d0a0161120812060a040000803f']
    """
    return b"".join((_head(1, sum(map(len, parts))), *parts))


def _matrix(values: NDArray[np.float32] | NDArray[np.int64]) -> NDArray[np.float32 | np.int64]:
    return values.reshape(len(values), -1) if len(values) else values.reshape(0, 1)


def _width(column: Column) -> int:
    return 1 if isinstance(column.values, list) else column.values.shape[1]


def _rows(column: Column, start: int, stop: int) -> Column:
    return column._replace(values=column.values[start:stop])


def _entries(columns: Sequence[Column]) -> list[Entries]:
    fixed = _fixed([column for column in columns if column.kind == FLOAT_LIST])
    ragged = [part for c in columns if c.kind != FLOAT_LIST for part in _with_head(c)]
    n, width = len(columns[0].values), fixed.shape[1]
    block = fixed.reshape(-1).data
    before = [block[at : at + width] for at in range(0, n * width, width)] if width else [block] * n
    if not ragged:
        return [(part,) for part in before]
    filled = np.concatenate([part.filled for part in ragged], axis=1)
    flat = np.concatenate([part.octets for part in ragged], axis=1)[filled].data
    ends = np.cumsum(np.sum([part.lengths for part in ragged], axis=0)).tolist()
    starts = [0, *ends[:-1]]
    return [(part, flat[a:b]) for part, a, b in zip(before, starts, ends, strict=True)]


def _fixed(columns: Sequence[Column]) -> Octets:
    """[n, bytes] entries whose data has the same length in every row."""
    template, places = b"", []
    for column in columns:
        size = 4 * np.shape(column.values)[1]
        template += _entry_head(column.name, column.kind, size)
        places.append(slice(len(template), len(template) + size))
        template += bytes(size)
    n = len(columns[0].values) if columns else 0
    block = np.tile(np.frombuffer(template, np.uint8), (n, 1))
    for column, place in zip(columns, places, strict=True):
        block[:, place] = np.asarray(column.values).view(np.uint8)
    return block


def _with_head(column: Column) -> Iterator[_Ragged]:
    """Each row's data, and before it map entry, name, feature and list, with their lengths."""
    data = _text_data(column.values) if isinstance(column.values, list) else _varints(column.values)
    sizes = np.flatnonzero(np.bincount(data.lengths))
    heads = [_entry_head(column.name, column.kind, int(size)) for size in sizes]
    yield _taken(heads, np.searchsorted(sizes, data.lengths))
    yield data


def _text_data(values: Sequence[bytes]) -> _Ragged:
    places: dict[bytes, int] = {}
    which = [places.setdefault(value, len(places)) for value in values]
    return _taken([_field(1, value) for value in places], np.array(which, np.int64))


def _taken(values: Sequence[bytes], which: NDArray[np.int64]) -> _Ragged:
    """The value at each place."""
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    width = int(lengths.max(initial=0))
    padded = np.frombuffer(b"".join([value.ljust(width, b"\0") for value in values]), np.uint8)
    filled = np.arange(width) < lengths[:, None]
    return _Ragged(padded.reshape(-1, width)[which], filled[which], lengths[which])


def _varints(values: NDArray[np.float32] | NDArray[np.uint64]) -> _Ragged:
    left = values.astype(np.uint64)
    n, length = left.shape
    most = int(left.max(initial=0))
    if most < _ONE_BYTE:
        octets = left.astype(np.uint8)
        return _Ragged(octets, np.ones(octets.shape, np.bool_), np.full(n, length, np.int64))
    width = -(-most.bit_length() // 7)
    octets = np.empty((n, length, width), np.uint8)
    filled = np.ones((n, length, width), np.bool_)
    for at in range(width):
        octet = left.astype(np.uint8) & np.uint8(_ONE_BYTE - 1)
        left >>= np.uint64(7)
        more = left != 0
        octets[..., at] = octet | (more.view(np.uint8) << np.uint8(7))
        if at + 1 < width:
            filled[..., at + 1] = more
    flat = filled.reshape(n, -1)
    return _Ragged(octets.reshape(n, -1), flat, np.count_nonzero(flat, axis=1))


# Lengths repeat from batch to batch: a few thousand columns and lengths are all there are.
@lru_cache(maxsize=16_384)
def _entry_head(name: str, kind: int, size: int) -> bytes:
    # A bytes list is not packed: its elements carry their own field heads already.
    inner = b"" if kind == BYTES_LIST else _head(1, size)
    listed = len(inner) + size
    feature = _head(kind, listed)
    value = _head(2, len(feature) + listed)
    key = _field(1, name.encode())
    entry = len(key) + len(value) + len(feature) + listed
    return _head(1, entry) + key + value + feature + inner


def _field(number: int, data: bytes) -> bytes:
    return _head(number, len(data)) + data


@lru_cache(maxsize=16_384)
def _head(number: int, size: int) -> bytes:
    return varint(number << 3 | _LEN) + varint(size)


# The same: mostly lengths, of which there are few.
@lru_cache(maxsize=16_384)
def varint(value: int) -> bytes:
    """
    A number that is not negative.

    >>> varint(5), varint(300)
    (b'\\x05', b'\\xac\\x02')
    """
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
