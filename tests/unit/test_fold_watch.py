"""What a replay sees of the features job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from features.counts import Counts
from features.fold_watch import PositionWatch
from features.store import Position, Update
from features.store_memory import MemoryStore
from ingest.clock import ManualClock
from ingest.log import Outgoing
from ingest.memory import MemoryLog, MemoryProducer
from ingest.replay import Folded, Sent
from schemas.errors import Misconfigured, Retryable
from schemas.events import EventType

TOPIC = "user-events"


class JobClock(ManualClock):
    """Sleeping on it lets the features job do its next step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: Iterator[Callable[[], None]] = iter(())

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        next(self.steps, _rest)()


def _rest() -> None:
    pass


class World:
    def __init__(self) -> None:
        self.clock, self.log, self.store = JobClock(), MemoryLog(), MemoryStore()
        self.log.create_topic(TOPIC, 2)
        self.watch = PositionWatch(self.store, self.log, TOPIC, self.clock)

    def produce(self, partition: int, count: int) -> int:
        """Offset of the last one."""
        producer = MemoryProducer(self.log)
        for _ in range(count):
            producer.send(Outgoing(topic=TOPIC, key=b"u", value=b"v", partition=partition))
        producer.flush(1)
        return self.log.bounds(TOPIC)[partition][1] - 1

    def fold(self, partition: int, next_offset: int, counts: Counts) -> None:
        start = Position(
            cluster_id=self.log.cluster_id(),
            topic_id=self.log.topic_id(TOPIC),
            epoch=1,
            next_offset=0,
        )
        lease = self.store.claim(partition, start)
        total = Counts.of(lease.position.counts) + counts
        update = Update(rows={}, partials={}, next_offset=next_offset, counts=total.named())
        self.store.write(lease, update)


def counted(kind: EventType, count: int, **others: int) -> Counts:
    types = [0] * len(EventType)
    types[kind] = count
    return Counts(records=count, folded=count, types=tuple(types), **others)


@pytest.fixture
def world() -> World:
    return World()


def test_only_what_was_folded_since_begin_is_told_and_all_of_it(world: World) -> None:
    world.produce(0, 4)
    world.fold(1, 0, Counts())
    world.clock.steps = iter([lambda: world.fold(0, 4, counted(EventType.VIEW, 4))])
    world.watch.begin()  # waits for the four
    last = {0: world.produce(0, 3), 1: world.produce(1, 2)}
    world.clock.steps = iter(
        [
            lambda: world.fold(1, 2, counted(EventType.CLICK, 1, duplicates=1)),
            _rest,
            lambda: world.fold(0, 6, counted(EventType.CLICK, 2)),
            lambda: world.fold(0, 7, Counts(dead=1)),
        ]
    )
    folded = world.watch.wait(last, timeout_s=60)
    assert folded == Folded(accepted={"CLICK": 3}, duplicates=1, late=0, rejected=1)
    sent = Sent()
    sent.events.update({"CLICK": 5})
    assert folded.lost(sent) == 0
    sent.events["CLICK"] += 2
    assert folded.lost(sent) == 2


def test_a_missing_job_is_told_soon_before_and_after_sending(world: World) -> None:
    with pytest.raises(Misconfigured, match="millstream features run"):
        world.watch.begin()
    assert world.clock.monotonic_s() < 15
    world.fold(0, 0, Counts())
    world.fold(1, 0, Counts())
    world.watch.begin()
    last = {0: world.produce(0, 5)}
    world.clock.steps = iter([lambda: world.fold(0, 2, counted(EventType.CLICK, 2))])
    with pytest.raises(Misconfigured, match="3 events wait"):
        world.watch.wait(last, timeout_s=600)
    assert world.clock.monotonic_s() < 30


def test_a_job_that_moves_but_too_slowly_is_told_as_that(world: World) -> None:
    for partition in range(2):
        world.fold(partition, 0, Counts())
    world.watch.begin()
    last = {0: world.produce(0, 1000)}
    at = iter(range(1, 1000))
    world.clock.steps = iter(lambda: world.fold(0, next(at), Counts()), None)
    with pytest.raises(Retryable, match="not folded in 5 s"):
        world.watch.wait(last, timeout_s=5)


def test_a_position_in_another_log_is_none(world: World) -> None:
    for partition in range(2):
        world.fold(partition, 0, Counts())
    lease = world.store.claim(0, None)
    world.store.clear(lease, position=True)
    world.store.claim(0, replace(lease.position, topic_id="another"))
    with pytest.raises(Misconfigured, match="no features job"):
        world.watch.begin()
