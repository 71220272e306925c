"""Real Kafka forgets, the event archive does not: rows are rebuilt from both, byte for byte."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient

from features.event_archive import ArchiveParts, ArchivePolicy, EventArchiver
from features.job import open_store, rebuild_parts
from features.join_worker import Rotation
from features.rebuild import rebuild_partition, verify
from ingest.clock import SystemClock
from ingest.kafka import KafkaSource
from ingest.log import TopicPartition
from ingest.metrics import MemoryMetrics
from schemas.errors import Misconfigured
from tests.feature_world import PARTITIONS, World, events, make_world

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]

ARCHIVED, LATER = 3_000, 500


@pytest.fixture
def world(
    kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str], tmp_path: Path
) -> World:
    made = make_world(kafka, valkey, registry, unique_name("past"))
    return replace(made, settings=replace(made.settings, archive_dir=tmp_path))


def archive(world: World, root: Path) -> None:
    with closing(KafkaSource(world.settings.bootstrap_servers)) as source:
        parts = ArchiveParts(
            log=world.log(),
            source=source,
            topics=world.topics,
            root=root,
            clock=SystemClock(),
            metrics=MemoryMetrics(),
        )
        policy = ArchivePolicy(rotation=Rotation(max_bytes=20_000), max_records=200)
        ends = {TopicPartition(world.topics.user_events, p): n for p, n in world.ends().items()}
        EventArchiver(parts, policy).run(threading.Event(), ends)


def forget(world: World, before: dict[int, int]) -> None:
    """What retention does, at once."""
    admin = AdminClient({"bootstrap.servers": world.settings.bootstrap_servers})
    topic = world.topics.user_events
    for done in admin.delete_records([Place(topic, p, at) for p, at in before.items()]).values():
        done.result(30)
    assert {p: first for p, (first, _) in world.log().bounds(topic).items()} == before


def fold(world: World) -> None:
    """All rows afresh."""
    parts = rebuild_parts(world.settings)
    for partition in range(PARTITIONS):
        rebuild_partition(parts, partition)


def lose(world: World) -> None:
    store = open_store(world.settings)
    for partition in range(PARTITIONS):
        store.clear(store.claim(partition, None), position=True)
    store.close()


def test_what_kafka_no_longer_retains_is_rebuilt_from_the_archive(
    world: World, tmp_path: Path
) -> None:
    found = list(events(ARCHIVED + LATER))
    world.produce(found[:ARCHIVED])
    archive(world, tmp_path)
    archived = world.ends()
    world.produce(found[ARCHIVED:])
    fold(world)
    before, positions = world.contents(), world.positions()
    assert len(before) > 300
    forget(world, {p: end - 7 * p for p, end in archived.items()})
    assert verify(rebuild_parts(world.settings)).ok
    lose(world)
    assert not world.contents()
    fold(world)
    assert world.contents() == before
    assert {p: at.next_offset for p, at in world.positions().items() if at} == {
        p: at.next_offset for p, at in positions.items() if at
    }
    forget(world, {p: end + 1 for p, end in archived.items()})
    with pytest.raises(Misconfigured, match="are lost: the archive ends before offset"):
        verify(rebuild_parts(world.settings))
