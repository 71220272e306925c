"""
What a schema registry knows, as a plain value in memory: subjects, versions, ids, compatibility.

Behind both the in-process registry and the small server; no I/O here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

from schemas.compat import LEVELS, Level, compatible, parse


class RegistryFault(Exception):
    """A request that the registry refuses, with Confluent's error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        """The first three digits of the code.

        >>> RegistryFault(40401, "Subject not found").http_status
        404
        """
        return int(str(self.code)[:3])


SUBJECT_NOT_FOUND: Final = 40401
VERSION_NOT_FOUND: Final = 40402
SCHEMA_NOT_FOUND: Final = 40403
SUBJECT_NOT_SOFT_DELETED: Final = 40405
VERSION_NOT_SOFT_DELETED: Final = 40407
CONFIG_NOT_FOUND: Final = 40408
INCOMPATIBLE: Final = 409
INVALID_SCHEMA: Final = 42201
INVALID_VERSION: Final = 42202
INVALID_LEVEL: Final = 42203


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a subject."""

    subject: str
    version: int
    schema_id: int
    schema: str


@dataclass(slots=True)
class _Subject:
    versions: dict[int, int] = field(default_factory=dict)  # version -> schema id
    deleted: set[int] = field(default_factory=set)  # versions that can be deleted for good
    last: int = 0  # version numbers are never given twice


def canonical(schema: str) -> str:
    """
    The text by which two schemas are the same: white space and the order of keys do not count.

    >>> canonical('{"name": "E",  "type": "enum"}') == canonical('{"type":"enum","name":"E"}')
    True
    """
    return json.dumps(json.loads(schema), sort_keys=True, separators=(",", ":"))


class Subjects:
    """Subjects and schemas by id. Not thread-safe."""

    def __init__(self) -> None:
        self._by_id: dict[int, str] = {}
        self._ids: dict[str, int] = {}
        self._subjects: dict[str, _Subject] = {}
        self._levels: dict[str, Level] = {}
        self.default_level: Level = "BACKWARD"

    # --- schemas by id

    def schema(self, schema_id: int) -> str:
        """The text registered first under this id."""
        if schema_id not in self._by_id:
            raise RegistryFault(SCHEMA_NOT_FOUND, f"Schema {schema_id} not found")
        return self._by_id[schema_id]

    def uses(self, schema_id: int) -> list[Version]:
        """Every subject and version that has this schema."""
        self.schema(schema_id)
        return [
            self.version(name, str(number))
            for name, subject in sorted(self._subjects.items())
            for number, found in subject.versions.items()
            if found == schema_id
        ]

    # --- subjects

    def names(self) -> list[str]:
        """Subjects that have a version."""
        return sorted(name for name, subject in self._subjects.items() if subject.versions)

    def versions(self, subject: str) -> list[int]:
        """Version numbers of a subject, ascending."""
        return sorted(self._subject(subject).versions)

    def version(self, subject: str, version: str) -> Version:
        """One version of a subject; `version` is a number or "latest"."""
        known = self._subject(subject).versions
        number = max(known) if version in ("latest", "-1") else _version_number(version)
        if number not in known:
            raise RegistryFault(VERSION_NOT_FOUND, f"Version {number} not found.")
        schema_id = known[number]
        return Version(
            subject=subject, version=number, schema_id=schema_id, schema=self._by_id[schema_id]
        )

    def lookup(self, subject: str, schema: str) -> Version:
        """The version of a subject that has this schema."""
        known = self._subject(subject).versions
        schema_id = self._ids.get(_checked(schema))
        for number, found in known.items():
            if found == schema_id:
                return self.version(subject, str(number))
        raise RegistryFault(SCHEMA_NOT_FOUND, "Schema not found")

    def register(self, subject: str, schema: str) -> Version:
        """Give the subject this schema: an old version if it has it, else a new one."""
        text = _checked(schema)
        if self._subjects.get(subject, _Subject()).versions:
            try:
                return self.lookup(subject, schema)
            except RegistryFault as fault:
                if fault.code != SCHEMA_NOT_FOUND:
                    raise
        problems = self.problems(subject, schema)
        if problems:
            raise RegistryFault(
                INCOMPATIBLE,
                f"Schema being registered is incompatible with an earlier schema for subject "
                f'"{subject}": {"; ".join(problems)}',
            )
        schema_id = self._ids.setdefault(text, len(self._by_id) + 1)
        self._by_id.setdefault(schema_id, schema)
        entry = self._subjects.setdefault(subject, _Subject())
        entry.last += 1
        entry.versions[entry.last] = schema_id
        return self.version(subject, str(entry.last))

    def problems(self, subject: str, schema: str, version: str | None = None) -> list[str]:
        """
        What stands against the schema as the subject's next one; empty when compatible.

        `version` None: against what the level asks for, else against that version alone.
        """
        _checked(schema)
        level = self.level(subject)
        if version is not None:
            earlier = [self.version(subject, version).schema]
        elif self._subjects.get(subject, _Subject()).versions:
            earlier = [self.version(subject, str(n)).schema for n in self.versions(subject)]
        else:
            earlier = []
        return compatible(schema, earlier, level)

    def delete(self, subject: str, version: str | None = None) -> list[int]:
        """Take a version, or all, from a subject. Schemas stay readable by id, for ever."""
        if version is None:
            gone = self.versions(subject)
        else:
            gone = [self.version(subject, version).version]
        entry = self._subjects[subject]
        for number in gone:
            del entry.versions[number]
        entry.deleted.update(gone)
        return gone

    def forget(self, subject: str, version: str | None = None) -> list[int]:
        """The second step of Confluent's deletion for good; the first is `delete`."""
        deleted = self._subjects.get(subject, _Subject()).deleted
        gone = sorted(deleted) if version is None else [_version_number(version)]
        if not gone or not deleted.issuperset(gone):
            code = SUBJECT_NOT_SOFT_DELETED if version is None else VERSION_NOT_SOFT_DELETED
            raise RegistryFault(code, f"Subject '{subject}' was not deleted first")
        deleted.difference_update(gone)
        return gone

    def restore(self, version: Version) -> None:
        """Put back a version that `register` once made, unchecked."""
        self._by_id.setdefault(version.schema_id, version.schema)
        self._ids.setdefault(canonical(version.schema), version.schema_id)
        entry = self._subjects.setdefault(version.subject, _Subject())
        entry.versions[version.version] = version.schema_id
        entry.last = max(entry.last, version.version)

    # --- compatibility levels

    def level(self, subject: str) -> Level:
        """The subject's own level, or the default."""
        return self._levels.get(subject, self.default_level)

    def own_level(self, subject: str) -> Level:
        """The subject's own level; a fault when it has none."""
        if subject not in self._levels:
            raise RegistryFault(
                CONFIG_NOT_FOUND,
                f"Subject '{subject}' does not have subject-level compatibility configured",
            )
        return self._levels[subject]

    def set_level(self, subject: str | None, level: str) -> Level:
        """Set the level of a subject, or (None) the default."""
        found = next((known for known in LEVELS if known == level), None)
        if found is None:
            raise RegistryFault(
                INVALID_LEVEL, f"Invalid compatibility level {level!r}: one of {', '.join(LEVELS)}"
            )
        if subject is None:
            self.default_level = found
        else:
            self._levels[subject] = found
        return found

    def clear_level(self, subject: str) -> Level:
        """Back to the default. Returns the level that was."""
        was = self.own_level(subject)
        del self._levels[subject]
        return was

    def _subject(self, name: str) -> _Subject:
        found = self._subjects.get(name)
        if found is None or not found.versions:
            raise RegistryFault(SUBJECT_NOT_FOUND, f"Subject '{name}' not found.")
        return found


def _checked(schema: str) -> str:
    try:
        parse(schema)
    except ValueError as error:
        raise RegistryFault(INVALID_SCHEMA, f"Invalid schema: {error}") from error
    return canonical(schema)


def _version_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 1 << 31:
        raise RegistryFault(
            INVALID_VERSION,
            f"The specified version '{text}' is not a valid version id. Allowed values are "
            'between [1, 2^31-1] and the string "latest"',
        )
    return int(text)
