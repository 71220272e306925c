import json

import pytest

from schemas.compat import compatible, parse
from tests.contracts.registry import B_REQUIRED, A, B, record


def of(kind: object, **more: object) -> str:
    return record({"name": "x", "type": kind, **more})


ENUM = {"type": "enum", "name": "E", "symbols": ["A", "B"]}
WIDER = {**ENUM, "symbols": ["A", "B", "C"]}
DEFAULTED = {**ENUM, "default": "A"}


@pytest.mark.parametrize(
    ("new", "old", "reads"),
    [
        (record(A, B), record(A), True),
        (record(A, B_REQUIRED), record(A), False),
        (record(A), record(A, B_REQUIRED), True),
        (of("long"), of("int"), True),
        (of("int"), of("long"), False),
        (of("double"), of("float"), True),
        (of("bytes"), of("string"), True),
        (of(["null", "string"]), of("string"), True),
        (of("string"), of(["null", "string"]), False),
        (of(["null", "long"]), of(["null", "int"]), True),
        (of(WIDER), of(ENUM), True),
        (of(ENUM), of(WIDER), False),
        (of(DEFAULTED), of(WIDER), True),
        (of({"type": "array", "items": "long"}), of({"type": "array", "items": "int"}), True),
        (of({"type": "array", "items": "int"}), of({"type": "array", "items": "string"}), False),
        (of({"type": "map", "values": "int"}), of({"type": "array", "items": "int"}), False),
        (record({**A, "name": "z", "aliases": ["a"]}), record(A), True),
        (of({"type": "long", "logicalType": "timestamp-millis"}), of("long"), True),
        (record(A, name="Other"), record(A), True),
    ],
)
def test_a_schema_reads_what_resolution_allows(new: str, old: str, reads: bool) -> None:
    assert (compatible(new, [old], "BACKWARD") == []) is reads
    assert (compatible(old, [new], "FORWARD") == []) is reads


def test_transitive_looks_at_every_earlier_schema() -> None:
    earlier = [record({"name": "b", "type": "string"}), record(A)]
    new = record(A, B)
    assert compatible(new, earlier, "BACKWARD") == []
    assert compatible(new, earlier, "BACKWARD_TRANSITIVE") != []
    assert compatible(new, earlier, "NONE") == []


def test_a_recursive_schema_is_compatible_with_itself() -> None:
    tree = json.dumps(
        {
            "type": "record", "name": "Tree", "namespace": "n",
            "fields": [{"name": "next", "type": ["null", "Tree"], "default": None}],
        }
    )  # fmt: skip
    assert compatible(tree, [tree], "FULL") == []


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "7", '"nothing"', '{"type": "record"}', '{"type": "record", "name": "R"}',
        '{"type": "array"}', '{"type": "enum", "name": "E", "symbols": []}',
        '{"type": "enum", "name": "E", "symbols": ["A", "A"]}', '{"name": "x"}',
    ],
)  # fmt: skip
def test_what_is_no_schema_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(text)
