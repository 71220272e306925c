"""
Columns to framed Avro: many records of one type at once, the same bytes as the codec's.

A text becomes a list of pieces of bytes, one a record; numbers that stand side by side, those of
arrays too, become bytes all together (`schemas.words`). A record is its pieces joined.
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
from schemas.words import Numbers, booleans, floats, ints, longs, pieces, side_by_side

T = TypeVar("T")

_END: Final = b"\0"  # of an array's blocks
_SHORT: Final = [long_bytes(n) for n in range(4096)]  # lengths and counts that are looked up


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
Found: TypeAlias = "Pieces | Numbers"
_Write: TypeAlias = Callable[[Any, int], Found]


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
            return [prefix + datum for datum in _pieces(self._write(columns, n))]
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

    def write(columns: Mapping[str, Column], n: int) -> Found:
        if len(columns) != len(parts):
            raise ValueError(f"fields {sorted(columns)}, expected {[name for name, _ in parts]}")
        found: list[Found] = []
        for name, one in parts:
            column = columns[name]
            part = _repeated(one, column, n) if isinstance(column, Same) else one(column, n)
            if len(part) != n:
                raise ValueError(f"{len(part)} values of {name} for {n} records")
            found.append(part)
        return _joined(found)

    return write


def _joined(fields: list[Found]) -> Found:
    """Each record's fields in their order: numbers that follow each other become bytes at once."""
    runs: list[Found] = []
    for part in fields:
        last = runs[-1] if runs else None
        if isinstance(part, Numbers) and isinstance(last, Numbers):
            runs[-1] = side_by_side((last, part))
        else:
            runs.append(part)
    if len(runs) == 1:
        return runs[0]
    return list(map(b"".join, zip(*map(_pieces, runs), strict=True)))


def _pieces(found: Found) -> Pieces:
    return pieces(found) if isinstance(found, Numbers) else found


def _repeated(write: _Write, column: Same, n: int) -> Found:
    value = column.value
    one = [value] if isinstance(value, str | bytes) or value is None else np.array([value])
    found = write(one, 1)
    return found.repeated(n) if isinstance(found, Numbers) else found * n


def _nullable(node: list[Any]) -> _Write:
    at = node.index("null") if "null" in node else -1
    if len(node) != 2 or at < 0:
        raise Misconfigured(f"no writer of columns for the union {node!r}")
    null, branch = long_bytes(at), long_bytes(1 - at)
    inner = _writer(node[1 - at])

    def write(column: Any, n: int) -> Found:
        if isinstance(column, Some):
            found = iter(_pieces(inner(column.values, int(column.present.sum()))))
            return [branch + next(found) if given else null for given in column.present.tolist()]
        if all(value is None for value in column):
            return [null] * n
        given = iter(_pieces(inner([value for value in column if value is not None], n)))
        return [null if value is None else branch + next(given) for value in column]

    return write


def _texts(column: Sequence[str], n: int) -> Pieces:
    return [_length(len(text)) + text for text in map(str.encode, column)]


def _bytes(column: Sequence[bytes], n: int) -> Pieces:
    return [_length(len(value)) + value for value in column]


def _numbers(of: Callable[[NDArray[Any]], Numbers]) -> _Write:
    return lambda column, _: of(column[:, None])


def _array(items: Any) -> _Write:
    numbers = _NUMBERS.get(items) if isinstance(items, str) else None
    inner = _writer(items)

    def write(column: Any, n: int) -> Found:
        if not isinstance(column, Ragged):
            if numbers is None:
                raise TypeError(f"no matrix can be an array of {items}")
            return _matrix(numbers, column)
        bounds = column.splits.tolist()
        found: Any = _pieces(inner(column.values, bounds[-1]))
        if len(found) != bounds[-1]:
            raise ValueError(f"{len(found)} values, expected {bounds[-1]}")
        return [
            b"".join([_length(stop - start), *found[start:stop], _END]) if stop > start else _END
            for start, stop in pairwise(bounds)
        ]

    return write


def _matrix(numbers: Callable[[NDArray[Any]], Numbers], rows: NDArray[Any]) -> Numbers:
    """Arrays of one length: a count, the values, and a 0 at the end."""
    n, length = rows.shape
    end = longs(np.broadcast_to(0, (n, 1)))
    if not length:
        return end
    return side_by_side([longs(np.broadcast_to(length, (n, 1))), numbers(rows), end])


def _length(size: int) -> bytes:
    return _SHORT[size] if size < len(_SHORT) else long_bytes(size)


_NUMBERS: Final[Mapping[str, Callable[[NDArray[Any]], Numbers]]] = {
    "int": ints,
    "long": longs,
    "enum": longs,
    "float": floats,
    "boolean": booleans,
}
_PLAIN: Final[Mapping[str, _Write]] = {
    "string": _texts,
    "bytes": _bytes,
    **{kind: _numbers(of) for kind, of in _NUMBERS.items()},
}
