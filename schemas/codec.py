"""
One record at a time: frozen values to framed Avro and back. The only importer of fastavro.

A frame is 0x00, the writer's schema id (4 bytes, big-endian) and the datum. Times stay integers:
logical types are taken off before fastavro sees a schema.
"""

from __future__ import annotations

import io
import json
import struct
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum, IntEnum
from importlib.resources import files
from operator import attrgetter
from typing import IO, Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import fastavro

from schemas import events
from schemas.errors import Misconfigured, Reason, Rejected
from schemas.registry import Registry

T = TypeVar("T")
Plain = dict[str, Any]

FRAME_BYTES = 5
_FRAME = struct.Struct(">bI")

FILE_OF_RECORD: Mapping[type, str] = {
    events.UserEvent: "user_event",
    events.Item: "item",
    events.ItemFeatures: "item_features",
    events.RecommendationRequest: "recommendation_request",
    events.Recommendation: "recommendation",
    events.DeadLetter: "dead_letter",
    events.DriftAlert: "drift_alert",
    events.RetrainTrigger: "retrain_trigger",
    events.Release: "release",
    events.ReleaseTransition: "release_transition",
}


def schema_of(record_type: type) -> str:
    """
    The Avro schema of a record type, as text.

    >>> schema_of(events.UserEvent)[:45].split()
    ['{', '"type":', '"record",', '"name":', '"UserEvent",']
    """
    name = FILE_OF_RECORD[record_type]
    return files("schemas").joinpath(f"avro/{name}.avsc").read_text("utf-8")


def frame_id(data: bytes | None) -> int:
    """
    The writer's schema id of a framed value.

    Raises:
        Rejected: not framed.

    >>> frame_id(bytes.fromhex("000000000700"))
    7
    """
    if data is None:
        raise Rejected(Reason.NOT_FRAMED, "the record has no value")
    if len(data) <= FRAME_BYTES or data[0] != 0:
        raise Rejected(
            Reason.NOT_FRAMED,
            f"{len(data)} bytes starting {data[:FRAME_BYTES].hex()!r}: expected 00, a 4-byte "
            "schema id and an Avro datum",
        )
    return int(_FRAME.unpack_from(data)[1])


class Decoder(Generic[T]):
    """Framed bytes to values of one record type, whoever wrote them. Not thread-safe."""

    def __init__(self, registry: Registry, record_type: type[T]) -> None:
        self._registry = registry
        self._record_type = record_type
        self._reader = _parsed(schema_of(record_type))
        self._check = _checker(self._reader)
        self._build = _builder(record_type)
        self._writers: dict[int, tuple[Any, Any]] = {}

    def plain(self, data: bytes | None) -> Plain:
        """
        The record as the reader's fields by name; enums by symbol.

        Raises:
            Rejected: the bytes do not hold exactly one such record.
            RegistryUnavailable: the writer's schema is not known yet and cannot be asked for.
        """
        schema_id = frame_id(data)
        writer, reader = self._writer(schema_id)
        stream = io.BytesIO(data or b"")
        stream.seek(FRAME_BYTES)
        try:
            record = fastavro.schemaless_reader(stream, writer, reader)
            self._check(record)
        except Exception as error:
            # fastavro raises whatever the bytes provoke: EOFError, IndexError, UnicodeDecodeError,
            # OverflowError, SchemaResolutionError. All mean that this record is bad.
            raise Rejected(
                Reason.UNDECODABLE, f"schema {schema_id}: {type(error).__name__}: {error!s:.300}"
            ) from error
        left = len(data or b"") - stream.tell()
        if left:
            raise Rejected(Reason.UNDECODABLE, f"schema {schema_id}: {left} bytes left over")
        return record

    def decode(self, data: bytes | None) -> T:
        """
        The value in the bytes.

        Raises:
            Rejected: the bytes do not hold exactly one such record.
            RegistryUnavailable: the writer's schema is not known yet and cannot be asked for.
        """
        value: T = self._build(self.plain(data))
        return value

    def _writer(self, schema_id: int) -> tuple[Any, Any]:
        """The writer's schema, and the reader's where it is another one."""
        if schema_id not in self._writers:
            text = self._registry.schema(schema_id)
            try:
                writer = _parsed(text)
                reader = None if writer == self._reader else _parsed_for(self._reader, writer)
                self._writers[schema_id] = (writer, reader)
            except Exception as error:
                raise Rejected(
                    Reason.UNDECODABLE, f"schema {schema_id} is not a usable Avro schema: {error}"
                ) from error
        return self._writers[schema_id]


class Codec(Decoder[T]):
    """Values of one record type to framed bytes of one topic, and back. Not thread-safe."""

    def __init__(self, registry: Registry, record_type: type[T], topic: str) -> None:
        super().__init__(registry, record_type)
        self.topic = topic
        self._to_plain = _unbuilder(record_type)
        self._prefix: bytes | None = None

    def encode(self, value: T) -> bytes:
        """
        The framed bytes. Registers the schema under `<topic>-value` on first use.

        Raises:
            Rejected: the value does not fit its schema.
            RegistryUnavailable: the schema could not be registered.
        """
        stream = io.BytesIO()
        stream.write(self.prefix())
        try:
            plain = self._to_plain(value)
            self._check(plain)
            fastavro.schemaless_writer(stream, self._reader, plain, disable_tuple_notation=True)
        except Exception as error:
            raise Rejected(
                Reason.OUT_OF_RANGE, f"{type(value).__name__} cannot be encoded: {error}"
            ) from error
        return stream.getvalue()

    def prefix(self) -> bytes:
        """What frames every value. Registers the schema on first use, or raises as `encode`."""
        if self._prefix is None:
            subject = f"{self.topic}-value"
            schema_id = self._registry.register(subject, schema_of(self._record_type))
            self._prefix = _FRAME.pack(0, schema_id)
        return self._prefix

    def encode_many(self, values: Iterable[T]) -> list[bytes]:
        """`encode` of each."""
        encode = self.encode
        return [encode(value) for value in values]


class ContainerFile:
    """An Avro container file in pieces. Deflate: the one compression that every reader knows."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._stream = io.BytesIO()
        self._writer = fastavro.write.Writer(self._stream, schema, codec="deflate")

    def add(self, records: Iterable[Plain]) -> bytes:
        """The bytes that hold these records, after those of all records before."""
        write = self._writer.write
        for record in records:
            write(record)
        self._writer.flush()
        piece = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        return piece


def read_container(stream: IO[bytes]) -> Iterator[Plain]:
    """
    The records of an Avro container file.

    Raises:
        Rejected: the bytes are none, or end too early.
    """
    try:
        yield from fastavro.reader(stream)
    except Exception as error:
        raise Rejected(Reason.UNDECODABLE, f"not a whole Avro container: {error}") from error


def _parsed(text: str) -> Any:
    return fastavro.parse_schema(without_logical_types(json.loads(text)))


def _parsed_for(reader: Any, writer: Any) -> Any:
    return fastavro.parse_schema(_renamed(reader, writer))


def _renamed(reader: Any, writer: Any) -> Any:
    """The reader's schema with the writer's type names as aliases: producers name as they like."""
    if isinstance(reader, list):
        inner = next((w for w in _branches(writer) if w != "null"), None)
        return [r if r == "null" else _renamed(r, inner) for r in reader]
    writer = next((w for w in _branches(writer) if w != "null"), None)
    if not (isinstance(reader, dict) and isinstance(writer, dict)):
        return reader
    kept = {k: v for k, v in reader.items() if not k.startswith("__")}
    if "name" in kept and "name" in writer:
        kept["aliases"] = [writer["name"]]
    if "items" in kept and "items" in writer:
        kept["items"] = _renamed(kept["items"], writer["items"])
    if "fields" in kept and "fields" in writer:
        written = {f["name"]: f["type"] for f in writer["fields"]}
        kept["fields"] = [
            {**f, "type": _renamed(f["type"], written.get(f["name"]))} for f in kept["fields"]
        ]
    return kept


def _branches(schema: Any) -> list[Any]:
    return schema if isinstance(schema, list) else [schema]


def without_logical_types(schema: Any) -> Any:
    """
    The schema with logical types taken off: the same bytes, read as plain integers.

    >>> without_logical_types({"type": "long", "logicalType": "timestamp-millis"})
    {'type': 'long'}
    """
    if isinstance(schema, list):
        return [without_logical_types(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: v for k, v in schema.items() if k != "logicalType"}
    for key in ("type", "items", "values"):
        if key in kept:
            kept[key] = without_logical_types(kept[key])
    if "fields" in kept:
        kept["fields"] = [{**f, "type": without_logical_types(f["type"])} for f in kept["fields"]]
    return kept


# --- ranges that fastavro does not check ------------------------------------------------------

Check = Callable[[Any], None]


def _checker(schema: Any) -> Check:
    """A function that raises when an `int` in the record does not fit 32 bits."""
    found = [(f["name"], _field_check(f["type"])) for f in schema["fields"]]
    checks = [(name, check) for name, check in found if check is not None]

    def check_record(record: Plain) -> None:
        for name, check in checks:
            check(record[name])

    return check_record


def _field_check(kind: Any) -> Check | None:
    if isinstance(kind, list):
        inner = next((c for c in map(_field_check, kind) if c), None)
        return None if inner is None else lambda value: None if value is None else inner(value)
    if isinstance(kind, dict):
        match kind["type"]:
            case "record":
                return _checker(kind)
            case "array":
                return _array_check(_field_check(kind["items"]))
            case other:
                return _field_check(other)
    return _check_int if kind == "int" else None


def _array_check(inner: Check | None) -> Check | None:
    if inner is None:
        return None

    def check_all(values: Iterable[Any]) -> None:
        for value in values:
            inner(value)

    return check_all


def _check_int(value: int) -> None:
    if not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"{value} does not fit an Avro int")


# --- values from and to fastavro's dictionaries ------------------------------------------------

Step = Callable[[Any], Any]


def _builder(record_type: type) -> Step:
    steps = _steps(record_type, _build_step)

    def build(plain: Plain) -> Any:
        for name, step in steps:
            plain[name] = step(plain[name])
        return record_type(**plain)

    return build


def _unbuilder(record_type: type) -> Step:
    names = [f.name for f in fields(record_type)]
    if len(names) < 2:
        raise Misconfigured(f"{record_type.__name__} needs two fields or more")
    steps = _steps(record_type, _unbuild_step)
    values_of = attrgetter(*names)

    def unbuild(value: Any) -> Plain:
        plain = dict(zip(names, values_of(value), strict=True))
        for name, step in steps:
            plain[name] = step(plain[name])
        return plain

    return unbuild


def _steps(record_type: type, step_of: Callable[[Any], Step | None]) -> list[tuple[str, Step]]:
    hints = get_type_hints(record_type)
    found = [(f.name, step_of(hints[f.name])) for f in fields(record_type)]
    return [(name, step) for name, step in found if step is not None]


def _optional(hint: Any) -> Any | None:
    """X for X | None, else None."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(arg for arg in get_args(hint) if arg is not types.NoneType)
    return None


def _nullable(step: Step | None) -> Step | None:
    return None if step is None else lambda value: None if value is None else step(value)


def _build_step(hint: Any) -> Step | None:
    inner = _optional(hint)
    if inner is not None:
        return _nullable(_build_step(inner))
    if get_origin(hint) is tuple:
        item = _build_step(get_args(hint)[0])
        return tuple if item is None else lambda values: tuple(map(item, values))
    if is_dataclass(hint) and isinstance(hint, type):
        return _builder(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint.__members__.__getitem__
    return None


def _unbuild_step(hint: Any) -> Step | None:
    inner = _optional(hint)
    if inner is not None:
        return _nullable(_unbuild_step(inner))
    if get_origin(hint) is tuple:
        item = _unbuild_step(get_args(hint)[0])
        return None if item is None else lambda values: [item(value) for value in values]
    if is_dataclass(hint) and isinstance(hint, type):
        return _unbuilder(hint)
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        # A plain number is taken too: EventType(3) and 3 are equal everywhere else, but not in
        # their hashes.
        names = {member: member.name for member in hint}
        return (names | {int(member): name for member, name in names.items()}).__getitem__
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value: hint(value).value
    return None
