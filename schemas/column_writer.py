"""
Columns to framed Avro: many records of one type at once, the same bytes as the codec's.

A field becomes a list of pieces of bytes, one a record, and a record is its pieces joined. Numbers
of arrays are made into bytes all together, which is where a record-by-record writer spends its
time: a list of features costs as much as its copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.codec import Codec, schema_of, without_logical_types
from schemas.errors import Misconfigured, Reason, Rejected
from schemas.plan import long_bytes

T = TypeVar("T")

_END: Final = b"\0"  # of an array's blocks
_SHORT: Final = [long_bytes(n) for n in range(4096)]  # lengths and counts that are looked up
_INT32: Final = (-(1 << 31), (1 << 31) - 1)
_VARINT_BYTES: Final = 10
_SEVENS: Final = np.arange(0, 7 * _VARINT_BYTES, 7, dtype=np.uint64)
_LIMITS: Final = np.array([1 << (7 * k) for k in range(1, _VARINT_BYTES)], np.uint64)


@dataclass(frozen=True, slots=True)
class Same:
    """One value for all records."""

    value: Any  # a number, a text, bytes, an enum's index, or None


@dataclass(frozen=True, slots=True)
class Ragged:
    """Arrays of several lengths: record i has the values `splits[i]` to `splits[i + 1]`."""

    splits: NDArray[np.int64]  # [n + 1]
    values: Column


@dataclass(frozen=True, slots=True)
class Some:
    """A record that is null for those that are not `present`; `values` are of the others alone."""

    present: NDArray[np.bool_]  # [n]
    values: Mapping[str, Column]


# Texts, bytes: a sequence, None where null is allowed. Numbers, booleans, indexes of enums: [n].
# Arrays of numbers of one length: [n, length]. Records: a mapping.
Column: TypeAlias = (
    "Same | Ragged | Some | Sequence[str | None] | Sequence[bytes] | NDArray[Any]"
    " | Mapping[str, Column]"
)
Pieces: TypeAlias = list[bytes]
_Write: TypeAlias = Callable[[Any, int], Pieces]


class ColumnWriter(Generic[T]):
    """Columns of one record type to framed values of the codec's topic. Not thread-safe."""

    def __init__(self, codec: Codec[T], record_type: type[T]) -> None:
        self._codec = codec
        self._name = record_type.__name__
        self._write = _record(without_logical_types(json.loads(schema_of(record_type))))

    def encode(self, columns: Mapping[str, Column], n: int) -> list[bytes]:
        """
        n framed values, equal to `Codec.encode` of each.

        Args:
            columns: of every field.

        Raises:
            Rejected: a value does not fit its schema; it may be any of the n.
            RegistryUnavailable: the schema could not be registered.
        """
        prefix = self._codec.prefix()
        try:
            return [prefix + datum for datum in self._write(columns, n)]
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
            raise Rejected(
                Reason.OUT_OF_RANGE,
                f"{self._name} cannot be encoded: {type(error).__name__}: {error}",
            ) from error


def _writer(node: Any) -> _Write:
    if isinstance(node, list):
        return _nullable(node)
    kind = node["type"] if isinstance(node, dict) else node
    if isinstance(kind, dict):
        return _writer(kind)
    if kind == "record":
        return _record(node)
    if kind == "array":
        return _array(node["items"])
    if kind not in _PLAIN:
        raise Misconfigured(f"no writer of columns for the Avro type {kind!r}")
    return _PLAIN[kind]


def _record(node: Any) -> _Write:
    parts = [(field["name"], _writer(field["type"])) for field in node["fields"]]

    def write(columns: Mapping[str, Column], n: int) -> Pieces:
        if len(columns) != len(parts):
            raise ValueError(f"fields {sorted(columns)}, expected {[name for name, _ in parts]}")
        found = []
        for name, one in parts:
            column = columns[name]
            if isinstance(column, Same):
                found.append(_repeated(one, column, n))
            else:
                pieces = one(column, n)
                if len(pieces) != n:
                    raise ValueError(f"{len(pieces)} values of {name} for {n} records")
                found.append(pieces)
        return list(map(b"".join, zip(*found, strict=True)))

    return write


def _repeated(write: _Write, column: Same, n: int) -> Pieces:
    value = column.value
    one = [value] if isinstance(value, str | bytes) or value is None else np.array([value])
    return write(one, 1) * n


def _nullable(node: list[Any]) -> _Write:
    at = node.index("null") if "null" in node else -1
    if len(node) != 2 or at < 0:
        raise Misconfigured(f"no writer of columns for the union {node!r}")
    null, branch = long_bytes(at), long_bytes(1 - at)
    inner = _writer(node[1 - at])

    def write(column: Any, n: int) -> Pieces:
        if isinstance(column, Some):
            found = iter(inner(column.values, int(column.present.sum())))
            return [branch + next(found) if given else null for given in column.present.tolist()]
        if all(value is None for value in column):
            return [null] * n
        given = iter(inner([value for value in column if value is not None], n))
        return [null if value is None else branch + next(given) for value in column]

    return write


def _texts(column: Sequence[str], n: int) -> Pieces:
    return [_length(len(text)) + text for text in map(str.encode, column)]


def _bytes(column: Sequence[bytes], n: int) -> Pieces:
    return [_length(len(value)) + value for value in column]


def _booleans(column: NDArray[np.bool_], n: int) -> Pieces:
    return [b"\1" if value else b"\0" for value in column.tolist()]


def _floats(column: NDArray[np.float32], n: int) -> Pieces:
    data = np.ascontiguousarray(column, "<f4").tobytes()
    return [data[at : at + 4] for at in range(0, len(data), 4)]


def _ints(column: NDArray[np.int64], n: int) -> Pieces:
    if len(column) and not (_INT32[0] <= column.min() and column.max() <= _INT32[1]):
        raise ValueError(f"{column.min()} to {column.max()} do not fit an Avro int")
    return _longs(column, n)


def _longs(column: NDArray[np.int64], n: int) -> Pieces:
    return _cut(*varints(column))


def _array(items: Any) -> _Write:
    matrix = _MATRICES.get(items) if isinstance(items, str) else None
    inner = _writer(items)

    def write(column: Any, n: int) -> Pieces:
        if not isinstance(column, Ragged):
            if matrix is None:
                raise TypeError(f"no matrix can be an array of {items}")
            return matrix(column) if column.shape[1] else [_END] * n
        bounds = column.splits.tolist()
        pieces: Any = inner(column.values, bounds[-1])
        if len(pieces) != bounds[-1]:
            raise ValueError(f"{len(pieces)} values, expected {bounds[-1]}")
        return [
            b"".join([_length(stop - start), *pieces[start:stop], _END]) if stop > start else _END
            for start, stop in pairwise(bounds)
        ]

    return write


def _long_matrix(rows: NDArray[np.int64]) -> Pieces:
    """Arrays of longs: a count, the values and the end are longs all of them."""
    n, length = rows.shape
    framed = np.zeros((n, length + 2), np.int64)
    framed[:, 0] = length
    framed[:, 1:-1] = rows
    data, starts = varints(framed.ravel())
    return _cut(data, starts[:: length + 2])


def _float_matrix(rows: NDArray[np.float32]) -> Pieces:
    """Arrays of floats: all of one size."""
    n, length = rows.shape
    head = _length(length)
    wide = len(head) + 4 * length + 1
    framed = np.zeros((n, wide), np.uint8)
    framed[:, : len(head)] = np.frombuffer(head, np.uint8)
    framed[:, len(head) : -1] = np.ascontiguousarray(rows, "<f4").view(np.uint8)
    data = framed.tobytes()
    return [data[at : at + wide] for at in range(0, n * wide, wide)]


def _length(size: int) -> bytes:
    return _SHORT[size] if size < len(_SHORT) else long_bytes(size)


def varints(values: NDArray[Any]) -> tuple[bytes, NDArray[np.int64]]:
    """
    Avro longs (zigzag, 7 bits a byte, the lowest first; Avro specification 1.12, binary encoding).

    Returns:
        all their bytes, and [m + 1] where each begins.

    >>> data, starts = varints(np.array([-2, 64]))
    >>> data.hex(), starts.tolist()
    ('038001', [0, 1, 3])
    """
    given = np.ascontiguousarray(values, np.int64)
    zigzag = ((given << 1) ^ (given >> 63)).view(np.uint64)
    sizes = np.searchsorted(_LIMITS, zigzag, "right") + 1
    starts = np.zeros(len(given) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    wide = int(sizes.max(initial=1))
    cells = (zigzag[:, None] >> _SEVENS[:wide]).astype(np.uint8) | np.uint8(0x80)
    cells[np.arange(len(given)), sizes - 1] &= np.uint8(0x7F)
    return cells[np.arange(wide) < sizes[:, None]].tobytes(), starts


def _cut(data: bytes, starts: NDArray[np.int64]) -> Pieces:
    at = starts.tolist()
    return [data[start:stop] for start, stop in pairwise(at)]


_PLAIN: Final[Mapping[str, _Write]] = {
    "string": _texts,
    "bytes": _bytes,
    "int": _ints,
    "long": _longs,
    "enum": _longs,
    "float": _floats,
    "boolean": _booleans,
}
_MATRICES: Final[Mapping[str, Callable[[NDArray[Any]], Pieces]]] = {
    "long": _long_matrix,
    "float": _float_matrix,
}
