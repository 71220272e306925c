"""
Recordings: what a topic held up to an end that does not move, read as the log itself is read.

A range of Kafka's log, the event archive, container files and tables of events are all recordings
(`features.event_files`). `RecordedSource` and `RecordedLog` make a `Source` and a `Log` of them, so
that what works on the log (split, rebuild, backfill) works on files as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from features.fit import EventReader
from ingest.batches import empty, part
from ingest.log import RecordBatch, TopicPartition
from schemas.columns import ColumnReader
from schemas.errors import BrokerUnavailable, Misconfigured, PositionForeign
from schemas.events import UserEvent
from schemas.registry import Registry

FILES = "files"  # the cluster id of what names no cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which log a recording is of, and which stretch of it."""

    topic: str
    cluster_id: str
    topic_id: str
    partitions: int  # of the topic, whether or not they are recorded
    bounds: Mapping[int, tuple[int, int]]  # partition -> first offset, end; what is recorded

    @property
    def records(self) -> int:
        """Offsets in all; some may be holes."""
        return sum(end - first for first, end in self.bounds.values())


class Recording(Protocol):
    """
    A bounded topic. It travels with a pipeline: it holds no connection.

    Implementations must pass `tests.contracts.recording.RecordingContract`.
    """

    @property
    def origin(self) -> Origin:
        """Of what, from where to where."""

    def batches(self, partition: int, offset: int, max_records: int) -> Iterator[RecordBatch]:
        """
        The records from `offset` on, in contiguous batches that end at the partition's end.

        Raises:
            ArchiveUnavailable: a file is missing or damaged.
            BrokerUnavailable: the log did not give what it says it has.
        """

    def reader(self, registry: Registry) -> EventReader:
        """What decodes its values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRecording:
    """A recording in memory: batches of each partition, contiguous from first offset to end."""

    origin: Origin
    held: Mapping[int, Sequence[RecordBatch]]

    def batches(self, partition: int, offset: int, max_records: int) -> Iterator[RecordBatch]:
        for batch in self.held.get(partition, ()):
            if batch.next_offset > offset:
                yield from cut(batch, offset, max_records)

    def reader(self, registry: Registry) -> EventReader:
        return ColumnReader(registry, UserEvent)


def cut(batch: RecordBatch, offset: int, max_records: int) -> Iterator[RecordBatch]:
    """
    What a batch holds from `offset` on, some records at a time.

    >>> whole = empty(TopicPartition("t", 0), 5, 9)
    >>> [(b.start_offset, b.next_offset) for b in cut(whole, 7, 10)]
    [(7, 9)]
    """
    first = int((batch.offsets < offset).sum())
    if first == len(batch):
        tp = TopicPartition(batch.topic, batch.partition)
        yield empty(tp, max(offset, batch.start_offset), batch.next_offset)
        return
    for at in range(first, len(batch), max_records):
        piece = part(batch, at, min(at + max_records, len(batch)))
        # A hole before the first record belongs to it.
        yield _begun_at(piece, max(offset, batch.start_offset)) if at == first else piece


def _begun_at(batch: RecordBatch, offset: int) -> RecordBatch:
    return RecordBatch(
        topic=batch.topic,
        partition=batch.partition,
        start_offset=offset,
        next_offset=batch.next_offset,
        offsets=batch.offsets,
        timestamps_ms=batch.timestamps_ms,
        keys=batch.keys,
        values=batch.values,
        headers=batch.headers,
    )


class RecordedLog:
    """What can be asked about recordings of some topics: a `Log`."""

    def __init__(self, *recordings: Recording) -> None:
        self._origins = {r.origin.topic: r.origin for r in recordings}

    def cluster_id(self) -> str:
        return next(iter(self._origins.values())).cluster_id

    def topic_id(self, topic: str) -> str:
        return self._origin(topic).topic_id

    def partitions(self, topic: str) -> int:
        return self._origin(topic).partitions

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        return dict(self._origin(topic).bounds)

    def _origin(self, topic: str) -> Origin:
        if topic not in self._origins:
            raise Misconfigured(f"there is no recording of topic {topic}")
        return self._origins[topic]


class RecordedSource:
    """Recordings of some topics as a `Source`: partitions in turn, and None once all have ended."""

    def __init__(self, *recordings: Recording) -> None:
        self._recordings = {r.origin.topic: r for r in recordings}
        self._at: dict[TopicPartition, int] = {}
        self._reading: dict[TopicPartition, Iterator[RecordBatch]] = {}
        self._closed = False

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._at = dict(positions)
        self._reading = {}

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        """As `Source.poll`, but it never waits: what is not there does not come."""
        if self._closed:
            raise BrokerUnavailable("poll: the source is closed")
        for tp in list(self._at):
            offset = self._at.pop(tp)  # to the end of the turn
            batch = self._next(tp, offset, max_records)
            if batch is not None:
                self._at[tp] = batch.next_offset
                return batch
            self._reading.pop(tp, None)
        return None

    def close(self) -> None:
        self._closed = True
        self._at, self._reading = {}, {}

    def _next(self, tp: TopicPartition, offset: int, max_records: int) -> RecordBatch | None:
        if tp not in self._reading:
            if tp.topic not in self._recordings:
                raise BrokerUnavailable(f"there is no recording of topic {tp.topic}")
            recording = self._recordings[tp.topic]
            first, end = recording.origin.bounds.get(tp.partition, (0, 0))
            if not first <= offset <= end:
                raise PositionForeign(
                    f"{tp.topic}[{tp.partition}] is recorded from offset {first} to {end}, "
                    f"not at {offset}"
                )
            if offset == end:
                return None
            self._reading[tp] = recording.batches(tp.partition, offset, max_records)
        return next(self._reading[tp], None)
