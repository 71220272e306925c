"""
The label join at work: both topics in, example files out, for all partitions it is given.

The order of a commit: examples are appended to an open file; the file is closed and named; the
manifest that lists it and holds the position is created. A crash anywhere before leaves the old
manifest, and the same examples are made again from its position.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from features import archive
from features.archive import ArchiveWriter, Manifest
from features.declare import FeatureSet, declared
from features.disk import Disk, Place
from features.example_bytes import encode, framed
from features.join import EVENTS, LISTS, SPARE, JoinPolicy, LabelJoin
from features.shown import DoneReader, ShownReader
from ingest.clock import Clock
from ingest.log import Log, Source, TopicPartition
from ingest.metrics import Metrics
from ingest.topics import Topics, check_offset, check_partitions
from schemas.columns import ColumnReader
from schemas.errors import Retryable
from schemas.events import Recommendation, UserEvent
from schemas.registry import Registry

KIND: Final = "examples"
SUFFIX: Final = ".tfrecord.gz"  # tf.data reads no zstd
# How often an idle partition's end is asked for.
_LOOK_S: Final = 1.0
_MEND: Final = (
    "Join what the log holds into another folder: `millstream features join --archive-dir`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """When a file is closed and counts."""

    max_bytes: int = 256_000_000  # before compression, which leaves about a tenth
    max_age_s: float = 60.0  # since the first record, or the first step of the position

    def due(self, size_bytes: int, age_s: float) -> bool:
        """Whether to close the file now.

        >>> Rotation(max_bytes=10).due(10, 0.0)
        True
        """
        return size_bytes >= self.max_bytes or age_s >= self.max_age_s


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkPolicy:
    """Sizes and patience of the worker."""

    rotation: Rotation = Rotation()
    max_lists: int = 16_384  # read and not yet written, over all partitions
    max_records: int = 5_000  # of a batch
    take_lists: int = 256  # turned into bytes at once
    gather_s: float = 0.5  # closed lists wait so long for others: one costs as much as a hundred
    spare_events: int = SPARE  # of a partition: kept, or read, although no list needs them
    poll_s: float = 0.1
    max_attempts: int = 8  # in a row, then the error goes up
    backoff_s: float = 0.2  # times the attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinParts:
    """What the join works with."""

    log: Log
    lists: Source
    events: Source
    registry: Registry
    topics: Topics
    features: FeatureSet
    root: Place
    clock: Clock
    metrics: Metrics
    disk: Disk | None = None


class _Partition:
    """One partition: its join and its writer."""

    def __init__(self, parts: JoinParts, policy: JoinPolicy, spare: int, first: Manifest) -> None:
        self.writer: ArchiveWriter = archive.claim(
            parts.root, first, SUFFIX, parts.disk, declared(parts.features)
        )
        held = self.writer.manifest
        self.join = LabelJoin(
            policy,
            partition=first.partition,
            fingerprint=first.fingerprint,
            position=held.position,
            notes=held.notes,
            spare=spare,
        )
        self.heard_s = self.written_s = parts.clock.monotonic_s()
        self.dirty_since_s: float | None = None


class JoinWorker:
    """Joins the partitions it is given (default: all) until told to stop."""

    def __init__(
        self,
        parts: JoinParts,
        policy: JoinPolicy,
        work: WorkPolicy | None = None,
        partitions: Sequence[int] | None = None,
    ) -> None:
        self._parts = parts
        self._policy = policy
        self._work = work or WorkPolicy()
        self._count = check_partitions(parts.log, parts.topics)
        self._wanted = list(range(self._count)) if partitions is None else list(partitions)
        self._held: dict[int, _Partition] = {}
        self._reading: dict[int, int] = {}  # partition -> next user-event that comes
        self._shown = ShownReader(ColumnReader(parts.registry, Recommendation), parts.features)
        future_ms = parts.features.row.future_ms
        self._done = DoneReader(ColumnReader(parts.registry, UserEvent), future_ms)
        self._log = structlog.get_logger("join")

    def run(self, stop: threading.Event, until: Mapping[int, int] | None = None) -> None:
        """
        Work until `stop` is set or the manifests have reached `until` (offsets of recommendations).

        Raises:
            PositionMoved: another worker has claimed a partition; this one must end.
            Retryable: something stayed unavailable through all attempts.
        """
        attempts = 0
        try:
            while not stop.is_set() and not self._reached(until):
                try:
                    self._step(until)
                    attempts = 0
                except Retryable as error:
                    attempts += 1
                    self._log.warning("join.again", error=type(error).__name__, detail=str(error))
                    self._drop()
                    if attempts >= self._work.max_attempts:
                        raise
                    self._parts.clock.sleep(self._work.backoff_s * attempts)
            self._commit_all()
        finally:
            self._drop()

    def _step(self, until: Mapping[int, int] | None) -> None:
        if not self._held:
            self._claim()
        waiting = any(p.join.waiting for p in self._held.values())
        came = self._read_lists(0.0 if waiting else self._work.poll_s)
        if self._reading and (waiting or not came):
            heard = self._read_events(0.0 if came else self._work.poll_s)
            if not came and not heard:
                self._close_idle()
        now_s = self._parts.clock.monotonic_s()
        for number, partition in self._held.items():
            many = len(partition.join) >= self._work.take_lists
            if many or now_s - partition.written_s >= self._work.gather_s:
                self._write(partition)
                partition.written_s = now_s
            end = None if until is None else until.get(number)
            self._rotate(partition, end)

    def _claim(self) -> None:
        parts = self._parts
        lists, events = parts.topics.recommendations, parts.topics.user_events
        ids = {
            "cluster": parts.log.cluster_id(),
            LISTS: parts.log.topic_id(lists),
            EVENTS: parts.log.topic_id(events),
        }
        starts, event_starts = parts.log.bounds(lists), parts.log.bounds(events)
        held = {}
        for number in self._wanted:
            first = Manifest(
                kind=KIND,
                partition=number,
                sequence=0,
                generation=0,
                position={LISTS: starts[number][0], EVENTS: event_starts[number][0]},
                log=ids,
                fingerprint=parts.features.fingerprint,
            )
            held[number] = _Partition(parts, self._policy, self._work.spare_events, first)
            join = held[number].join
            check_offset(TopicPartition(lists, number), join.lists_next, starts[number], _MEND)
            check_offset(
                TopicPartition(events, number), join.events_next, event_starts[number], _MEND
            )
        parts.lists.assign({TopicPartition(lists, n): p.join.lists_next for n, p in held.items()})
        self._reading = {}
        self._held = held

    def _read_lists(self, timeout_s: float) -> bool:
        if sum(len(p.join) for p in self._held.values()) >= self._work.max_lists:
            return False
        batch = self._parts.lists.poll(self._work.max_records, timeout_s)
        if batch is None:
            return False
        partition = self._held[batch.partition]
        lists, skipped = self._shown.read(batch, self._count)
        for reason, n in skipped.items():
            self._parts.metrics.count("join.skipped", n, reason=reason)
        partition.join.add_lists(lists, batch.next_offset)
        if len(lists) and self._reading.get(batch.partition) != partition.join.events_next:
            partition.heard_s = self._parts.clock.monotonic_s()
            self._seek(batch.partition)
        return True

    def _seek(self, number: int) -> None:
        """Read this partition's events from where its join wants them."""
        self._reading[number] = self._held[number].join.events_next
        topic = self._parts.topics.user_events
        self._parts.events.assign({TopicPartition(topic, n): at for n, at in self._reading.items()})

    def _read_events(self, timeout_s: float) -> bool:
        batch = self._parts.events.poll(self._work.max_records, timeout_s)
        if batch is None:
            return False
        partition = self._held[batch.partition]
        if batch.start_offset != partition.join.events_next:
            raise RuntimeError(
                f"user-events {batch.partition}: got {batch.start_offset}, "
                f"expected {partition.join.events_next}"
            )
        partition.join.add_events(self._done.read(batch, self._count), batch.next_offset)
        self._reading[batch.partition] = batch.next_offset
        if len(batch):
            partition.heard_s = self._parts.clock.monotonic_s()
        return True

    def _close_idle(self) -> None:
        """Close by wall clock what waits for events in partitions that have no more of them."""
        now_s = self._parts.clock.monotonic_s()
        idle = {
            number: p
            for number, p in self._held.items()
            if p.join.waiting and now_s - p.heard_s >= self._policy.idle_close_s
        }
        if not idle:
            return
        bounds = self._parts.log.bounds(self._parts.topics.user_events)
        for number, partition in idle.items():
            partition.heard_s = now_s - self._policy.idle_close_s + _LOOK_S
            if bounds[number][1] <= partition.join.events_next:
                closed = partition.join.close_idle(self._parts.clock.now_ms())
                self._parts.metrics.count("join.closed_idle", closed)

    def _write(self, partition: _Partition) -> None:
        """Append the examples of all lists that are closed."""
        while (examples := partition.join.take(self._work.take_lists)) is not None:
            content = framed(encode(examples, self._parts.features))
            partition.writer.append(content, len(examples), int(examples.event_time[0]))
            self._parts.metrics.count("join.examples", len(examples))
        outcomes = partition.join.outcomes()
        self._parts.metrics.count("join.unmatched", outcomes.unmatched)
        self._parts.metrics.count("join.late_labels", len(outcomes.late_ms))
        for took_ms in outcomes.late_ms.tolist():
            self._parts.metrics.observe("join.late_label_s", took_ms / 1000)

    def _rotate(self, partition: _Partition, end: int | None) -> None:
        """Commit when the file is large or old enough, or the end was reached."""
        position = partition.join.position
        held = partition.writer.manifest.position
        if position == held:
            return
        now_s = self._parts.clock.monotonic_s()
        if partition.dirty_since_s is None:
            partition.dirty_since_s = now_s
        age_s = now_s - partition.dirty_since_s
        ended = end is not None and held[LISTS] < end <= position[LISTS]
        if ended or self._work.rotation.due(partition.writer.pending_bytes, age_s):
            self._commit(partition)

    def _commit(self, partition: _Partition) -> None:
        partition.writer.commit(partition.join.position, partition.join.notes())
        partition.dirty_since_s = None

    def _commit_all(self) -> None:
        for partition in self._held.values():
            self._write(partition)
            self._commit(partition)

    def _reached(self, until: Mapping[int, int] | None) -> bool:
        if until is None or not self._held:
            return False
        return all(self._held[n].writer.manifest.position[LISTS] >= end for n, end in until.items())

    def _drop(self) -> None:
        """Let go of everything that is not committed."""
        for partition in self._held.values():
            partition.writer.close()
        self._held = {}
        self._reading = {}
