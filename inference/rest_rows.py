"""
Rows of JSON (`instances`) read by type, and those of many calls made into arrays together.

Only plain rows are read here: all inputs of the signature, all of them numbers. Of any others,
`RowReader.read` says so, and `inference.rest_tensors` reads them one by one, or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import msgspec
import numpy as np

from features.declare import Array
from inference.rest_tensors import from_rows, stacked
from inference.tensors import Signature, TensorSpec

MAX_ROWS: Final = 64  # of a call that is read with others
_KINDS: Final = {"float32": float, "int64": int, "int32": int}
# One number in each row: those of a type are made into arrays as one table.
_TABLES: Final = ("float32", "int64")


class RowReader:
    """Of one signature."""

    def __init__(self, signature: Signature) -> None:
        """`signature`: of numbers."""
        specs = signature.inputs
        # Those of the tables first, one table behind the other.
        self._names = [
            *(name for dtype in _TABLES for name, spec in specs.items() if _single(spec, dtype)),
            *(n for n, spec in specs.items() if not any(_single(spec, d) for d in _TABLES)),
        ]
        self._signature = signature
        self._specs = [specs[name] for name in self._names]
        counts = [sum(_single(spec, dtype) for spec in specs.values()) for dtype in _TABLES]
        stops = np.cumsum(counts).tolist()
        self._tables = [*zip(_TABLES, [0, *stops[:-1]], stops, strict=True)]
        self._others = range(stops[-1], len(self._names))
        fields = [
            (f"f{at}", _type(spec), msgspec.field(name=name))
            for at, (name, spec) in enumerate(zip(self._names, self._specs, strict=True))
        ]
        row: Any = msgspec.defstruct("Row", fields, forbid_unknown_fields=True, gc=False)
        self._decoder = msgspec.json.Decoder(list[row])

    def read(self, instances: msgspec.Raw) -> Rows | None:
        """The rows of a call; None: they are not plain."""
        try:
            rows = self._decoder.decode(instances)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if not 0 < len(rows) <= MAX_ROWS:
            return None
        return Rows(self, [msgspec.structs.astuple(row) for row in rows])

    def key(self, row: Sequence[Any]) -> tuple[object, ...]:
        """What calls have in common that can be read together, by the first row of each."""
        return tuple(
            repr(row[at]) if self._specs[at].lead == "none" else _lengths(row[at])
            for at in self._others
        )

    def arrays(self, rows: Sequence[Sequence[Any]]) -> dict[str, Array]:
        """
        The inputs of the signature.

        Raises:
            Rejected: they are no tensors of its types.
        """
        found: dict[str, Array] = {}
        try:
            for dtype, start, stop in self._tables:
                table = _array([row[start:stop] for row in rows], dtype)
                found.update(
                    zip(self._names[start:stop], np.ascontiguousarray(table.T), strict=True)
                )
            for at in self._others:
                name, spec = self._names[at], self._specs[at]
                values = [*map(itemgetter(at), rows)]
                plain = spec.lead == "rows"
                found[name] = _array(values, spec.dtype) if plain else stacked(name, values, spec)
        except (ValueError, OverflowError):  # lists that differ in length, or too large a number
            return from_rows(
                [dict(zip(self._names, row, strict=True)) for row in rows], self._signature
            )
        return found


def reader_of(signature: Signature) -> RowReader | None:
    """None: rows for it cannot be read so."""
    numbers = all(spec.dtype in _KINDS for spec in signature.inputs.values())
    return RowReader(signature) if numbers else None


@dataclass(frozen=True, slots=True)
class Rows:
    """Implements `inference.tensors.Unread` on plain rows: values in the order of the reader."""

    reader: RowReader
    rows: Sequence[Sequence[Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def key(self) -> tuple[object, ...]:
        return self.reader.key(self.rows[0])

    def read(self, others: Sequence[Rows]) -> dict[str, Array]:
        return self.reader.arrays([row for one in (self, *others) for row in one.rows])


def _single(spec: TensorSpec, dtype: str) -> bool:
    """Whether an input is one such number in each row."""
    return spec.lead == "rows" and len(spec.shape) == 1 and spec.dtype == dtype


def _type(spec: TensorSpec) -> Any:
    """Of an input's value in a row."""
    found: Any = _KINDS[spec.dtype]
    # A row has no axis for itself, but one for its candidates.
    for _ in range(len(spec.shape) - (spec.lead == "rows")):
        found = list[found]
    return found


def _array(values: Sequence[Any], dtype: str) -> Array:
    with np.errstate(over="ignore"):  # becomes infinity, which is refused by its name
        return np.array(values, dtype)


def _lengths(value: Any) -> tuple[int, ...]:
    """
    Of nested lists, by their first elements.

    >>> _lengths([[1, 2], [3, 4], [5, 6]])
    (3, 2)
    """
    found: list[int] = []
    while isinstance(value, list):
        found.append(len(value))
        value = value[0] if value else None
    return tuple(found)
