"""
The log in memory: the same promises as Kafka's, in one process, for tests and small runs.

Transactions append as they go and end with a marker that takes an offset, as in Kafka: readers stop
before the first open transaction, skip aborted records, and see holes where markers are.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ingest.batches import empty
from ingest.clock import Clock, SystemClock
from ingest.log import Delivered, Headers, Outgoing, RecordBatch, TopicPartition
from ingest.placement import partition_of
from ingest.topics import TopicSpec, TopicState
from schemas.errors import (
    BrokerUnavailable,
    Misconfigured,
    PositionForeign,
    Reason,
    Rejected,
)

MAX_RECORD_BYTES = 1_000_000


class Crash(Exception):
    """
    An item of a scripted log: the reader that comes to it dies here, once.

    Not one of our errors, so that nothing handles it: what a process loses, a test loses.
    """


@dataclass(frozen=True, slots=True)
class Pause:
    """An item of a scripted log: the reader that comes to it gets nothing, once."""


@dataclass(slots=True)
class Transaction:
    """State of one transaction; its records point here."""

    state: str = "open"  # open, committed, aborted
    first: dict[TopicPartition, int] = field(default_factory=dict)  # offset of its first record


@dataclass(frozen=True, slots=True)
class _Entry:
    """One offset: a record, or a marker (`record` None)."""

    timestamp_ms: int
    record: Outgoing | None
    transaction: Transaction | None = None


@dataclass(slots=True)
class _Partition:
    entries: list[_Entry] = field(default_factory=list)
    first: int = 0  # offsets below are deleted
    faults: dict[int, list[Crash | Pause]] = field(default_factory=dict)


@dataclass(slots=True)
class _Topic:
    topic_id: str
    partitions: list[_Partition]
    settings: dict[str, str]
    keyless: int = 0  # records without a key go round


@dataclass(slots=True)
class Group:
    """A consumer group: who is in it, who holds what, and how far it has read."""

    generation: int = 0
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    members: dict[str, tuple[str, ...]] = field(default_factory=dict)  # member -> topics
    owners: dict[TopicPartition, str] = field(default_factory=dict)
    joined: dict[str, int] = field(default_factory=dict)  # member -> generation it has taken up


@dataclass(frozen=True, slots=True)
class GroupMetadata:
    """A member as it knew itself: stale once the group has moved on."""

    group: str
    member: str
    generation: int


class MemoryLog:
    """All topics and groups of one imagined cluster. Implements `Log` and `Admin`. Thread-safe."""

    def __init__(
        self, clock: Clock | None = None, max_record_bytes: int = MAX_RECORD_BYTES
    ) -> None:
        self.clock = clock or SystemClock()
        self.max_record_bytes = max_record_bytes
        self.changed = threading.Condition(threading.RLock())
        self.groups: dict[str, Group] = {}
        self.fences: dict[str, int] = {}  # transactional id -> newest epoch
        self.open: dict[str, Transaction] = {}  # transactional id -> open transaction
        self._cluster_id = uuid.uuid4().hex
        self._topics: dict[str, _Topic] = {}

    # Log

    def cluster_id(self) -> str:
        return self._cluster_id

    def topic_id(self, topic: str) -> str:
        return self._known(topic).topic_id

    def partitions(self, topic: str) -> int:
        return len(self._known(topic).partitions)

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        with self.changed:
            return {
                i: (p.first, self._stable_end(TopicPartition(topic, i)))
                for i, p in enumerate(self._known(topic).partitions)
            }

    # Admin

    def topics(self, names: Sequence[str]) -> dict[str, TopicState]:
        with self.changed:
            return {
                name: TopicState(
                    name=name,
                    topic_id=self._topics[name].topic_id,
                    partitions=len(self._topics[name].partitions),
                    settings=dict(self._topics[name].settings),
                )
                for name in names
                if name in self._topics
            }

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        for spec in specs:
            self.create_topic(spec.name, spec.partitions, spec.settings())

    def configure_topics(self, specs: Sequence[TopicSpec]) -> None:
        for spec in specs:
            self._known(spec.name).settings = spec.settings()

    def delete_topics(self, names: Sequence[str]) -> None:
        with self.changed:
            for name in names:
                self._topics.pop(name, None)

    # What a test does to it

    def create_topic(
        self, name: str, partitions: int, settings: Mapping[str, str] | None = None
    ) -> None:
        """A topic without records. One that exists is left as it is."""
        with self.changed:
            if name not in self._topics:
                made = [_Partition() for _ in range(partitions)]
                self._topics[name] = _Topic(uuid.uuid4().hex, made, dict(settings or {}))
            self.changed.notify_all()

    def delete_records(self, tp: TopicPartition, before: int) -> None:
        """What retention does: offsets below `before` are gone."""
        with self.changed:
            self._partition(tp).first = before

    def script(self, tp: TopicPartition, items: Iterable[Outgoing | Crash | Pause]) -> None:
        """Append records, and faults that strike the reader who comes to them."""
        with self.changed:
            for item in items:
                if isinstance(item, Outgoing):
                    self.append(replace(item, topic=tp.topic, partition=tp.partition))
                else:
                    partition = self._partition(tp)
                    partition.faults.setdefault(len(partition.entries), []).append(item)

    # Used by the clients below

    def append(self, record: Outgoing, transaction: Transaction | None = None) -> Delivered:
        """Put a record at the end of its partition."""
        headers = sum(len(name) + len(value) for name, value in record.headers)
        size = len(record.key or b"") + len(record.value or b"") + headers
        if size > self.max_record_bytes:
            raise Rejected(Reason.TOO_LARGE, f"{size} bytes, at most {self.max_record_bytes}")
        with self.changed:
            topic = self._topics.get(record.topic)
            if topic is None:
                raise BrokerUnavailable(f"topic {record.topic} is not there (yet)")
            index = self._placed(record, topic)
            entries = topic.partitions[index].entries
            at = self.clock.now_ms() if record.timestamp_ms is None else record.timestamp_ms
            entries.append(_Entry(at, record, transaction))
            if transaction is not None:
                transaction.first.setdefault(TopicPartition(record.topic, index), len(entries) - 1)
            self.changed.notify_all()
            return Delivered(record.topic, index, len(entries) - 1)

    def finish(self, transaction: Transaction, state: str) -> None:
        """End a transaction: its marker takes an offset in each of its partitions."""
        with self.changed:
            transaction.state = state
            for tp in transaction.first:
                if tp.topic in self._topics:
                    self._partition(tp).entries.append(_Entry(self.clock.now_ms(), None))
            self.changed.notify_all()

    def read(
        self, tp: TopicPartition, start: int, max_records: int, *, committed: bool = True
    ) -> RecordBatch | Pause | None:
        """The batch at `start`; None: nothing there yet."""
        with self.changed:
            if tp.topic not in self._topics:
                raise BrokerUnavailable(f"topic {tp.topic} is not there (yet)")
            partition = self._partition(tp)
            if not partition.first <= start <= len(partition.entries):
                raise PositionForeign(
                    f"poll {tp.topic}[{tp.partition}] at {start}: the log holds "
                    f"{partition.first} to {len(partition.entries)}"
                )
            if (pause := _struck(partition, start)) is not None:
                return pause
            end = self._stable_end(tp) if committed else len(partition.entries)
            end = min([end, *(at for at in partition.faults if at > start)])
            return _batch(tp, partition, start, end, max_records)

    def _stable_end(self, tp: TopicPartition) -> int:
        """Offset of the first record of an open transaction, or the end."""
        held = [t.first[tp] for t in self.open.values() if tp in t.first]
        return min([len(self._partition(tp).entries), *held])

    def _known(self, topic: str) -> _Topic:
        with self.changed:
            if topic not in self._topics:
                raise Misconfigured(f"no topic {topic}. Run: millstream topics create")
            return self._topics[topic]

    def _partition(self, tp: TopicPartition) -> _Partition:
        partitions = self._known(tp.topic).partitions
        if not 0 <= tp.partition < len(partitions):
            raise Misconfigured(
                f"topic {tp.topic} has {len(partitions)} partitions, asked for {tp.partition}"
            )
        return partitions[tp.partition]

    def _placed(self, record: Outgoing, topic: _Topic) -> int:
        n = len(topic.partitions)
        if record.partition is not None:
            if not 0 <= record.partition < n:
                raise BrokerUnavailable(f"{record.topic} has no partition {record.partition}")
            return record.partition
        if record.key is not None:
            return partition_of(record.key, n)
        topic.keyless += 1
        return topic.keyless % n


class MemoryGroups:
    """`Groups` on a MemoryLog."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def offsets(self, group: str, topic: str) -> dict[int, int]:
        with self._log.changed:
            known = self._log.groups.get(group, Group()).offsets
            return {tp.partition: at for tp, at in known.items() if tp.topic == topic}

    def move(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        with self._log.changed:
            known = self._log.groups.setdefault(group, Group()).offsets
            known.update({TopicPartition(topic, p): at for p, at in offsets.items()})


def _struck(partition: _Partition, start: int) -> Pause | None:
    """Let the next fault at `start` happen."""
    faults = partition.faults.get(start)
    if not faults:
        return None
    fault = faults.pop(0)
    if not faults:
        del partition.faults[start]
    if isinstance(fault, Crash):
        raise fault
    return fault


def _batch(
    tp: TopicPartition, partition: _Partition, start: int, end: int, max_records: int
) -> RecordBatch | None:
    offsets: list[int] = []
    entries: list[_Entry] = []
    at = start
    while at < end and len(offsets) < max_records:
        entry = partition.entries[at]
        aborted = entry.transaction is not None and entry.transaction.state == "aborted"
        if entry.record is not None and not aborted:
            offsets.append(at)
            entries.append(entry)
        at += 1
    if at == start:
        return None
    if not offsets:
        return empty(tp, start, at)
    records = [e.record for e in entries if e.record is not None]
    headers: dict[int, Headers] = {i: r.headers for i, r in enumerate(records) if r.headers}
    return RecordBatch(
        topic=tp.topic,
        partition=tp.partition,
        start_offset=start,
        next_offset=at,
        offsets=np.array(offsets, np.int64),
        timestamps_ms=np.array([e.timestamp_ms for e in entries], np.int64),
        keys=[r.key for r in records],
        values=[r.value for r in records],
        headers=headers,
    )
