"""
How columns in a writer's schema become columns in the reader's: decided once for each writer.

Only what is certain is planned: missing fields take their defaults, extra ones are skipped, numbers
widen, enum symbols are matched by name. Anything else is left to the codec, record by record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

MAGIC: Final = "millstream_magic_"
SCHEMA_ID: Final = "millstream_schema_id_"
GUARD: Final = "millstream_guard_"

_PRIMITIVE: Final[Mapping[str, pl.DataType]] = {
    "boolean": pl.Boolean(),
    "int": pl.Int32(),
    "long": pl.Int64(),
    "float": pl.Float32(),
    "double": pl.Float64(),
    "bytes": pl.Binary(),
    "string": pl.String(),
}
_WIDER: Final = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
}
_INT32: Final = (-(1 << 31), (1 << 31) - 1)

Doubt = NDArray[np.bool_]
# Of one column: its values in the reader's type, and which of them need a second look (or None).
Step = Callable[[pl.Series], tuple[pl.Series, Doubt | None]]


class _Unplanned(Exception):
    """Only the codec can read this."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to read one writer's datums."""

    header: bytes  # Avro container header for the wrapper schema, without the sync marker
    steps: Mapping[str, Step | None]  # by field that the writer has; None: as it comes
    defaults: Mapping[str, Any]  # of the fields that it lacks

    def needed(self, wanted: Sequence[str]) -> list[str]:
        """The writer's columns among those wanted."""
        return [name for name in wanted if name in self.steps]

    def resolve(
        self, raw: pl.DataFrame, schema: Mapping[str, pl.DataType]
    ) -> tuple[pl.DataFrame, Doubt | None]:
        """The raw columns in the reader's types, and which rows the codec must judge."""
        # In place, column by column: `select` and `with_columns` plan a query each time (100 us).
        frame = raw[self.needed(list(schema))]
        doubtful: Doubt | None = None
        for at, (name, dtype) in enumerate(schema.items()):
            if name not in self.steps:
                missing = _repeated(name, self.defaults[name], dtype, len(raw))
                frame.insert_column(at, missing)
                continue
            step = self.steps[name]
            if step is None:
                continue
            column, doubt = step(raw[name])
            frame.replace_column(at, column)
            if doubt is not None and doubt.any():
                doubtful = doubt if doubtful is None else doubtful | doubt
        return frame, doubtful


def plan_of(text: str, reader: Any) -> Plan | None:
    """The plan for a writer's schema; None: only the codec can read it."""
    try:
        writer = json.loads(text)
        if not isinstance(writer, dict) or writer.get("type") != "record":
            return None
        written = {f["name"]: f["type"] for f in writer["fields"]}
        steps: dict[str, Step | None] = {}
        defaults: dict[str, Any] = {}
        for part in reader["fields"]:
            name = part["name"]
            if name in written:
                steps[name] = _step(written[name], part["type"])
            elif "default" in part:
                defaults[name] = _default(part)
            else:
                return None
        return Plan(header=_header(writer), steps=steps, defaults=defaults)
    except (_Unplanned, KeyError, TypeError, AttributeError, ValueError):
        return None


def dtypes_of(reader: Any) -> dict[str, pl.DataType]:
    """Column types of a record's fields."""
    return {part["name"]: _dtype(part["type"]) for part in reader["fields"]}


def symbols_of(reader: Any) -> dict[str, dict[str, int]]:
    """Fields that are enums, with the index of each symbol."""
    return {
        part["name"]: {symbol: i for i, symbol in enumerate(part["type"]["symbols"])}
        for part in reader["fields"]
        if _kind(part["type"]) == "enum"
    }


# --- types ------------------------------------------------------------------------------------


def _kind(node: Any) -> str:
    while isinstance(node, dict) and isinstance(node["type"], dict):
        node = node["type"]
    return str(node["type"]) if isinstance(node, dict) else str(node)


def _nullable(node: Any) -> tuple[Any, bool]:
    """The type without null, and whether null was there."""
    if not isinstance(node, list):
        return node, False
    rest = [part for part in node if part != "null"]
    if len(node) != 2 or len(rest) != 1:
        raise _Unplanned
    return rest[0], True


def _dtype(node: Any) -> pl.DataType:
    inner, _ = _nullable(node)
    match _kind(inner):
        case "enum":
            return pl.Int32()
        case "array":
            return pl.List(_dtype(inner["items"]))
        case "record":
            return pl.Struct({f["name"]: _dtype(f["type"]) for f in inner["fields"]})
        case kind:
            return _PRIMITIVE[kind]


def _wire(node: Any, *, wide: bool) -> Any:
    """The type as the wrapper declares it: enums and (where `wide`) ints as long."""
    if isinstance(node, list):
        inner, _ = _nullable(node)
        return [_wire(part, wide=wide) for part in node] if inner else node
    kind = _kind(node)
    match kind:
        case "enum" if wide:
            return "long"
        case "int" if wide:
            return "long"
        case "array":
            return {"type": "array", "items": _wire(node["items"], wide=False)}
        case "record":
            parts = [
                {"name": f["name"], "type": _wire(f["type"], wide=wide)} for f in node["fields"]
            ]
            return {"type": "record", "name": node["name"], "fields": parts}
        case "null" | "boolean" | "int" | "long" | "float" | "double" | "bytes" | "string":
            return kind
        case _:
            raise _Unplanned


def _header(writer: Any) -> bytes:
    fields = [
        {"name": MAGIC, "type": "int"},
        {"name": SCHEMA_ID, "type": "float"},
        *({"name": f["name"], "type": _wire(f["type"], wide=True)} for f in writer["fields"]),
        {"name": GUARD, "type": "long"},
    ]
    return container_header(json.dumps({"type": "record", "name": "Wrapper", "fields": fields}))


def container_header(schema: str) -> bytes:
    """The header of an uncompressed Avro container file, without the sync marker."""
    meta = {b"avro.schema": schema.encode(), b"avro.codec": b"null"}
    blocks = b"".join(long_bytes(len(x)) + x for pair in meta.items() for x in pair)
    return b"Obj\x01" + long_bytes(len(meta)) + blocks + b"\0"


def long_bytes(value: int) -> bytes:
    """An Avro long: zigzag, then 7 bits a byte, the lowest first.

    >>> long_bytes(-2).hex(), long_bytes(64).hex()
    ('03', '8001')
    """
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


# --- steps ------------------------------------------------------------------------------------


def _step(writer: Any, reader: Any) -> Step | None:
    w, w_null = _nullable(writer)
    r, r_null = _nullable(reader)
    kinds = _kind(w), _kind(r)
    step: Step | None
    if kinds == ("enum", "enum"):
        step = _enum_step(w, r)
    elif kinds[1] in ("array", "record"):
        if _shape(w) != _shape(r):
            raise _Unplanned
        step = _nested_step(r)
    elif kinds[0] == kinds[1] or kinds[1] in _WIDER.get(kinds[0], ()):
        step = _primitive_step(kinds[0], _PRIMITIVE[kinds[1]])
    else:
        raise _Unplanned
    return step if r_null or not w_null else _required(step)


def _shape(node: Any) -> Any:
    """A type without names of records, docs, defaults and logical types: equal means same bytes."""
    if isinstance(node, list):
        return [_shape(part) for part in node]
    match _kind(node):
        case "array":
            return ["array", _shape(node["items"])]
        case "record":
            return ["record", [(f["name"], _shape(f["type"])) for f in node["fields"]]]
        case "enum" | "map" | "fixed":
            raise _Unplanned
        case kind:
            return kind


def _required(step: Step | None) -> Step:
    def checked(column: pl.Series) -> tuple[pl.Series, Doubt | None]:
        found, doubt = (column, None) if step is None else step(column)
        nulls = column.is_null().to_numpy()
        return found, nulls if doubt is None else doubt | nulls

    return checked


def _primitive_step(kind: str, dtype: pl.DataType) -> Step | None:
    if kind != "int":
        if _PRIMITIVE[kind] == dtype:
            return None
        return lambda column: (column.cast(dtype), None)

    def narrowed(column: pl.Series) -> tuple[pl.Series, Doubt | None]:
        doubt = _outside(column, *_INT32)
        return column.cast(dtype, strict=False), doubt

    return narrowed


def _outside(column: pl.Series, low: int, high: int) -> Doubt | None:
    least, most = column.min(), column.max()
    if least is None or (least >= low and most <= high):  # type: ignore[operator]
        return None
    return ~column.is_between(low, high).fill_null(True).to_numpy()


def _enum_step(writer: Any, reader: Any) -> Step:
    index = {symbol: i for i, symbol in enumerate(reader["symbols"])}
    fallback = index.get(reader.get("default"), -1)
    table = np.array([index.get(s, fallback) for s in writer["symbols"]], np.int32)
    identity = bool((table == np.arange(len(table))).all())
    unknown = -1 in table

    def mapped(column: pl.Series) -> tuple[pl.Series, Doubt | None]:
        if column.null_count():
            raise _Unplanned
        doubt = _outside(column, 0, len(table) - 1)
        if identity:
            return column.cast(pl.Int32, strict=False), doubt
        raw = column.to_numpy()
        values = table[raw if doubt is None else np.where(doubt, 0, raw)]
        if unknown:
            doubt = (values < 0) if doubt is None else doubt | (values < 0)
        return pl.Series(column.name, values), doubt

    return mapped


def _nested_step(reader: Any) -> Step | None:
    dtype = _dtype(reader)
    if _kind(reader) == "array":
        if "int" in json.dumps(_shape(reader)).replace("int64", "").split('"'):
            raise _Unplanned  # the range of an int inside a list is not checked here
        return None
    ints = [f["name"] for f in reader["fields"] if _nullable(f["type"])[0] == "int"]

    def struct(column: pl.Series) -> tuple[pl.Series, Doubt | None]:
        doubt: Doubt | None = None
        for name in ints:
            found = _outside(column.struct.field(name), *_INT32)
            if found is not None:
                doubt = found if doubt is None else doubt | found
        return column.cast(dtype, strict=False), doubt

    return struct


# --- defaults ---------------------------------------------------------------------------------


def _default(part: Any) -> Any:
    value = part["default"]
    match _kind(_nullable(part["type"])[0]):
        case "enum":
            return part["type"]["symbols"].index(value)
        case "bytes" if value is not None:
            return value.encode("iso-8859-1")
        case _:
            return value


def _repeated(name: str, value: Any, dtype: pl.DataType, n: int) -> pl.Series:
    one = pl.Series(name, [value], dtype=dtype)
    return one.new_from_index(0, n)
