"""What every schema registry promises; run against each implementation."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from schemas.codec import Codec, schema_of
from schemas.errors import Misconfigured, Reason, Rejected
from schemas.events import EventType, UserEvent
from schemas.registry import Registry


def record(*fields: dict[str, object], name: str = "R") -> str:
    """A record schema with these fields."""
    return json.dumps({"type": "record", "name": name, "fields": list(fields)})


A = {"name": "a", "type": "string"}
B = {"name": "b", "type": ["null", "int"], "default": None}
B_REQUIRED = {"name": "b", "type": "int"}


class RegistryContract:
    """Override `registry`; `unique` gives subjects that no other test uses."""

    @pytest.fixture
    def registry(self) -> Registry:
        raise NotImplementedError

    @pytest.fixture
    def unique(self) -> Callable[[str], str]:
        raise NotImplementedError

    def test_a_registered_schema_is_found_by_its_id(
        self, registry: Registry, unique: Callable[[str], str]
    ) -> None:
        schema_id = registry.register(unique("s"), record(A))
        assert json.loads(registry.schema(schema_id)) == json.loads(record(A))

    def test_the_same_schema_keeps_its_id(
        self, registry: Registry, unique: Callable[[str], str]
    ) -> None:
        subject = unique("s")
        first = registry.register(subject, record(A))
        assert registry.register(subject, record(A)) == first
        assert registry.register(unique("t"), record(A)) == first

    def test_another_schema_gets_another_id(
        self, registry: Registry, unique: Callable[[str], str]
    ) -> None:
        subject = unique("s")
        name = unique("N").replace("-", "_").replace(".", "_")
        assert registry.register(subject, record(A, name=name)) != registry.register(
            subject, record(A, B, name=name)
        )

    def test_an_unknown_id_is_the_records_fault(self, registry: Registry) -> None:
        with pytest.raises(Rejected) as caught:
            registry.schema(2_000_000_000)
        assert caught.value.reason is Reason.UNKNOWN_SCHEMA

    def test_an_incompatible_schema_is_refused(
        self, registry: Registry, unique: Callable[[str], str]
    ) -> None:
        subject = unique("s")
        registry.register(subject, record(A))
        assert registry.compatible(subject, record(A, B))
        assert not registry.compatible(subject, record(A, B_REQUIRED))
        with pytest.raises(Misconfigured):
            registry.register(subject, record(A, B_REQUIRED))

    def test_a_new_subject_takes_any_schema(
        self, registry: Registry, unique: Callable[[str], str]
    ) -> None:
        assert registry.compatible(unique("s"), record(A))

    def test_what_is_no_schema_is_refused(
        self, registry: Registry, unique: Callable[[str], str]
    ) -> None:
        with pytest.raises(Misconfigured):
            registry.register(unique("s"), '{"type": "record", "name": "R"}')

    def test_ours_can_be_registered_and_read_back(
        self, registry: Registry, unique: Callable[[str], str]
    ) -> None:
        codec = Codec(registry, UserEvent, unique("user-events"))
        event = UserEvent(
            event_id="e", user_id="u", event_type=EventType.CLICK, event_time=1, position=2
        )
        assert codec.decode(codec.encode(event)) == event
        assert registry.compatible(f"{codec.topic}-value", schema_of(UserEvent))
