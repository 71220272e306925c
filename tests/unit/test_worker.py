import math

import pytest

from features import rows
from features.catalog import CATALOG
from features.counts import Counts
from features.hashing import hash_id
from features.hot_rows import HotRows
from features.items import decode_partials
from features.outlets import KafkaOutlets
from features.store import Position, Update
from features.store_memory import MemoryStore
from features.worker import FeatureWorker, FoldRules
from ingest.batches import empty, part
from ingest.clock import ManualClock
from ingest.dead_letter import DeadLetterPolicy, DeadLetters
from ingest.log import Headers, Outgoing, RecordBatch, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.origin import ORIGIN_HEADER
from ingest.placement import partition_of
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.errors import (
    BrokerUnavailable,
    Misconfigured,
    PositionMoved,
    Reason,
    RegistryUnavailable,
)
from schemas.events import Attribute, DeadLetter, EventType, UserEvent
from schemas.registry import MemoryRegistry

PARTITIONS = 4
NOW = 1_700_000_000_000
START = Position(cluster_id="c", topic_id="t", epoch=1, next_offset=0)
ANN = next(u for u in (f"ann-{i}" for i in range(99)) if partition_of(u.encode(), PARTITIONS) == 0)
BOB = next(u for u in (f"bob-{i}" for i in range(99)) if partition_of(u.encode(), PARTITIONS) == 0)
ZOE = next(u for u in (f"zoe-{i}" for i in range(99)) if partition_of(u.encode(), PARTITIONS) == 3)


def event(number: int, user: str = ANN, **fields: object) -> UserEvent:
    known = {
        "event_id": f"e{number}",
        "user_id": user,
        "item_id": "film",
        "event_type": EventType.CLICK,
        "event_time": NOW + number,
    }
    return UserEvent(**(known | fields))  # type: ignore[arg-type]


class World:
    """One partition's worker over memory parts."""

    def __init__(self, store: MemoryStore | HotRows | None = None, partition: int = 0) -> None:
        self.registry = MemoryRegistry()
        self.codec = Codec(self.registry, UserEvent, "events")
        self.letters = Codec(self.registry, DeadLetter, "dead")
        self.log = MemoryLog()
        self.log.create_topic("events", PARTITIONS)
        self.log.create_topic("dead", 1)
        self.memory = MemoryStore()
        self.store = store or self.memory
        self.partition = partition
        self.worker = self.new_worker()
        self.worker.take(self.store.claim(partition, START))

    def new_worker(self, policy: DeadLetterPolicy | None = None) -> FeatureWorker:
        producer = MemoryProducer(self.log)
        dead = DeadLetters(producer, self.letters, "dead", ManualClock(), policy)
        return FeatureWorker(
            self.store,
            ColumnReader(self.registry, UserEvent),
            KafkaOutlets(dead, producer, 5),
            FoldRules(features=CATALOG, partitions=PARTITIONS),
        )

    def put(
        self,
        value: UserEvent | bytes | None,
        key: bytes | None = b"*",
        headers: Headers = (),
    ) -> None:
        """Append a record to the partition, wherever its key belongs."""
        if key == b"*":
            key = value.user_id.encode() if isinstance(value, UserEvent) else ANN.encode()
        data = self.codec.encode(value) if isinstance(value, UserEvent) else value
        self.log.append(
            Outgoing(
                topic="events",
                key=key,
                value=data,
                partition=self.partition,
                timestamp_ms=NOW,
                headers=headers,
            )
        )

    def batch(self) -> RecordBatch:
        source = MemorySource(self.log)
        at = self.worker.leases[self.partition].position.next_offset
        source.assign({TopicPartition("events", self.partition): at})
        found = source.poll(10_000, 0)
        assert found is not None
        return found

    def fold(self) -> Counts:
        return self.worker.process(self.batch())

    def row(self, user: str = ANN) -> rows.Rows:
        stored = self.memory.snapshots({self.partition: [user]})[self.partition].rows
        return rows.decode(stored, CATALOG.fingerprint).rows

    def clicks(self, item: str = "film") -> int:
        stored = self.memory.partials(self.partition, [item]).rows
        return int(decode_partials(stored, CATALOG.fingerprint).partials.tiles.count[:1].sum())

    def dead(self) -> list[DeadLetter]:
        return [self.letters.decode(value) for value in self.read("dead", 0)[1]]

    def read(self, topic: str, partition: int) -> tuple[list[Headers], list[bytes | None]]:
        source = MemorySource(self.log)
        source.assign({TopicPartition(topic, partition): 0})
        headers: list[Headers] = []
        values: list[bytes | None] = []
        while (found := source.poll(10_000, 0)) is not None:
            headers += [found.headers.get(at, ()) for at in range(len(found))]
            values += found.values
        return headers, values


@pytest.fixture
def world() -> World:
    return World()


def test_events_become_rows_partials_and_a_position(world: World) -> None:
    world.put(event(1))
    world.put(event(2, BOB, item_id="song", event_type=EventType.VIEW))
    world.put(event(3))
    counts = world.fold()
    assert (counts.records, counts.folded) == (3, 3)
    assert (counts.types[EventType.CLICK], counts.types[EventType.VIEW]) == (2, 1)
    assert world.row().history_item.tolist() == [hash_id("film")] * 2
    assert world.row(BOB).history_item.tolist() == [hash_id("song")]
    assert (world.clicks("film"), world.clicks("song")) == (2, 1)
    position = world.memory.positions([0])[0]
    assert position is not None
    assert position.next_offset == 3
    assert Counts.of(position.counts) == counts
    assert sorted(world.memory.unpublished(0, 9).partials) == ["film", "song"]


def test_profile_events_change_attributes_and_no_partial(world: World) -> None:
    profile = (Attribute(name="age", value="33"), Attribute(name="shoe", value="42"))
    world.put(event(1, item_id=None, event_type=EventType.PROFILE, profile=profile))
    world.put(event(2, event_type=EventType.CLICK, profile=(Attribute(name="age", value="99"),)))
    world.fold()
    assert world.row().profile_name.tolist() == [hash_id("age")]
    assert world.row().profile_value.tolist() == [hash_id("33")]
    assert world.clicks() == 1


def test_an_empty_batch_moves_the_position(world: World) -> None:
    world.put(event(1))
    world.fold()
    hole = empty(TopicPartition("events", 0), 1, 7)
    assert world.worker.process(hole) == Counts()
    assert world.worker.leases[0].position.next_offset == 7


def test_where_a_log_is_cut_into_batches_changes_no_byte(world: World) -> None:
    other = World()
    for found in (world, other):
        for i in range(60):
            found.put(event(i % 50, (ANN, BOB)[i % 2], item_id=f"item-{i % 7}"))
            if i % 20 == 19:
                found.put(None)
            if i % 25 == 24:
                found.put(b"rubbish")
    world.fold()
    whole = other.batch()
    for at in range(0, len(whole), 3):
        other.worker.process(part(whole, at, min(at + 3, len(whole))))
    users, items = [ANN, BOB], [f"item-{i}" for i in range(7)]
    assert world.memory.snapshots({0: users}) == other.memory.snapshots({0: users})
    assert world.memory.partials(0, items) == other.memory.partials(0, items)


BAD = [
    pytest.param(event(2), None, Reason.NULL_KEY, id="null-key"),
    pytest.param(None, None, Reason.NULL_KEY, id="null-key-and-value"),
    pytest.param(event(2), BOB.encode(), Reason.KEY_MISMATCH, id="key-of-another-user"),
    pytest.param(b"{}", b"*", Reason.NOT_FRAMED, id="not-framed"),
    pytest.param(b"\0\0\0\x27\x0fdatum", b"*", Reason.UNKNOWN_SCHEMA, id="unknown-schema"),
    pytest.param(b"\0\0\0\0\x01\xff\xff", b"*", Reason.UNDECODABLE, id="undecodable"),
    pytest.param(event(2, event_id=""), b"*", Reason.MISSING_FIELD, id="no-event-id"),
    pytest.param(event(2, event_time=-1), b"*", Reason.OUT_OF_RANGE, id="before-1970"),
    pytest.param(event(2, value=math.nan), b"*", Reason.OUT_OF_RANGE, id="nan"),
    pytest.param(event(2, event_time=NOW + 300_001), b"*", Reason.IN_FUTURE, id="future"),
    pytest.param(event(2, item_id="x" * 513), b"*", Reason.TOO_LARGE, id="long-item-id"),
]


@pytest.mark.parametrize(("value", "key", "reason"), BAD)
def test_a_bad_record_is_dead_lettered_and_its_neighbours_are_folded(
    world: World, value: UserEvent | bytes | None, key: bytes | None, reason: Reason
) -> None:
    world.put(event(1))
    world.put(value, key)
    world.put(event(3))
    counts = world.fold()
    assert (counts.folded, counts.dead) == (2, 1)
    assert len(world.row().history_item) == 2
    (letter,) = world.dead()
    assert (letter.reason, letter.topic, letter.partition, letter.offset) == (
        reason,
        "events",
        0,
        1,
    )
    assert letter.key == (ANN.encode() if key == b"*" else key)
    expected = world.codec.encode(value) if isinstance(value, UserEvent) else value
    assert letter.value == expected


def test_erasing_keys_that_are_nobodys_are_dead_lettered(world: World) -> None:
    odd = next(k for k in (b"\xff%d" % i for i in range(99)) if partition_of(k, PARTITIONS) == 0)
    long = next(
        k for k in (b"x" * 600 + b"%d" % i for i in range(99)) if partition_of(k, PARTITIONS) == 0
    )
    world.put(None, odd)
    world.put(None, long)
    assert world.fold().dead == 2
    assert [letter.reason for letter in world.dead()] == [Reason.KEY_MISMATCH, Reason.TOO_LARGE]


def test_a_null_value_erases_the_user_and_a_repeat_of_it_does_not(world: World) -> None:
    world.put(event(1))
    world.put(None)
    world.put(event(2))
    counts = world.fold()
    assert (counts.folded, counts.erased) == (2, 1)
    assert world.row().history_time_ms.tolist() == [NOW + 2]
    world.put(event(2))  # still known after the erasure
    world.put(event(1))
    assert world.fold().duplicates == 2


def test_a_duplicate_event_is_counted_and_folded_once(world: World) -> None:
    world.put(event(1))
    world.put(event(1))
    counts = world.fold()
    assert (counts.folded, counts.duplicates) == (1, 1)
    world.put(event(1))
    assert world.fold().duplicates == 1
    assert world.clicks() == 1


def test_a_misplaced_event_is_sent_on_with_its_origin_and_folded_there_once(world: World) -> None:
    world.put(event(1, ZOE))
    world.put(event(2))
    counts = world.fold()
    assert (counts.folded, counts.misplaced, counts.dead) == (1, 1, 0)
    headers, values = world.read("events", 3)
    assert headers == [((ORIGIN_HEADER, b"events/0/0"),)]
    assert values == [world.codec.encode(event(1, ZOE))]
    # A worker that was killed before it wrote sends it on once more.
    world.log.append(
        Outgoing(topic="events", key=ZOE.encode(), value=values[0], headers=headers[0])
    )
    there = World(partition=3)
    there.log, there.registry = world.log, world.registry
    there.worker = there.new_worker()
    there.worker.take(there.memory.claim(3, None))
    counts = there.fold()
    assert (counts.folded, counts.duplicates, counts.misplaced) == (1, 1, 0)
    assert len(there.row(ZOE).history_item) == 1


def test_a_copy_is_folded_where_it_lies_even_if_that_is_wrong(world: World) -> None:
    world.put(event(1, ZOE), headers=((ORIGIN_HEADER, b"events/2/5"),))
    counts = world.fold()
    assert (counts.folded, counts.misplaced) == (1, 0)
    assert world.read("events", 3) == ([], [])


def test_a_misplaced_event_that_its_origin_makes_too_large_is_dead_lettered(world: World) -> None:
    large = event(1, ZOE, item_id="x" * 300)
    # Room for the record, not for the header that names its origin.
    size = len(ZOE) + len(world.codec.encode(large))
    world.log = MemoryLog(max_record_bytes=size + 5)
    world.log.create_topic("events", PARTITIONS)
    world.log.create_topic("dead", 1)
    world.worker = world.new_worker()
    world.worker.take(world.memory.claim(0, None))
    world.put(large)
    world.put(event(2))
    counts = world.fold()
    assert (counts.folded, counts.dead, counts.misplaced) == (1, 1, 0)
    (letter,) = world.dead()
    assert (letter.reason, letter.offset) == (Reason.TOO_LARGE, 0)


def test_too_large_a_share_of_bad_records_stops_the_worker_where_it_stands(world: World) -> None:
    world.put(event(1))
    for _ in range(9):
        world.put(b"rubbish")
    policy = DeadLetterPolicy(max_share=0.2, min_refused=5)
    worker = world.new_worker(policy)
    worker.take(world.worker.leases[0])
    with pytest.raises(Misconfigured, match=r"9 of the last 10 records were refused \(not-framed"):
        worker.process(world.batch())
    assert (world.dead(), world.memory.positions([0])[0]) == ([], START)


def test_a_row_of_another_feature_set_is_an_error_that_names_the_command(world: World) -> None:
    foreign = rows.encode(rows.empty(1), "f" * 16)[0]
    update = Update(rows={ANN: foreign}, partials={}, next_offset=0)
    world.worker.take(world.store.write(world.worker.leases[0], update))
    world.put(event(1))
    with pytest.raises(Misconfigured, match=f"of another feature set.*rebuild --user {ANN}"):
        world.fold()


def test_a_corrupt_row_is_an_error_that_names_the_user_and_the_command(world: World) -> None:
    lease = world.worker.leases[0]
    update = Update(rows={ANN: b"rubbish"}, partials={}, next_offset=0)
    world.worker.take(world.store.write(lease, update))
    world.put(event(1))
    with pytest.raises(Misconfigured, match=f"features rebuild --user {ANN}"):
        world.fold()
    assert world.worker.leases[0].position.next_offset == 0


def test_a_corrupt_partial_is_an_error_that_names_the_item(world: World) -> None:
    lease = world.worker.leases[0]
    update = Update(rows={}, partials={"film": b"rubbish"}, next_offset=0)
    world.worker.take(world.store.write(lease, update))
    world.put(event(1))
    with pytest.raises(Misconfigured, match=r"'film'.*rebuild --partition 0"):
        world.fold()


def test_a_batch_that_does_not_begin_at_the_position_is_refused(world: World) -> None:
    world.put(event(1))
    batch = world.batch()
    world.worker.process(batch)
    with pytest.raises(PositionMoved):
        world.worker.process(batch)
    assert len(world.row().history_item) == 1


def test_a_zombie_folds_nothing(world: World) -> None:
    world.put(event(1))
    heir = world.memory.claim(0, None)
    with pytest.raises(PositionMoved):
        world.fold()
    assert world.memory.positions([0])[0] == heir.position
    assert len(world.row().history_item) == 0


class DeafProducer(MemoryProducer):
    """A broker that does not acknowledge."""

    def flush(self, timeout_s: float) -> None:
        raise BrokerUnavailable("no acknowledgement")


def test_nothing_is_written_when_dead_letters_cannot_be_flushed(world: World) -> None:
    world.put(event(1))
    world.put(b"rubbish")
    producer = DeafProducer(world.log)
    dead = DeadLetters(producer, world.letters, "dead", ManualClock())
    worker = FeatureWorker(
        world.store,
        ColumnReader(world.registry, UserEvent),
        KafkaOutlets(dead, producer, 5),
        FoldRules(features=CATALOG, partitions=PARTITIONS),
    )
    worker.take(world.worker.leases[0])
    with pytest.raises(BrokerUnavailable):
        worker.process(world.batch())
    assert world.memory.positions([0])[0] == START
    assert world.memory.keys(0).users == frozenset()


class SilentRegistry(MemoryRegistry):
    """A registry that cannot be asked."""

    def schema(self, schema_id: int) -> str:
        raise RegistryUnavailable("no answer")


def test_records_wait_for_a_registry_that_is_gone_and_none_is_dead_lettered(world: World) -> None:
    world.put(event(1))
    batch = world.batch()
    world.registry = SilentRegistry()
    worker = world.new_worker()
    worker.take(world.worker.leases[0])
    with pytest.raises(RegistryUnavailable):
        worker.process(batch)
    assert (world.dead(), world.memory.positions([0])[0]) == ([], START)
    assert world.worker.process(batch).folded == 1


@pytest.fixture
def both() -> tuple[World, World]:
    """One world with hot rows that hardly fit, one without."""
    memory = MemoryStore()
    hot = World(store=HotRows(memory, max_bytes=2_000))
    hot.memory = memory
    return hot, World()


def test_hot_rows_change_no_byte(both: tuple[World, World]) -> None:
    for step in range(30):
        for world in both:
            for i in range(5):
                world.put(event(step * 5 + i, (ANN, BOB)[i % 2], item_id=f"item-{i}"))
            world.fold()
    hot, plain = both
    users, items = [ANN, BOB], [f"item-{i}" for i in range(5)]
    assert hot.memory.snapshots({0: users}) == plain.memory.snapshots({0: users})
    assert hot.memory.partials(0, items) == plain.memory.partials(0, items)
