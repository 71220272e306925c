"""
tf.train.Example as bytes, from columns: protobuf's wire format, a column at a time.

An Example is a map from names to lists (tensorflow/core/example/example.proto and feature.proto);
its wire form (protobuf.dev/programming-guides/encoding) nests lengths, so what stands before a
feature's data depends on the length of the data alone and is computed once for each length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEN = 2  # wire type of length-delimited fields
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3  # fields of tf.train.Feature


class Ragged(NamedTuple):
    """n byte strings as one flat array and their lengths."""

    flat: NDArray[np.uint8]
    lengths: NDArray[np.int64]  # [n]


class Column(NamedTuple):
    """One feature of n examples: its name, which list it is, and the list's packed data."""

    name: str
    kind: int
    data: Ragged


def floats(name: str, values: NDArray[np.float32]) -> Column:
    """A float feature from [n] or [n, length] values."""
    matrix = np.ascontiguousarray(values.reshape(len(values), -1), "<f4")
    lengths = np.full(len(matrix), 4 * matrix.shape[1], np.int64)
    return Column(name, FLOAT_LIST, Ragged(matrix.view(np.uint8).reshape(-1), lengths))


def longs(name: str, values: NDArray[np.int64]) -> Column:
    """An int64 feature from [n] or [n, length] values, as varints."""
    matrix = values.reshape(len(values), -1).astype(np.int64).view(np.uint64)
    groups = matrix[..., None] >> (np.arange(10, dtype=np.uint64) * np.uint64(7))
    more = np.zeros(groups.shape, np.bool_)
    more[..., :-1] = groups[..., 1:] != 0
    used = np.ones(groups.shape, np.bool_)
    used[..., 1:] = more[..., :-1]
    octets = (groups & np.uint64(0x7F)).astype(np.uint8) | (more.astype(np.uint8) * np.uint8(128))
    flat: NDArray[np.uint8] = octets[used]
    return Column(name, INT64_LIST, Ragged(flat, used.sum(axis=(1, 2))))


def texts(name: str, values: Sequence[str]) -> Column:
    """A bytes feature from n texts, one each, UTF-8."""
    encoded = [value.encode() for value in values]
    framed = [_field(1, value) for value in encoded]
    lengths = np.fromiter(map(len, framed), np.int64, len(framed))
    return Column(name, BYTES_LIST, Ragged(np.frombuffer(b"".join(framed), np.uint8), lengths))


def examples(columns: Sequence[Column]) -> list[bytes]:
    """
    n serialized tf.train.Example messages.

    >>> [e.hex() for e in examples([floats("a", np.ones(1, np.float32))])]
    ['0a0f0a0d0a0161120812060a040000803f']
    """
    parts: list[Ragged] = []
    for column in columns:
        parts += [_prefix(column), column.data]
    body = _joined(parts)
    outer = {n: _head(1, int(n)) for n in np.unique(body.lengths)}
    ends = np.cumsum(body.lengths).tolist()
    view = memoryview(body.flat.tobytes())
    return [
        outer[n] + view[end - n : end] for n, end in zip(body.lengths.tolist(), ends, strict=True)
    ]


def _prefix(column: Column) -> Ragged:
    """What stands before each example's data: map entry, name, feature and list, with lengths."""
    lengths, which = np.unique(column.data.lengths, return_inverse=True)
    heads = [_entry_head(column.name, column.kind, int(n)) for n in lengths]
    sizes = np.fromiter(map(len, heads), np.int64, len(heads))
    if len(heads) == 1:
        flat = np.tile(np.frombuffer(heads[0], np.uint8), len(which))
    else:
        flat = np.frombuffer(b"".join([heads[i] for i in which.tolist()]), np.uint8)
    return Ragged(flat, sizes[which])


def _entry_head(name: str, kind: int, size: int) -> bytes:
    # A bytes list is not packed: its elements carry their own field heads already.
    inner = b"" if kind == BYTES_LIST else _head(1, size)
    listed = len(inner) + size
    feature = _head(kind, listed)
    value = _head(2, len(feature) + listed)
    key = _field(1, name.encode())
    entry = len(key) + len(value) + len(feature) + listed
    return _head(1, entry) + key + value + feature + inner


def _joined(parts: Sequence[Ragged]) -> Ragged:
    """Example by example, the bytes of every part after one another."""
    lengths = np.sum([part.lengths for part in parts], axis=0)
    flat = np.empty(int(lengths.sum()), np.uint8)
    at = np.cumsum(lengths) - lengths
    for part in parts:
        before = np.cumsum(part.lengths) - part.lengths
        flat[np.repeat(at - before, part.lengths) + np.arange(len(part.flat))] = part.flat
        at = at + part.lengths
    return Ragged(flat, lengths)


def _field(number: int, data: bytes) -> bytes:
    return _head(number, len(data)) + data


def _head(number: int, size: int) -> bytes:
    return _varint(number << 3 | _LEN) + _varint(size)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
