"""Columns written at once are the bytes that the codec writes record by record."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import Codec, schema_of, without_logical_types
from schemas.column_writer import ColumnWriter, Encoded, Ragged, Same, Some
from schemas.errors import Misconfigured, Rejected
from schemas.events import ItemFeatures, Recommendation, Status, UserEvent
from schemas.registry import MemoryRegistry
from tests.records import records

NUMBERS = {"long": np.int64, "int": np.int64, "float": np.float32, "boolean": np.bool_}


def column(node: Any, values: list[Any]) -> Any:
    """Values of one field as a column."""
    if isinstance(node, list):
        inner = next(part for part in node if part != "null")
        if inner in ("string", "bytes"):
            return values
        present = np.array([value is not None for value in values], bool)
        return Some(present, columns(inner, [value for value in values if value is not None]))
    kind = node["type"] if isinstance(node, dict) else node
    if kind == "enum":
        return np.array([node["symbols"].index(value.value) for value in values], np.int64)
    if kind == "array":
        splits = np.cumsum([0, *map(len, values)])
        return Ragged(splits, column(node["items"], [one for value in values for one in value]))
    if kind == "record":
        return columns(node, values)
    if isinstance(kind, dict):
        return column(kind, values)
    return values if kind in ("string", "bytes") else np.array(values, NUMBERS[kind])


def columns(node: Any, values: list[Any]) -> dict[str, Any]:
    return {
        field["name"]: column(field["type"], [getattr(value, field["name"]) for value in values])
        for field in node["fields"]
    }


@pytest.mark.parametrize("record_type", [Recommendation, ItemFeatures])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_records_are_the_codecs_bytes(record_type: type, data: st.DataObject) -> None:
    values = data.draw(st.lists(records(record_type), max_size=5))
    codec = Codec(MemoryRegistry(), record_type, "t")
    node = without_logical_types(json.loads(schema_of(record_type)))
    found = ColumnWriter(codec, record_type).encode(columns(node, values), len(values))
    assert found == codec.encode_many(values)


def base(n: int) -> dict[str, Any]:
    """Columns of n answers; each field the same in all."""
    empty = Recommendation(request_id="r", user_id="u", event_time=1, status=Status.OK)
    node = without_logical_types(json.loads(schema_of(Recommendation)))
    return columns(node, [empty] * n)


def test_one_value_for_all_and_matrices_for_arrays() -> None:
    codec = Codec(MemoryRegistry(), Recommendation, "t")
    longs = np.array([[1, -(2**62)], [3, 4]])
    floats = np.array([[0.5], [np.inf]], np.float32)
    found = ColumnWriter(codec, Recommendation).encode(
        base(2)
        | {
            "model_name": Same("m"),
            "model_version": Same(7),
            "message": Same(None),
            "surface": Same("home"),
            "stale": Same(value=True),
            "user_longs": longs,
            "user_floats": floats,
        },
        2,
    )
    expected = [
        Recommendation(
            request_id="r",
            user_id="u",
            event_time=1,
            status=Status.OK,
            model_name="m",
            model_version=7,
            surface="home",
            stale=True,
            user_longs=tuple(row),
            user_floats=tuple(values),
        )
        for row, values in zip(longs.tolist(), floats.tolist(), strict=True)
    ]
    assert found == codec.encode_many(expected)


def test_texts_that_are_encoded_already() -> None:
    codec = Codec(MemoryRegistry(), Recommendation, "t")
    writer = ColumnWriter(codec, Recommendation)
    content = "añb".encode()
    encoded = Encoded(np.frombuffer(content, np.uint8), np.array([0, 3, 4]))
    assert encoded.texts() == ["añ", "b"]
    given, expected = base(2) | {"request_id": encoded}, base(2) | {"request_id": ["añ", "b"]}
    assert writer.encode(given, 2) == writer.encode(expected, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"request_id": ["lone \ud800", "b"]},
        {"request_id": ["one"]},
        {"request_id": Encoded(np.zeros(3, np.uint8), np.array([0, 3]))},
        {"request_id": Encoded(np.zeros(3, np.uint8), np.array([0, 2, 4]))},
        {"request_id": Encoded(np.zeros(3, np.uint8), np.array([0, 4, 3]))},
        {"request_id": [None, "b"]},
        {"events_partition": np.array([1, 2**31])},
        {"events_partition": np.array([-(2**31) - 1, 1])},
        {"user_longs": Ragged(np.array([0, 1, 3]), np.array([1]))},
        {"user_longs": Ragged(np.array([0, 2, 1]), np.array([1]))},
        {"user_longs": Ragged(np.array([1, 1, 2]), np.array([1, 2]))},
        {"event_time": np.zeros((2, 2), np.int64)},
        {"more": Same(1)},
        {"experiments": np.zeros((2, 1))},
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    codec = Codec(MemoryRegistry(), Recommendation, "t")
    with pytest.raises(Rejected, match="Recommendation cannot be encoded"):
        ColumnWriter(codec, Recommendation).encode(base(2) | wrong, 2)


def test_a_type_that_it_does_not_know_is_refused_when_it_is_made() -> None:
    codec = Codec(MemoryRegistry(), UserEvent, "t")
    with pytest.raises(Misconfigured, match="Avro type 'double'"):
        ColumnWriter(codec, UserEvent)
