"""
One topic copied into another that has another number of partitions.

Records come in order of their timestamps over all old partitions, so that the order of each key is
kept and time does not jump back, and lie where their key says. Each transaction holds some records
and how far the old partitions are copied with them.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.clock import Clock
from ingest.log import Log, Outgoing, RecordBatch, Source, TopicPartition, TransactionalProducer
from ingest.origin import ORIGIN_HEADER, first_place, origin_of
from ingest.placement import partitions_of
from ingest.topics import Admin, Groups, TopicSpec
from schemas.errors import BrokerUnavailable

TRANSACTION_RECORDS: Final = 5_000
TRANSACTION_BYTES: Final = 16_000_000
BATCH_RECORDS: Final = 2_000  # read ahead of a partition
POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyParts:
    """What a copy works with. `open_source` gives fresh ones."""

    log: Log
    admin: Admin
    groups: Groups
    open_source: Callable[[], Source]
    open_producer: Callable[[str], TransactionalProducer]  # by transactional id
    clock: Clock
    timeout_s: float


class Done(NamedTuple):
    """How far one old partition has been copied, and how many records that were."""

    next_offset: int
    records: int


class _Lane:
    """One old partition, read forward up to where it ended when the pass began."""

    def __init__(
        self, parts: CopyParts, place: TopicPartition, start: int, end: int, partitions: int
    ) -> None:
        self.place, self.next_offset = place, start
        self._parts, self._end, self._partitions = parts, end, partitions
        self._source = parts.open_source()
        self._source.assign({place: start})
        self._batch: RecordBatch | None = None
        self._at = 0
        self._home: NDArray[np.int32] = np.zeros(0, np.int32)

    def head_ms(self) -> int | None:
        """Timestamp of the next record; None: there is none before the end."""
        while self._batch is None or self._at == len(self._batch):
            if self.next_offset >= self._end:
                return None
            self._fill()
        if int(self._batch.offsets[self._at]) >= self._end:
            return None
        return int(self._batch.timestamps_ms[self._at])

    def take(self, passed: int) -> tuple[RecordBatch, int] | None:
        """The next record, by its place in a batch; None: its copy elsewhere is taken instead."""
        batch, at = self._current(), self._at
        self._at += 1
        last = self._at == len(batch)
        self.next_offset = batch.next_offset if last else int(batch.offsets[at]) + 1
        sent_on = (
            int(batch.offsets[at]) < passed
            and batch.keys[at] is not None
            and self._home[at] != self.place.partition
            and first_place(batch.headers.get(at, ())) is None
        )
        return None if sent_on else (batch, at)

    def close(self) -> None:
        self._source.close()

    def _current(self) -> RecordBatch:
        if self._batch is None:
            raise RuntimeError("take before head_ms")
        return self._batch

    def _fill(self) -> None:
        until_s = self._parts.clock.monotonic_s() + self._parts.timeout_s
        while (batch := self._source.poll(BATCH_RECORDS, POLL_S)) is None:
            if self._parts.clock.monotonic_s() >= until_s:
                raise BrokerUnavailable(
                    f"{self.place.topic}[{self.place.partition}] gave nothing in "
                    f"{self._parts.timeout_s:g} s on the way to offset {self._end}"
                )
        self._batch, self._at = batch, 0
        self._home = partitions_of([key or b"" for key in batch.keys], self._partitions)
        if not len(batch):
            self.next_offset = batch.next_offset


class TopicCopy:
    """One pass over one topic."""

    def __init__(self, parts: CopyParts, old: str, new: TopicSpec, copied: str) -> None:
        self._parts, self._old, self._new, self._copied = parts, old, new, copied
        self._topic_id = parts.log.topic_id(old)

    def run(
        self,
        producer: TransactionalProducer,
        done: dict[TopicPartition, Done],
        passed: Mapping[int, int],
        on_progress: Callable[[int], None],
    ) -> int:
        """Copy, moving `done` on with every transaction; the number of records."""
        lanes = self._lanes(done)
        total = 0
        try:
            for chunk in self._chunks(lanes, passed):
                now = self._now(lanes, chunk, done)
                if now:
                    producer.begin()
                    for _, record in chunk:
                        producer.send(record)
                    for place, one in now.items():
                        producer.send(self._progress(place, one))
                    producer.commit({}, None)
                    done |= now
                total += len(chunk)
                on_progress(len(chunk))
        finally:
            for lane in lanes:
                lane.close()
        return total

    def _lanes(self, done: Mapping[TopicPartition, Done]) -> list[_Lane]:
        bounds = self._parts.log.bounds(self._old)
        lanes = []
        for partition, (first, end) in bounds.items():
            place = TopicPartition(self._old, partition)
            start = max(first, done.get(place, Done(0, 0)).next_offset)
            if start < end:
                lanes.append(_Lane(self._parts, place, start, end, len(bounds)))
        return lanes

    def _chunks(
        self, lanes: Sequence[_Lane], passed: Mapping[int, int]
    ) -> Iterator[list[tuple[_Lane, Outgoing]]]:
        """All records by timestamp, one transaction's a time; the last may be empty."""
        chunk: list[tuple[_Lane, Outgoing]] = []
        size_bytes = 0
        heads = [
            (at_ms, n) for n, lane in enumerate(lanes) if (at_ms := lane.head_ms()) is not None
        ]
        heapq.heapify(heads)
        while heads:
            lane = lanes[heads[0][1]]
            taken = lane.take(passed.get(lane.place.partition, 0))
            if taken is not None:
                record = self._outgoing(*taken)
                chunk.append((lane, record))
                size_bytes += len(record.value or b"")
            if len(chunk) >= TRANSACTION_RECORDS or size_bytes >= TRANSACTION_BYTES:
                yield chunk
                chunk, size_bytes = [], 0
            if (at_ms := lane.head_ms()) is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (at_ms, heads[0][1]))
        yield chunk

    def _now(
        self,
        lanes: Sequence[_Lane],
        chunk: Sequence[tuple[_Lane, Outgoing]],
        done: Mapping[TopicPartition, Done],
    ) -> dict[TopicPartition, Done]:
        """How far the partitions are once the chunk is written, those that moved."""
        counts = Counter(lane.place for lane, _ in chunk)
        before = {lane.place: done.get(lane.place, Done(0, 0)) for lane in lanes}
        return {
            lane.place: Done(lane.next_offset, before[lane.place].records + counts[lane.place])
            for lane in lanes
            if lane.next_offset > before[lane.place].next_offset
        }

    def _outgoing(self, batch: RecordBatch, at: int) -> Outgoing:
        headers = batch.headers.get(at, ())
        if first_place(headers) is None:
            headers = (*headers, (ORIGIN_HEADER, origin_of(batch, at)))
        key = batch.keys[at]
        return Outgoing(
            topic=self._new.name,
            key=key,
            value=batch.values[at],
            timestamp_ms=int(batch.timestamps_ms[at]),
            # Without a key nothing says where to; so it comes to one place at every try.
            partition=batch.partition % self._new.partitions if key is None else None,
            headers=headers,
        )

    def _progress(self, place: TopicPartition, now: Done) -> Outgoing:
        told = {"topic_id": self._topic_id, **place._asdict(), **now._asdict()}
        key = f"{place.topic}/{place.partition}".encode()
        return Outgoing(topic=self._copied, key=key, value=json.dumps(told).encode())
