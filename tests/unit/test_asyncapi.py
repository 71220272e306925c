"""asyncapi.yaml is an AsyncAPI 3.0 document and says exactly what the code says."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import schemas
from schemas.codec import FILE_OF_RECORD, schema_of
from schemas.events import (
    ITEM_FEATURES,
    ITEM_UPDATES,
    MODEL_RELEASES,
    RECORD_OF_TOPIC,
)

FOLDER = Path(schemas.__file__).parent
DOCUMENT: dict[str, Any] = yaml.safe_load((FOLDER / "asyncapi.yaml").read_text())

REFERENCE = {
    "type": "object",
    "properties": {"$ref": {"type": "string", "pattern": "^#/"}},
    "required": ["$ref"],
    "additionalProperties": False,
}
# The parts of the AsyncAPI 3.0 schema that this document uses, closed to anything else.
ASYNCAPI_3 = {
    "type": "object",
    "required": ["asyncapi", "info", "channels", "operations", "components"],
    "additionalProperties": False,
    "properties": {
        "asyncapi": {"const": "3.0.0"},
        "info": {
            "type": "object",
            "required": ["title", "version"],
            "additionalProperties": False,
            "properties": {
                "title": {"type": "string"},
                "version": {"type": "string"},
                "description": {"type": "string"},
                "license": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "url": {"format": "uri"}},
                    "additionalProperties": False,
                },
            },
        },
        "defaultContentType": {"type": "string"},
        "channels": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["address", "messages"],
                "additionalProperties": False,
                "properties": {
                    "address": {"type": "string"},
                    "description": {"type": "string"},
                    "messages": {"type": "object", "additionalProperties": REFERENCE},
                    "bindings": {"type": "object", "required": ["kafka"]},
                },
            },
        },
        "operations": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["action", "channel"],
                "additionalProperties": False,
                "properties": {
                    "action": {"enum": ["send", "receive"]},
                    "channel": REFERENCE,
                    "messages": {"type": "array", "items": REFERENCE},
                },
            },
        },
        "components": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "messages": {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "required": ["name", "payload"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "summary": {"type": "string"},
                            "bindings": {"type": "object", "required": ["kafka"]},
                            "headers": REFERENCE,
                            "payload": {
                                "type": "object",
                                "required": ["schemaFormat", "schema"],
                                "additionalProperties": False,
                                "properties": {
                                    "schemaFormat": {
                                        "const": "application/vnd.apache.avro+json;version=1.9.0"
                                    },
                                    "schema": {"type": "object", "required": ["$ref"]},
                                },
                            },
                        },
                    },
                },
                "schemas": {
                    "type": "object",
                    "additionalProperties": {"type": "object", "required": ["type"]},
                },
            },
        },
    },
}


def found(reference: str) -> Any:
    node: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_the_document_has_asyncapis_structure() -> None:
    jsonschema.Draft7Validator(ASYNCAPI_3).validate(DOCUMENT)


def test_every_reference_leads_somewhere() -> None:
    def check(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node and node["$ref"].startswith("#/"):
                assert found(node["$ref"])
            for part in node.values():
                check(part)
        elif isinstance(node, list):
            for part in node:
                check(part)

    check(DOCUMENT)


def test_it_names_every_topic_and_no_other() -> None:
    addresses = [channel["address"] for channel in DOCUMENT["channels"].values()]
    assert sorted(addresses) == sorted(RECORD_OF_TOPIC)
    used = [
        operation["channel"]["$ref"].split("/")[-1] for operation in DOCUMENT["operations"].values()
    ]
    assert sorted(used) == sorted(DOCUMENT["channels"])


@pytest.mark.parametrize("topic", RECORD_OF_TOPIC)
def test_a_topic_carries_its_record_in_its_schema(topic: str) -> None:
    channel = next(c for c in DOCUMENT["channels"].values() if c["address"] == topic)
    (reference,) = (m["$ref"] for m in channel["messages"].values())
    message = found(reference)
    record_type = RECORD_OF_TOPIC[topic]
    assert message["name"] == record_type.__name__
    file = FOLDER / message["payload"]["schema"]["$ref"]
    assert json.loads(file.read_text()) == json.loads(schema_of(record_type))
    compacted = topic in (ITEM_UPDATES, ITEM_FEATURES, MODEL_RELEASES)
    policy = channel["bindings"]["kafka"]["topicConfiguration"]["cleanup.policy"]
    assert policy == (["compact"] if compacted else ["delete"])


def test_no_schema_file_is_left_out() -> None:
    files = {file.stem for file in (FOLDER / "avro").glob("*.avsc")}
    assert files == set(FILE_OF_RECORD.values())
    messages = DOCUMENT["components"]["messages"].values()
    named = {Path(m["payload"]["schema"]["$ref"]).stem for m in messages}
    assert named == files
