"""
Columns to framed Avro: many records of one type at once, the same bytes as the codec's.

Every field's column becomes a part of all records (`schemas.avro_parts`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.avro_parts import Arrays, Floats, Longs, Optional, Part, Record, Repeated, Texts, laid
from schemas.codec import Codec, schema_of, without_logical_types
from schemas.errors import Misconfigured, Reason, Rejected
from schemas.plan import long_bytes

T = TypeVar("T")

_INT32: Final = (-(1 << 31), (1 << 31) - 1)


@dataclass(frozen=True, slots=True)
class Same:
    """One value for all records."""

    value: Any  # a number, a text, bytes, an enum's index, or None


@dataclass(frozen=True, slots=True)
class Encoded:
    """Texts as UTF-8: record i has the bytes `splits[i]` to `splits[i + 1]`."""

    content: NDArray[np.uint8]
    splits: NDArray[np.int64]  # [n + 1]

    def texts(self) -> list[str]:
        """[n]"""
        content, cuts = self.content.tobytes(), pairwise(self.splits.tolist())
        text = content.decode()
        if len(text) == len(content):  # ASCII: a byte is a character
            return [text[start:stop] for start, stop in cuts]
        return [content[start:stop].decode() for start, stop in cuts]


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
    "Same | Encoded | Ragged | Some | Sequence[str | None] | Sequence[bytes] | NDArray[Any]"
    " | Mapping[str, Column]"
)
_Write: TypeAlias = Callable[[Any, int], Part]  # a column and n


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
            return laid(Record((Repeated(prefix, n), self._write(columns, n)), n))
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
    fields = [(field["name"], _writer(field["type"])) for field in node["fields"]]

    def write(columns: Mapping[str, Column], n: int) -> Part:
        if len(columns) != len(fields):
            raise ValueError(f"fields {sorted(columns)}, expected {[name for name, _ in fields]}")
        parts = [one(columns[name], n) for name, one in fields]
        for (name, _), part in zip(fields, parts, strict=True):
            if len(part) != n:
                raise ValueError(f"{len(part)} values of {name} for {n} records")
        return Record(parts, n)

    return write


def _nullable(node: list[Any]) -> _Write:
    at = node.index("null") if "null" in node else -1
    if len(node) != 2 or at < 0:
        raise Misconfigured(f"no writer of columns for the union {node!r}")
    branches = long_bytes(at), long_bytes(1 - at)
    inner = _writer(node[1 - at])

    def write(column: Any, n: int) -> Part:
        if isinstance(column, Same):
            if column.value is None:
                return Repeated(branches[0], n)
            return Record((Repeated(branches[1], n), inner(column, n)), n)
        if isinstance(column, Some):
            count = int(np.count_nonzero(column.present))
            return Optional(column.present, inner(column.values, count), branches)
        given = [value for value in column if value is not None]
        if not given:
            return Repeated(branches[0], len(column))
        if len(given) == len(column):
            return Record((Repeated(branches[1], len(column)), inner(column, n)), len(column))
        present = np.array([value is not None for value in column])
        return Optional(present, inner(given, len(given)), branches)

    return write


def _texts(column: Same | Encoded | Sequence[str], n: int) -> Part:
    if isinstance(column, Encoded):
        return Texts(column.content, column.splits)
    if isinstance(column, Same):
        return _bytes(Same(column.value.encode()), n)
    text = "".join(column)
    content = text.encode()
    if len(content) == len(text):  # ASCII: a byte is a character
        return Texts(np.frombuffer(content, np.uint8), _splits_of(column))
    return _bytes([*map(str.encode, column)], n)


def _bytes(column: Same | Sequence[bytes], n: int) -> Part:
    if isinstance(column, Same):
        return Repeated(long_bytes(len(column.value)) + column.value, n)
    return Texts(np.frombuffer(b"".join(column), np.uint8), _splits_of(column))


def _ints(values: NDArray[Any]) -> Part:
    if values.size and not (_INT32[0] <= values.min() and values.max() <= _INT32[1]):
        raise ValueError(f"{values.min()} to {values.max()} do not fit an Avro int")
    return Longs(values)


def _booleans(values: NDArray[np.bool_]) -> Part:
    """One byte, 0 or 1: as the longs 0 and -1 have."""
    return Longs(-values.astype(np.int64))


def _numbers(of: Callable[[NDArray[Any]], Part]) -> _Write:
    def write(column: Same | NDArray[Any], n: int) -> Part:
        values = np.broadcast_to(column.value, n) if isinstance(column, Same) else column
        return of(values[:, None])

    return write


def _array(items: Any) -> _Write:
    inner = _writer(items)
    numbers = _NUMBERS.get(items) if isinstance(items, str) else None

    def write(column: Any, n: int) -> Part:
        if isinstance(column, Ragged):
            return Arrays(column.splits, inner(column.values, int(column.splits[-1])))
        if numbers is None:
            raise TypeError(f"no matrix can be an array of {items}")
        rows, length = column.shape
        end = Repeated(long_bytes(0), rows)
        if not length:
            return end
        return Record((Repeated(long_bytes(length), rows), numbers(column), end), rows)

    return write


def _splits_of(column: Sequence[str] | Sequence[bytes]) -> NDArray[np.int64]:
    splits = np.zeros(len(column) + 1, np.int64)
    np.fromiter(map(len, column), np.int64, len(column)).cumsum(out=splits[1:])
    return splits


_NUMBERS: Final[Mapping[str, Callable[[NDArray[Any]], Part]]] = {
    "int": _ints,
    "long": Longs,
    "enum": Longs,
    "float": Floats,
    "boolean": _booleans,
}
_PLAIN: Final[Mapping[str, _Write]] = {
    "string": _texts,
    "bytes": _bytes,
    **{kind: _numbers(of) for kind, of in _NUMBERS.items()},
}
