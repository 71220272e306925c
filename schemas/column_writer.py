"""
Columns to framed Avro: many records of one type at once, the same bytes as the codec's.

Every field's column becomes a part, which knows how many bytes each record has of it, and puts them
(`schemas.avro_bytes`). So all records are written into one buffer, and cut apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.avro_bytes import (
    Bytes,
    Places,
    measure_arrays,
    measure_longs,
    measure_texts,
    put_arrays,
    put_floats,
    put_longs,
    put_same,
    put_texts,
)
from schemas.codec import Codec, schema_of, without_logical_types
from schemas.errors import Misconfigured, Reason, Rejected
from schemas.plan import long_bytes

T = TypeVar("T")

_INT32: Final = (-(1 << 31), (1 << 31) - 1)
_FLOAT_BYTES: Final = 4


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


class Part(Protocol):
    """What n records have of one field."""

    def __len__(self) -> int:
        """How many records."""

    def measure(self, sizes: Places) -> None:
        """Add to each record's size in bytes, [n]."""

    def put(self, out: Bytes, at: Places) -> None:
        """Write each record's bytes from its place on, [n], and move that behind them."""


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
            return laid(_Record((_Repeated(prefix, n), self._write(columns, n)), n))
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
            raise Rejected(
                Reason.OUT_OF_RANGE,
                f"{self._name} cannot be encoded: {type(error).__name__}: {error}",
            ) from error


def laid(part: Part) -> list[bytes]:
    """The bytes of each record."""
    sizes = np.zeros(len(part), np.int64)
    part.measure(sizes)
    ends = np.cumsum(sizes)
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    part.put(out, ends - sizes)
    whole = out.tobytes()
    return [whole[start:stop] for start, stop in pairwise([0, *ends.tolist()])]


class _Longs:
    """[n, v]"""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = np.asarray(values, np.int64)

    def __len__(self) -> int:
        return len(self._values)

    def measure(self, sizes: Places) -> None:
        measure_longs(self._values, sizes)

    def put(self, out: Bytes, at: Places) -> None:
        put_longs(self._values, out, at)


class _Floats:
    """[n, v]"""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = np.asarray(values, np.float32)

    def __len__(self) -> int:
        return len(self._values)

    def measure(self, sizes: Places) -> None:
        sizes += _FLOAT_BYTES * self._values.shape[1]

    def put(self, out: Bytes, at: Places) -> None:
        put_floats(self._values, out, at)


class _Repeated:
    """The same bytes in all of n records."""

    def __init__(self, piece: bytes, n: int) -> None:
        self._piece, self._n = np.frombuffer(piece, np.uint8), n

    def __len__(self) -> int:
        return self._n

    def measure(self, sizes: Places) -> None:
        sizes += len(self._piece)

    def put(self, out: Bytes, at: Places) -> None:
        put_same(self._piece, out, at)


class _Texts:
    """A text or bytes in each record."""

    def __init__(self, content: bytes, lengths: NDArray[np.int64]) -> None:
        self._content = np.frombuffer(content, np.uint8)
        self._splits = np.zeros(len(lengths) + 1, np.int64)
        lengths.cumsum(out=self._splits[1:])

    def __len__(self) -> int:
        return len(self._splits) - 1

    def measure(self, sizes: Places) -> None:
        measure_texts(self._splits, sizes)

    def put(self, out: Bytes, at: Places) -> None:
        put_texts(self._content, self._splits, out, at)


class _Arrays:
    """In each record an array of some of the values."""

    def __init__(self, splits: NDArray[np.int64], values: Part) -> None:
        """
        Raises:
            ValueError: the splits are not those of so many values.
        """
        if splits[0] != 0 or splits[-1] != len(values) or (splits[1:] < splits[:-1]).any():
            raise ValueError(f"{len(values)} values cannot be split at {splits}")
        self._splits, self._values = np.asarray(splits, np.int64), values
        self._each = np.zeros(len(values), np.int64)  # bytes, once measured

    def __len__(self) -> int:
        return len(self._splits) - 1

    def measure(self, sizes: Places) -> None:
        self._values.measure(self._each)
        measure_arrays(self._splits, self._each, sizes)

    def put(self, out: Bytes, at: Places) -> None:
        places = np.empty_like(self._each)
        put_arrays(self._splits, self._each, places, out, at)
        self._values.put(out, places)


class _Optional:
    """Null in some records, in the others a part that has those alone."""

    def __init__(
        self, present: NDArray[np.bool_], given: Part, branches: tuple[bytes, bytes]
    ) -> None:
        self._present, self._absent, self._given = present, ~present, given
        missing = len(present) - len(given)
        self._null = _Repeated(branches[0], missing)
        self._branch = _Repeated(branches[1], len(given))

    def __len__(self) -> int:
        return len(self._present)

    def measure(self, sizes: Places) -> None:
        for chosen, parts in self._halves():
            some = sizes[chosen]
            for part in parts:
                part.measure(some)
            sizes[chosen] = some

    def put(self, out: Bytes, at: Places) -> None:
        for chosen, parts in self._halves():
            some = at[chosen]
            for part in parts:
                part.put(out, some)
            at[chosen] = some

    def _halves(self) -> tuple[tuple[NDArray[np.bool_], tuple[Part, ...]], ...]:
        return (self._absent, (self._null,)), (self._present, (self._branch, self._given))


class _Record:
    """A part after the other."""

    def __init__(self, parts: Sequence[Part], n: int) -> None:
        self._parts, self._n = parts, n

    def __len__(self) -> int:
        return self._n

    def measure(self, sizes: Places) -> None:
        for part in self._parts:
            part.measure(sizes)

    def put(self, out: Bytes, at: Places) -> None:
        for part in self._parts:
            part.put(out, at)


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
        return _Record(parts, n)

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
                return _Repeated(branches[0], n)
            return _Record((_Repeated(branches[1], n), inner(column, n)), n)
        if isinstance(column, Some):
            count = int(np.count_nonzero(column.present))
            return _Optional(column.present, inner(column.values, count), branches)
        given = [value for value in column if value is not None]
        if not given:
            return _Repeated(branches[0], len(column))
        if len(given) == len(column):
            return _Record((_Repeated(branches[1], len(column)), inner(column, n)), len(column))
        present = np.array([value is not None for value in column])
        return _Optional(present, inner(given, len(given)), branches)

    return write


def _texts(column: Same | Sequence[str], n: int) -> Part:
    if isinstance(column, Same):
        content: bytes = column.value.encode()
        return _Repeated(long_bytes(len(content)) + content, n)
    text = "".join(column)
    content = text.encode()
    if len(content) == len(text):  # ASCII: a byte is a character
        return _Texts(content, _lengths(column))
    return _bytes([*map(str.encode, column)], n)


def _bytes(column: Same | Sequence[bytes], n: int) -> Part:
    if isinstance(column, Same):
        return _Repeated(long_bytes(len(column.value)) + column.value, n)
    return _Texts(b"".join(column), _lengths(column))


def _ints(values: NDArray[Any]) -> Part:
    if values.size and not (_INT32[0] <= values.min() and values.max() <= _INT32[1]):
        raise ValueError(f"{values.min()} to {values.max()} do not fit an Avro int")
    return _Longs(values)


def _booleans(values: NDArray[np.bool_]) -> Part:
    """One byte, 0 or 1: as the longs 0 and -1 have."""
    return _Longs(-values.astype(np.int64))


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
            return _Arrays(column.splits, inner(column.values, int(column.splits[-1])))
        if numbers is None:
            raise TypeError(f"no matrix can be an array of {items}")
        rows, length = column.shape
        end = _Repeated(long_bytes(0), rows)
        if not length:
            return end
        return _Record((_Repeated(long_bytes(length), rows), numbers(column), end), rows)

    return write


def _lengths(column: Sequence[str] | Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, column), np.int64, len(column))


_NUMBERS: Final[Mapping[str, Callable[[NDArray[Any]], Part]]] = {
    "int": _ints,
    "long": _Longs,
    "enum": _Longs,
    "float": _Floats,
    "boolean": _booleans,
}
_PLAIN: Final[Mapping[str, _Write]] = {
    "string": _texts,
    "bytes": _bytes,
    **{kind: _numbers(of) for kind, of in _NUMBERS.items()},
}
