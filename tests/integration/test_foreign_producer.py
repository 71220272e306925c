"""A producer that we did not write: confluent-kafka's own serializers, with two partitioners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from confluent_kafka import SerializingProducer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import StringSerializer

from features.job import rebuild_parts
from features.rebuild import verify
from ingest.placement import partition_of
from schemas.codec import schema_of
from schemas.events import UserEvent
from tests.feature_world import PARTITIONS, Job, World, events, jobs, make_world

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]

EVENTS = 5_000


@pytest.fixture
def world(
    kafka: object, valkey: object, registry: object, unique_name: Callable[[str], str]
) -> World:
    return make_world(kafka, valkey, registry, unique_name("foreign"))


@pytest.fixture
def start_job(world: World, tmp_path: Path) -> Iterator[Callable[[], Job]]:
    with jobs(world, tmp_path) as start:
        yield start


def produce(world: World, options: dict[str, str]) -> None:
    def plain(event: UserEvent, context: object) -> dict[str, object]:
        return asdict(event) | {"event_type": event.event_type.name, "profile": []}

    with SchemaRegistryClient({"url": world.settings.registry_url}) as client:
        producer = SerializingProducer(
            {
                "bootstrap.servers": world.settings.bootstrap_servers,
                "key.serializer": StringSerializer("utf_8"),
                "value.serializer": AvroSerializer(client, schema_of(UserEvent), plain),
            }
            | options
        )
        for event in events(EVENTS):
            producer.produce(
                world.topics.user_events, event.user_id, event, timestamp=event.event_time
            )
            producer.poll(0)
        assert producer.flush(60) == 0


@pytest.mark.filterwarnings("ignore:SerializingProducer:DeprecationWarning")
@pytest.mark.parametrize(
    ("options", "warns"),
    [
        pytest.param({"partitioner": "murmur2_random"}, False, id="murmur2"),
        pytest.param({}, True, id="librdkafka-default"),
    ],
)
def test_every_event_is_folded_once_in_the_partition_of_its_key(
    world: World,
    start_job: Callable[[], Job],
    eventually: Callable[..., None],
    options: dict[str, str],
    warns: bool,
) -> None:
    produce(world, options)
    job = start_job()
    eventually(lambda: world.counts().folded == EVENTS and world.caught_up(), 60)
    counts = world.counts()
    assert (counts.duplicates, counts.dead, counts.late) == (0, 0, 0)
    assert counts.records == EVENTS + counts.misplaced
    assert (counts.misplaced > 0) == warns
    assert ("features.misplaced" in job.output()) == warns
    assert ("murmur2_random" in job.output()) == warns
    rows = [key for key in world.contents() if key[1] == "u"]
    assert all(partition_of(user.encode(), PARTITIONS) == at for at, _, user in rows)
    assert len(rows) == len({event.user_id for event in events(EVENTS)})
    assert verify(rebuild_parts(world.settings)).ok
