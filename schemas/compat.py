"""
Whether data of one Avro schema can be read with another: the rules of schema resolution.

Works on the schemas' JSON alone; neither fastavro nor a registry is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Level = Literal[
    "NONE",
    "BACKWARD",  # the new schema reads what the last one wrote
    "BACKWARD_TRANSITIVE",  # ... what every earlier one wrote
    "FORWARD",  # the last schema reads what the new one writes
    "FORWARD_TRANSITIVE",
    "FULL",  # both ways
    "FULL_TRANSITIVE",
]
LEVELS: tuple[Level, ...] = get_args(Level)

PRIMITIVES = frozenset(["null", "boolean", "int", "long", "float", "double", "bytes", "string"])
_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


@dataclass(frozen=True, slots=True)
class Schema:
    """A parsed schema: its root and its named types by full name."""

    root: Any
    names: dict[str, dict[str, Any]] = field(default_factory=dict)

    def resolved(self, node: Any) -> Any:
        """The node itself, or what its name stands for; a primitive as its name."""
        if isinstance(node, list):
            return node
        kind = node["type"] if isinstance(node, dict) else node
        if isinstance(kind, (dict, list)):
            return self.resolved(kind)
        if kind in PRIMITIVES:
            return kind
        return self._named(node) if isinstance(node, str) else node

    def _named(self, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        # A short name inside a namespace: `parse` has seen that it is known.
        return next(d for full, d in self.names.items() if _last(full) == name)


def parse(text: str) -> Schema:
    """
    Parse and check an Avro schema.

    Raises:
        ValueError: not JSON, or not an Avro schema; the message names the place.

    >>> parse('{"type": "record", "name": "R", "fields": [{"name": "a", "type": "it"}]}')
    Traceback (most recent call last):
    ValueError: R.a: unknown type 'it'
    """
    try:
        root = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    schema = Schema(root)
    _check(schema, root, "", "")
    return schema


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _check(schema: Schema, node: Any, namespace: str, path: str) -> None:  # noqa: C901, PLR0912
    match node:
        case str():
            if node not in PRIMITIVES and _full_name(node, namespace) not in schema.names:
                raise ValueError(f"{path or 'schema'}: unknown type {node!r}")
        case list():
            for part in node:
                _check(schema, part, namespace, path)
        case {"type": "record" | "error" | "enum" | "fixed"}:
            _check_named(schema, node, namespace, path)
        case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
            _check(schema, inner, namespace, path)
        case {"type": "array" | "map"}:
            raise ValueError(f"{path or 'schema'}: {node['type']} without its element type")
        case {"type": inner}:
            _check(schema, inner, namespace, path)
        case _:
            raise ValueError(f"{path or 'schema'}: {node!r} is not a type")


def _check_named(schema: Schema, node: dict[str, Any], namespace: str, path: str) -> None:
    name = node.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path or 'schema'}: {node['type']} without a name")
    full = _full_name(name, node.get("namespace", namespace))
    if full in schema.names:
        raise ValueError(f"{path or 'schema'}: {full!r} is defined twice")
    schema.names[full] = node
    match node:
        case {"type": "enum", "symbols": [*symbols]} if symbols and len(set(symbols)) == len(
            symbols
        ):
            return
        case {"type": "fixed", "size": int()}:
            return
        case {"type": "record" | "error", "fields": [*found]}:
            inner = full.rpartition(".")[0]
            for part in found:
                if not (isinstance(part, dict) and "name" in part and "type" in part):
                    raise ValueError(f"{full}: {part!r} is not a field")
                _check(schema, part["type"], inner, f"{name}.{part['name']}")
        case _:
            raise ValueError(f"{full}: incomplete {node['type']}")


def compatible(new: str, earlier: Sequence[str], level: Level) -> list[str]:
    """
    What stands against `new` after `earlier` (oldest first) at a compatibility level.

    Returns:
        Problems, empty when compatible.
    """
    if level == "NONE" or not earlier:
        return []
    against = earlier if level.endswith("_TRANSITIVE") else earlier[-1:]
    candidate = parse(new)
    problems: list[str] = []
    for text in against:
        other = parse(text)
        if level.startswith(("BACKWARD", "FULL")):
            problems += unreadable(reader=candidate, writer=other)
        if level.startswith(("FORWARD", "FULL")):
            problems += unreadable(reader=other, writer=candidate)
    return problems


def unreadable(*, reader: Schema, writer: Schema) -> list[str]:
    """Why data of `writer` cannot be read with `reader`; empty when it can."""
    return list(_Resolution(reader, writer).problems(reader.root, writer.root, "", frozenset()))


@dataclass(frozen=True, slots=True)
class _Resolution:
    reader: Schema
    writer: Schema

    def problems(
        self, reader: Any, writer: Any, path: str, seen: frozenset[tuple[int, int]]
    ) -> Iterator[str]:
        r, w = self.reader.resolved(reader), self.writer.resolved(writer)
        pair = (id(r), id(w))
        if isinstance(r, dict) and pair in seen:
            return
        seen |= {pair}
        if isinstance(w, list):
            for branch in w:
                yield from self.problems(r, branch, path, seen)
        elif isinstance(r, list):
            if not any(not list(self.problems(b, w, path, seen)) for b in r):
                yield f"{path or 'schema'}: no branch of the reader's union takes {_kind(w)}"
        else:
            yield from self._single(r, w, path, seen)

    def _single(self, r: Any, w: Any, path: str, seen: frozenset[tuple[int, int]]) -> Iterator[str]:
        kinds = _kind(r), _kind(w)
        if kinds[0] != kinds[1]:
            if kinds[0] not in _PROMOTIONS.get(kinds[1], ()):
                yield f"{path or 'schema'}: {kinds[1]} cannot be read as {kinds[0]}"
            return
        match kinds[0]:
            case "record" | "error":
                yield from self._record(r, w, path, seen)
            case "enum":
                yield from _enum(r, w, path)
            case "fixed" if r["size"] != w["size"]:
                yield f"{path}: fixed of {w['size']} bytes read as {r['size']}"
            case "array":
                yield from self.problems(r["items"], w["items"], path + "[]", seen)
            case "map":
                yield from self.problems(r["values"], w["values"], path + "{}", seen)

    def _record(self, r: Any, w: Any, path: str, seen: frozenset[tuple[int, int]]) -> Iterator[str]:
        if _last(r["name"]) not in {_last(n) for n in (w["name"], *r.get("aliases", ()))} and path:
            # The root's name is not compared: producers name their records as they like.
            yield f"{path}: record {w['name']} read as {r['name']}"
            return
        written = {f["name"]: f for f in w["fields"]}
        for part in r["fields"]:
            at = f"{path}.{part['name']}" if path else str(part["name"])
            names = [part["name"], *part.get("aliases", ())]
            source = next((written[n] for n in names if n in written), None)
            if source is not None:
                yield from self.problems(part["type"], source["type"], at, seen)
            elif "default" not in part:
                yield f"{at}: not written, and has no default"


def _enum(r: Any, w: Any, path: str) -> Iterator[str]:
    missing = [s for s in w["symbols"] if s not in r["symbols"]]
    if missing and "default" not in r:
        yield f"{path}: enum {r['name']} lacks {', '.join(missing)} and has no default"


def _kind(node: Any) -> str:
    return node if isinstance(node, str) else str(node["type"])


def _last(name: str) -> str:
    return name.rpartition(".")[2]
