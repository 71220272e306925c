import io
import json
from dataclasses import fields

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import FILE_OF_RECORD, Codec, Decoder, schema_of
from schemas.errors import Reason, Rejected
from schemas.events import RECORD_OF_TOPIC, EventType, UserEvent
from schemas.registry import MemoryRegistry
from tests.records import records

EVENT = UserEvent(event_id="e", user_id="u", event_type=EventType.CLICK, event_time=7)


def framed(schema_id: int, schema: dict[str, object], value: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), value)
    return b"\0" + schema_id.to_bytes(4, "big") + stream.getvalue()


def test_every_topic_has_a_schema_and_no_schema_is_without_a_topic() -> None:
    assert set(FILE_OF_RECORD) == set(RECORD_OF_TOPIC.values())


@pytest.mark.parametrize("record_type", FILE_OF_RECORD)
def test_schema_and_record_have_the_same_fields_in_the_same_order(record_type: type) -> None:
    schema = json.loads(schema_of(record_type))
    assert [f["name"] for f in schema["fields"]] == [f.name for f in fields(record_type)]
    assert schema["name"] == record_type.__name__


@pytest.mark.parametrize("record_type", FILE_OF_RECORD)
def test_every_field_is_documented(record_type: type) -> None:
    def check(node: object) -> None:
        if isinstance(node, list):
            for part in node:
                check(part)
        elif isinstance(node, dict):
            if node.get("type") == "record":
                assert node.get("doc")
                assert all(f.get("doc") for f in node["fields"]), node["name"]
            for part in node.values():
                check(part)

    check(json.loads(schema_of(record_type)))


def test_the_numbers_of_event_types_are_the_indexes_in_the_schema() -> None:
    symbols = json.loads(schema_of(UserEvent))["fields"][3]["type"]["symbols"]
    assert symbols == [t.name for t in sorted(EventType)]


@pytest.mark.parametrize("record_type", FILE_OF_RECORD)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_was_encoded_is_decoded(record_type: type, data: st.DataObject) -> None:
    codec = Codec(MemoryRegistry(), record_type, "t")
    value = data.draw(records(record_type))
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _: None, Reason.NOT_FRAMED),
        (lambda _: b"", Reason.NOT_FRAMED),
        (lambda good: good[:5], Reason.NOT_FRAMED),
        (lambda good: b"\1" + good[1:], Reason.NOT_FRAMED),
        (lambda good: b"\0\0\0\0\x09" + good[5:], Reason.UNKNOWN_SCHEMA),
        (lambda good: good[:-1], Reason.UNDECODABLE),
        (lambda good: good + b"\0", Reason.UNDECODABLE),
        (lambda good: good.replace(b"e", b"\xff", 1), Reason.UNDECODABLE),
        (lambda good: good[:5] + b"\xff" * 12, Reason.UNDECODABLE),
    ],
)
def test_bad_bytes_are_rejected_with_their_reason(damage, reason) -> None:  # type: ignore[no-untyped-def]
    codec = Codec(MemoryRegistry(), UserEvent, "t")
    with pytest.raises(Rejected) as caught:
        codec.decode(damage(codec.encode(EVENT)))
    assert caught.value.reason is reason


def test_a_number_past_32_bits_in_an_int_is_rejected_both_ways() -> None:
    codec = Codec(MemoryRegistry(), UserEvent, "t")
    with pytest.raises(Rejected):
        codec.encode(
            UserEvent(
                event_id="e", user_id="u", event_type=EventType.VIEW, event_time=1, position=1 << 31
            )
        )


def test_an_older_writers_record_takes_defaults_and_a_newer_ones_extras_are_dropped() -> None:
    registry = MemoryRegistry()
    writer = json.loads(schema_of(UserEvent))
    kept = ("user_id", "event_id", "event_type", "event_time")
    older = {f["name"]: f for f in writer["fields"]}
    writer["fields"] = [*(older[name] for name in kept), {"name": "extra", "type": "string"}]
    writer["name"], writer["namespace"] = "TheirEvent", "com.example"
    schema_id = registry.register("s", json.dumps(writer))
    value = {
        "user_id": "u", "event_id": "e", "event_type": "CLICK", "event_time": 7, "extra": "x",
    }  # fmt: skip
    decoded = Decoder(registry, UserEvent).decode(framed(schema_id, writer, value))
    assert decoded == EVENT


def test_an_event_type_from_the_future_is_unknown() -> None:
    registry = MemoryRegistry()
    writer = json.loads(schema_of(UserEvent))
    writer["fields"][3]["type"]["symbols"] = ["TELEPATHY", "CLICK", "UNKNOWN"]
    schema_id = registry.register("s", json.dumps(writer))
    decoder = Decoder(registry, UserEvent)
    base = {"event_id": "e", "user_id": "u", "event_time": 7}
    for name, expected in (("TELEPATHY", EventType.UNKNOWN), ("CLICK", EventType.CLICK)):
        data = framed(schema_id, writer, {**base, "event_type": name})
        assert decoder.decode(data).event_type is expected
