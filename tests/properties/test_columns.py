import io
import json
import random
from dataclasses import fields
from enum import Enum

import fastavro
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import FILE_OF_RECORD, Codec, Decoder, schema_of
from schemas.columns import LEAF, ColumnReader
from schemas.errors import Reason, RegistryUnavailable, Rejected
from schemas.events import Attribute, EventType, Recommendation, RecommendationRequest, UserEvent
from schemas.registry import MemoryRegistry
from tests.records import records


def plain(value, kinds=None):  # type: ignore[no-untyped-def]
    """A value as polars gives it back: dicts, lists, symbols' indexes."""
    if isinstance(value, Enum):
        return list(type(value)).index(value)
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return value


def events(n: int, seed: int = 1) -> list[UserEvent]:
    rng = random.Random(seed)
    return [
        UserEvent(
            event_id=f"{rng.getrandbits(64):016x}",
            user_id=f"user-{rng.randrange(1000)}",
            item_id=rng.choice([None, f"item-{i}"]),
            event_type=EventType(rng.randrange(11)),
            event_time=1_700_000_000_000 + i,
            value=rng.choice([None, rng.random()]),
            request_id=rng.choice([None, f"r{i}"]),
            position=rng.choice([None, rng.randrange(100)]),
            surface="home",
            device=rng.choice([None, "ios", "Gerät"]),
            profile=(Attribute(name="age", value="30"),) * rng.choice([0, 0, 2]),
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("record_type", FILE_OF_RECORD)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_columns_equal_the_codec_record_by_record(record_type: type, data: st.DataObject) -> None:
    registry = MemoryRegistry()
    codec = Codec(registry, record_type, "t")
    values = data.draw(st.lists(records(record_type), max_size=5))
    decoded = ColumnReader(registry, record_type).read(codec.encode_many(values))
    assert decoded.frame.to_dicts() == [plain(v) for v in values]
    assert decoded.bad == ()
    assert decoded.index.tolist() == list(range(len(values)))


def test_nulls_are_in_neither_and_the_bad_are_named_at_their_place() -> None:
    registry = MemoryRegistry()
    codec = Codec(registry, UserEvent, "t")
    a, b = codec.encode_many(events(2))
    values = [None, a, b"", b"\0\0\0\0\x63abc", None, b, b[:-2], b"\1" + b[1:]]
    decoded = ColumnReader(registry, UserEvent).read(values)
    assert decoded.index.tolist() == [1, 5]
    assert [(i, r.reason) for i, r in decoded.bad] == [
        (2, Reason.NOT_FRAMED),
        (3, Reason.UNKNOWN_SCHEMA),
        (6, Reason.UNDECODABLE),
        (7, Reason.NOT_FRAMED),
    ]


def test_nothing_gives_an_empty_frame_with_all_columns() -> None:
    reader = ColumnReader(MemoryRegistry(), Recommendation)
    for values in ([], [None, None]):
        decoded = reader.read(values)
        assert decoded.frame.columns == [f.name for f in fields(Recommendation)]
        assert len(decoded.frame) == len(decoded.index) == 0


def test_a_projection_gives_the_columns_asked_for_in_that_order() -> None:
    registry = MemoryRegistry()
    values = Codec(registry, UserEvent, "t").encode_many(events(50))
    reader = ColumnReader(registry, UserEvent)
    asked = ["event_time", "user_id", "event_type"]
    assert reader.read(values, asked).frame.equals(reader.read(values).frame[asked])


def test_invalid_utf8_costs_that_record_alone() -> None:
    registry = MemoryRegistry()
    values = Codec(registry, UserEvent, "t").encode_many(events(100))
    values[40] = values[40].replace(b"user-", b"\xed\xa0\x80-\xff", 1)  # a surrogate and worse
    decoded = ColumnReader(registry, UserEvent).read(values)
    assert [i for i, _ in decoded.bad] == [40]
    assert len(decoded.frame) == 99


@pytest.mark.parametrize("columns", [None, ["user_id", "event_type", "position"]])
def test_2000_random_corruptions_never_change_a_neighbour(columns: list[str] | None) -> None:
    rng = random.Random(4)
    registry = MemoryRegistry()
    good = Codec(registry, UserEvent, "t").encode_many(events(2 * LEAF + 8))
    reader, decoder = ColumnReader(registry, UserEvent), Decoder(registry, UserEvent)
    truth = reader.read(good, columns).frame.rows()
    accepted = 0
    for _ in range(2000):
        at = rng.randrange(len(good))
        values = list(good)
        values[at] = corrupted(values[at], rng)
        decoded = reader.read(values, columns)
        rows = dict(zip(decoded.index.tolist(), decoded.frame.rows(), strict=True))
        lost = [i for i, _ in decoded.bad]
        assert [rows[i] for i in range(len(good)) if i != at] == [
            row for i, row in enumerate(truth) if i != at
        ]
        assert lost in ([], [at])
        accepted += not lost
        if columns is None and not lost:
            # polars takes any branch number of a union for "not null": the one thing that the
            # codec alone refuses. It costs the corrupt record only.
            assert fault(decoder, values[at]) in (None, "IndexError")
        if lost:
            assert fault(decoder, values[at]) is not None
    assert 0 < accepted < 1000


def corrupted(value: bytes, rng: random.Random) -> bytes:
    data = bytearray(value)
    match rng.randrange(4):
        case 0:
            data[rng.randrange(5, len(data))] ^= 1 << rng.randrange(8)
        case 1:
            data[rng.randrange(5, len(data))] = rng.randrange(256)
        case 2:
            del data[rng.randrange(5, len(data)) :]
        case 3:
            cut = rng.randrange(5, len(data))
            data[cut:cut] = rng.randbytes(rng.randrange(1, 6))
    return bytes(data)


def fault(decoder: Decoder[UserEvent], value: bytes) -> str | None:
    try:
        decoder.plain(value)
    except Rejected as rejected:
        return rejected.detail.split(": ")[1]
    return None


# --- other writers -----------------------------------------------------------------------------


def framed(
    registry: MemoryRegistry, schema: dict[str, object], values: list[object]
) -> list[bytes]:
    schema_id = registry.register(f"s{random.random()}", json.dumps(schema))
    parsed = fastavro.parse_schema(schema)
    out = []
    for value in values:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, parsed, value)
        out.append(b"\0" + schema_id.to_bytes(4, "big") + stream.getvalue())
    return out


ENUM = {"type": "enum", "name": "Kind", "symbols": ["LOVE", "CLICK", "UNKNOWN", "VIEW"]}
OTHER_WRITERS: dict[str, list[dict[str, object]]] = {
    "fewer fields, other order, an extra": [
        {"name": "event_time", "type": "long"},
        {"name": "user_id", "type": "string"},
        {"name": "extra", "type": ["null", "string"]},
        {"name": "event_id", "type": "string"},
        {"name": "event_type", "type": ENUM},
    ],
    "narrower numbers, and null taken off": [
        {"name": "event_id", "type": "string"},
        {"name": "user_id", "type": "string"},
        {"name": "item_id", "type": "string"},
        {"name": "event_type", "type": ENUM},
        {"name": "event_time", "type": "int"},
        {"name": "value", "type": ["null", "int"]},
    ],
    "null where a value is required": [
        {"name": "event_id", "type": ["null", "string"]},
        {"name": "user_id", "type": "string"},
        {"name": "event_type", "type": ENUM},
        {"name": "event_time", "type": "long"},
    ],
    "a map, which columns cannot hold": [
        {"name": "event_id", "type": "string"},
        {"name": "user_id", "type": "string"},
        {"name": "event_type", "type": ENUM},
        {"name": "event_time", "type": "long"},
        {"name": "context", "type": {"type": "map", "values": "string"}},
    ],
}


@pytest.mark.parametrize("case", OTHER_WRITERS)
def test_another_writers_schema_gives_what_the_codec_gives(case: str) -> None:
    registry = MemoryRegistry()
    schema = {"type": "record", "name": "Theirs", "fields": OTHER_WRITERS[case]}
    values = [
        {
            "event_id": None if i % 3 == 0 and case.startswith("null") else f"e{i}",
            "user_id": "u", "item_id": "i", "event_type": ENUM["symbols"][i % 4],
            "event_time": i, "value": None if i % 2 else i, "extra": None, "context": {"a": "b"},
        }
        for i in range(20)
    ]  # fmt: skip
    data = framed(registry, schema, values)
    assert_equals_codec(registry, data)


def test_schemas_may_be_mixed_in_one_batch() -> None:
    registry = MemoryRegistry()
    ours = Codec(registry, UserEvent, "t").encode_many(events(30))
    schema = {
        "type": "record",
        "name": "Theirs",
        "fields": OTHER_WRITERS["fewer fields, other order, an extra"],
    }
    value = {"event_time": 1, "user_id": "u", "extra": "x", "event_id": "e", "event_type": "LOVE"}
    theirs = framed(registry, schema, [value] * 30)
    mixed = [x for pair in zip(ours, theirs, strict=True) for x in pair]
    assert_equals_codec(registry, mixed)


def assert_equals_codec(registry: MemoryRegistry, data: list[bytes]) -> None:
    decoder = Decoder(registry, UserEvent)
    expected, bad = [], []
    for i, value in enumerate(data):
        try:
            expected.append(plain(decoder.decode(value)))
        except Rejected as rejected:
            bad.append((i, rejected.reason))
    decoded = ColumnReader(registry, UserEvent).read(data)
    assert decoded.frame.to_dicts() == expected
    assert [(i, r.reason) for i, r in decoded.bad] == bad


def test_an_index_past_the_enum_and_a_number_past_32_bits_are_that_records_fault() -> None:
    registry = MemoryRegistry()
    codec = Codec(registry, UserEvent, "t")
    values = codec.encode_many(events(20))
    schema = json.loads(schema_of(UserEvent))
    for name, wide in (("event_type", 11), ("position", 1 << 40)):
        loose = json.loads(schema_of(UserEvent))
        for part in loose["fields"]:
            if part["name"] == name:
                part["type"] = "long" if name == "event_type" else ["null", "long"]
        record = {
            "event_id": "e",
            "user_id": "u",
            "event_type": "CLICK",
            "event_time": 1,
            name: wide,
        }
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, fastavro.parse_schema(loose), record)
        values.append(values[0][:5] + stream.getvalue())
    assert schema == json.loads(schema_of(UserEvent))
    decoded = ColumnReader(registry, UserEvent).read(values)
    assert [(i, r.reason) for i, r in decoded.bad] == [
        (20, Reason.UNDECODABLE),
        (21, Reason.UNDECODABLE),
    ]


def test_a_nullable_record_survives() -> None:
    registry = MemoryRegistry()
    codec = Codec(registry, RecommendationRequest, "t")
    values = [RecommendationRequest(request_id=f"r{i}", user_id="u") for i in range(3)]
    frame = ColumnReader(registry, RecommendationRequest).read(codec.encode_many(values)).frame
    assert frame["after_offset"].null_count() == 3
    assert frame["k"].dtype == pl.Int32
    assert frame["k"].to_list() == [10, 10, 10]


class Unreachable(MemoryRegistry):
    def schema(self, schema_id: int) -> str:
        raise RegistryUnavailable("gone")


def test_an_unreachable_registry_rejects_nothing() -> None:
    values = Codec(MemoryRegistry(), UserEvent, "t").encode_many(events(3))
    with pytest.raises(RegistryUnavailable):
        ColumnReader(Unreachable(), UserEvent).read(values)


def test_a_large_batch_comes_out_in_order() -> None:
    registry = MemoryRegistry()
    made = events(20_000)
    values: list[bytes | None] = list(Codec(registry, UserEvent, "t").encode_many(made))
    values[777] = b"\0\0\0\0\1junk"
    decoded = ColumnReader(registry, UserEvent).read(values)
    assert (np.diff(decoded.index) > 0).all()
    assert decoded.frame["event_id"].to_list() == [
        e.event_id for i, e in enumerate(made) if i != 777
    ]
