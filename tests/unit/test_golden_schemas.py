"""Events of every released schema must decode for ever, and today's schema must read them."""

import base64
import json
from dataclasses import MISSING, asdict
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from schemas.codec import FILE_OF_RECORD, Decoder, schema_of
from schemas.columns import ColumnReader
from schemas.compat import compatible, parse, unreadable
from schemas.registry import MemoryRegistry

GOLDEN = Path(__file__).parents[1] / "golden" / "schemas"
RECORD_OF_FILE = {name: record_type for record_type, name in FILE_OF_RECORD.items()}
VERSIONS = sorted(path.name.removesuffix(".avsc") for path in GOLDEN.glob("*.avsc"))


def as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b16encode(value).decode()}
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, dict):
        return {name: as_json(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(part) for part in value]
    return value


def test_every_schema_has_a_golden() -> None:
    assert {version.split(".")[0] for version in VERSIONS} == set(RECORD_OF_FILE)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_event_decodes_to_its_json(version: str) -> None:
    record_type = RECORD_OF_FILE[version.split(".", maxsplit=1)[0]]
    registry = MemoryRegistry()
    schema_id = registry.register("golden", (GOLDEN / f"{version}.avsc").read_text())
    data = b"\0" + schema_id.to_bytes(4, "big") + (GOLDEN / f"{version}.bin").read_bytes()
    expected = json.loads((GOLDEN / f"{version}.json").read_text())
    found = as_json(asdict(Decoder(registry, record_type).decode(data)))
    # A field that came later is not in an older golden: its default is there instead.
    assert {name: found[name] for name in expected} == expected
    columns = ColumnReader(registry, record_type).read([data] * 3)
    assert len(columns.frame) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_todays_schema_is_fully_compatible_with_every_golden(version: str) -> None:
    today = schema_of(RECORD_OF_FILE[version.split(".", maxsplit=1)[0]])
    golden = (GOLDEN / f"{version}.avsc").read_text()
    assert compatible(today, [golden], "FULL") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_optional_field_has_a_default(version: str) -> None:
    record_type = RECORD_OF_FILE[version.split(".", maxsplit=1)[0]]
    schema = json.loads(schema_of(record_type))
    optional = {f.name for f in record_type.__dataclass_fields__.values() if has_default(f)}
    assert {f["name"] for f in schema["fields"] if "default" in f} == optional
    for part in schema["fields"]:
        assert not isinstance(part["type"], list) or part["default"] is None


def has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def test_an_older_writer_without_optional_fields_is_readable() -> None:
    for record_type in FILE_OF_RECORD:
        schema = json.loads(schema_of(record_type))
        older = {**schema, "fields": [f for f in schema["fields"] if "default" not in f]}
        assert unreadable(reader=parse(json.dumps(schema)), writer=parse(json.dumps(older))) == []
