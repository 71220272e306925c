"""Folding batches of several partitions in one pass gives what each gives by itself."""

import random

import numpy as np
import pytest

from features.catalog import CATALOG
from features.counts import Counts
from features.gathered import gather
from features.outlets import KafkaOutlets
from features.store import Position, Update
from features.store_memory import MemoryStore
from features.worker import FeatureWorker, FoldRules
from ingest.clock import ManualClock
from ingest.dead_letter import DeadLetters
from ingest.log import Outgoing, RecordBatch, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.origin import ORIGIN_HEADER
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.errors import Misconfigured
from schemas.events import DeadLetter, EventType, UserEvent
from schemas.registry import MemoryRegistry

PARTITIONS = 3
NOW = 1_700_000_000_000
START = Position(cluster_id="c", topic_id="t", epoch=1, next_offset=0)
USERS = [f"user-{i}" for i in range(9)]
ITEMS = [f"item-{i}" for i in range(6)]


class World:
    """A log with all sorts of records on each partition, and a worker of all of them."""

    def __init__(self, seed: int) -> None:
        registry = MemoryRegistry()
        self._codec = Codec(registry, UserEvent, "events")
        self.letters = Codec(registry, DeadLetter, "dead")
        self.log = MemoryLog()
        self.log.create_topic("events", PARTITIONS)
        self.log.create_topic("dead", 1)
        self._chance = random.Random(seed)
        for number in range(200):
            self._put(number, self._chance.randrange(PARTITIONS))
        self.batches = [self.read("events", p) for p in range(PARTITIONS)]
        self.store = MemoryStore()
        producer = MemoryProducer(self.log)
        letters = DeadLetters(producer, self.letters, "dead", ManualClock())
        self.worker = FeatureWorker(
            self.store,
            ColumnReader(registry, UserEvent),
            KafkaOutlets(letters, producer, 5),
            FoldRules(features=CATALOG, partitions=PARTITIONS),
        )
        for p in range(PARTITIONS):
            self.worker.take(self.store.claim(p, START))

    def _put(self, number: int, partition: int) -> None:
        chance = self._chance
        user = chance.choice(USERS)
        value: bytes | None = self._codec.encode(
            UserEvent(
                event_id=f"e{chance.randrange(30)}",
                user_id=user,
                item_id=chance.choice([*ITEMS, None]),
                event_type=chance.choice([EventType.CLICK, EventType.VIEW]),
                event_time=NOW + chance.randrange(1000),
            )
        )
        fate = chance.random()
        if fate < 0.03:
            value = None
        elif fate < 0.08:
            value = b"rubbish"
        # Half are taken where they lie, so that a user's row stands in several partitions.
        origin = (ORIGIN_HEADER, f"elsewhere/0/{number}".encode())
        self.log.append(
            Outgoing(
                topic="events",
                key=None if 0.08 < fate < 0.1 else user.encode(),
                value=value,
                partition=partition,
                timestamp_ms=NOW + number,
                headers=(origin,) if chance.random() < 0.5 else (),
            )
        )

    def read(self, topic: str, partition: int) -> RecordBatch:
        source = MemorySource(self.log)
        source.assign({TopicPartition(topic, partition): 0})
        found = source.poll(10_000, 0)
        assert found is not None
        return found

    def values(self, partition: int) -> list[bytes]:
        """What lies in a partition as it should, and is folded there."""
        batch = self.batches[partition]
        return [
            value
            for at, value in enumerate(batch.values)
            if value is not None and value != b"rubbish" and at in batch.headers
        ]

    def dead(self) -> list[DeadLetter]:
        return [self.letters.decode(value) for value in self.read("dead", 0).values]

    def contents(self) -> list[object]:
        found: list[object] = [self.store.positions(range(PARTITIONS))]
        for p in range(PARTITIONS):
            found += [self.store.snapshots({p: USERS}), self.store.partials(p, ITEMS)]
            found += [self.store.unpublished(p, 99)]
        return found


@pytest.mark.parametrize("seed", range(5))
def test_one_pass_gives_every_partition_what_it_gives_by_itself(seed: int) -> None:
    together, apart = World(seed), World(seed)
    counts = together.worker.process(*together.batches)
    singly = sum((apart.worker.process(batch) for batch in apart.batches), Counts())
    assert counts == singly
    assert min(counts.folded, counts.duplicates, counts.erased, counts.dead) > 0
    assert counts.misplaced > 0
    assert together.contents() == apart.contents()
    dead = [
        list(map(world.letters.decode, world.read("dead", 0).values)) for world in (together, apart)
    ]
    assert sorted(map(repr, dead[0])) == sorted(map(repr, dead[1]))
    assert together.worker.leases == apart.worker.leases


def test_a_record_is_found_in_its_batch() -> None:
    batches = World(1).batches
    gathered = gather(batches)
    places = [gathered.place(at) for at in range(len(gathered))]
    assert [(b.partition, i) for b, i in places] == [
        (batch.partition, i) for batch in batches for i in range(len(batch))
    ]
    assert [b.values[i] for b, i in places] == list(gathered.values)
    assert len(gathered) == 200
    one = gather(batches[:1])
    assert one.groups is one.parts[0]
    assert np.array_equal(one.timestamps_ms, batches[0].timestamps_ms)


@pytest.mark.parametrize("partition", range(PARTITIONS))
def test_a_corrupt_partial_is_named_with_its_partition(partition: int) -> None:
    world = World(2)
    lease = world.worker.leases[partition]
    item = next(i for i in ITEMS if i.encode() in b"".join(world.values(partition)))
    spoilt = Update(rows={}, partials={item: b"rubbish"}, next_offset=0)
    world.worker.take(world.store.write(lease, spoilt))
    with pytest.raises(Misconfigured, match=rf"'{item}'.*features rebuild --partition {partition}"):
        world.worker.process(*world.batches)
    assert world.worker.leases[partition].position.next_offset == 0
