"""The log in memory keeps the log's promises."""

from __future__ import annotations

import itertools

import pytest

from ingest.clock import ManualClock
from ingest.log import Outgoing, TopicPartition
from ingest.memory import (
    Crash,
    MemoryGroups,
    MemoryGroupSource,
    MemoryLog,
    MemoryProducer,
    MemorySource,
    MemoryTransactionalProducer,
    Pause,
)
from schemas.errors import PositionForeign, PositionMoved
from tests.contracts import log as contracts


class MemoryWorld:
    max_record_bytes = 1000

    def __init__(self) -> None:
        self._log = MemoryLog(max_record_bytes=self.max_record_bytes)
        self._count = itertools.count()

    def name(self) -> str:
        return f"name-{next(self._count)}"

    def topic(self, partitions: int) -> str:
        name = self.name()
        self._log.create_topic(name, partitions)
        return name

    def source(self, *, read_committed: bool = True) -> MemorySource:
        return MemorySource(self._log, read_committed=read_committed)

    def group(self, name: str) -> MemoryGroupSource:
        return MemoryGroupSource(self._log, name)

    def producer(self) -> MemoryProducer:
        return MemoryProducer(self._log)

    def transactional(self, transactional_id: str) -> MemoryTransactionalProducer:
        return MemoryTransactionalProducer(self._log, transactional_id)

    def log(self) -> MemoryLog:
        return self._log

    def admin(self) -> MemoryLog:
        return self._log

    def groups(self) -> MemoryGroups:
        return MemoryGroups(self._log)


class _InMemory:
    @pytest.fixture
    def world(self) -> MemoryWorld:
        return MemoryWorld()


class TestMemoryLog(_InMemory, contracts.LogContract):
    pass


class TestMemoryTransactions(_InMemory, contracts.TransactionContract):
    pass


class TestMemoryGroups(_InMemory, contracts.GroupContract):
    pass


class TestMemoryGroupOffsets(_InMemory, contracts.GroupsContract):
    pass


class TestMemoryAdmin(_InMemory, contracts.AdminContract):
    pass


TP = TopicPartition("t", 0)


def record(value: bytes) -> Outgoing:
    return Outgoing(topic="t", key=b"k", value=value)


def test_a_reader_dies_once_at_a_crash_and_the_next_goes_on() -> None:
    log = MemoryLog()
    log.create_topic("t", 1)
    log.script(TP, [record(b"a"), record(b"b"), Crash(), record(b"c")])
    source = MemorySource(log)
    source.assign({TP: 0})
    first = source.poll(10, 0)
    assert first is not None
    assert first.values == [b"a", b"b"]
    with pytest.raises(Crash):
        source.poll(10, 0)
    restarted = MemorySource(log)
    restarted.assign({TP: first.next_offset})
    last = restarted.poll(10, 0)
    assert last is not None
    assert last.values == [b"c"]


def test_a_pause_gives_nothing_once() -> None:
    log = MemoryLog()
    log.create_topic("t", 1)
    log.script(TP, [Pause(), record(b"a")])
    source = MemorySource(log)
    source.assign({TP: 0})
    assert source.poll(10, 0) is None
    batch = source.poll(10, 0)
    assert batch is not None
    assert batch.values == [b"a"]


def test_records_that_retention_deleted_are_foreign() -> None:
    log = MemoryLog()
    log.create_topic("t", 1)
    log.script(TP, [record(b"a"), record(b"b")])
    log.delete_records(TP, 1)
    source = MemorySource(log)
    source.assign({TP: 0})
    with pytest.raises(PositionForeign, match="at 0"):
        source.poll(10, 0)
    assert log.bounds("t") == {0: (1, 2)}


def test_a_member_whose_session_ended_cannot_commit() -> None:
    log = MemoryLog()
    log.create_topic("t", 1)
    member = MemoryGroupSource(log, "g")
    member.subscribe(["t"], lambda _: None, lambda _: None)
    member.poll(1, 0)
    producer = MemoryTransactionalProducer(log, "id")
    producer.begin()
    member.expire()
    with pytest.raises(PositionMoved):
        producer.commit({TP: 0}, member.group_metadata())


def test_records_without_a_timestamp_get_the_clocks() -> None:
    log = MemoryLog(clock=ManualClock(now_ms=5))
    log.create_topic("t", 1)
    assert log.append(record(b"a")).offset == 0
    source = MemorySource(log)
    source.assign({TP: 0})
    batch = source.poll(10, 0)
    assert batch is not None
    assert batch.timestamps_ms.tolist() == [5]
