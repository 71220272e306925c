"""
The live parts that fold some partitions, and the process-wide pool that keeps them.

Beam makes and drops readers at every bundle; what is dear (consumers, connections, leases) lives
here, keyed by split. The pool claims partitions when it opens a split. After a refused or failed
write the split is dropped: nothing goes on from a position that was not written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from features.counts import Counts
from features.store import Lease, Position, RowReader, RowWriter
from features.worker import FeatureWorker
from ingest.clock import Clock
from ingest.log import Log, RecordBatch, Source, TopicPartition
from ingest.metrics import Metrics
from schemas.errors import Misconfigured, PositionForeign, PositionMoved, Retryable

log = structlog.get_logger(__name__)

# When behind: more events of a user meet in one batch, and her row is written once for all.
MAX_RECORDS = 131_072
# Batches of several partitions are folded in one pass while they are small; from here on a fold's
# fixed costs are nothing beside those of its events.
GATHERED_RECORDS = 8_192
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 5.0
REPLAY_MS = 600_000


class Closing(Protocol):
    """What is given up with the split."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitParts:
    """What a split is made of. `closing` are ended with it, in order."""

    topic: str
    partitions: tuple[int, ...]
    source: Source
    log: Log
    writer: RowWriter
    reader: RowReader
    worker: FeatureWorker
    clock: Clock
    metrics: Metrics | None = None
    from_earliest: bool = False  # begin although the head of the log is gone
    # Started once the partitions are claimed, ended first: what runs beside the fold.
    beside: Callable[[Split], Closing] | None = None
    closing: tuple[Closing, ...] = ()


class Split:
    """Some partitions of user-events: polled, folded together, written with their positions."""

    def __init__(self, parts: SplitParts) -> None:
        self._parts = parts
        self._stop = threading.Event()
        self._epochs: dict[int, int] = {}
        self._beside: Closing | None = None
        self._held: RecordBatch | None = None  # read, for the next poll
        self._failure: BaseException | None = None

    @property
    def partitions(self) -> tuple[int, ...]:
        """Whose events it folds."""
        return self._parts.partitions

    def open(self) -> None:
        """
        Claim the partitions and read on from where the store stands.

        Raises:
            Misconfigured: no position is stored and the head of the log is gone.
            PositionForeign: a stored position is not one of this log.
        """
        parts = self._parts
        cluster_id, topic_id = parts.log.cluster_id(), parts.log.topic_id(parts.topic)
        bounds = parts.log.bounds(parts.topic)
        stored = parts.reader.positions(parts.partitions)
        starts = {}
        for partition in parts.partitions:
            first, end = bounds[partition]
            start = Position(cluster_id=cluster_id, topic_id=topic_id, epoch=1, next_offset=first)
            check_start(partition, stored[partition], start, end, parts.from_earliest)
            lease = parts.writer.claim(partition, start)
            if stored[partition] is None or lease.position.next_offset == 0:
                self._begin(lease)
            parts.worker.take(lease)
            self._epochs[partition] = lease.position.epoch
            starts[TopicPartition(parts.topic, partition)] = lease.position.next_offset
        parts.source.assign(starts)
        if parts.beside is not None:
            self._beside = parts.beside(self)

    def owns(self, partition: int) -> bool:
        """Whether the lease that `open` took still holds."""
        stored = self._parts.reader.positions([partition])[partition]
        return stored is not None and stored.epoch == self._epochs[partition]

    def poll(self, timeout_s: float) -> tuple[RecordBatch, ...]:
        """
        The next batches, at most one of each partition; () when nothing came.

        Raises:
            MillstreamError: what runs beside the fold has failed.
        """
        if self._failure is not None:
            raise self._failure
        found: list[RecordBatch] = []
        while sum(map(len, found)) < GATHERED_RECORDS and len(found) < len(self.partitions):
            batch, self._held = self._held, None
            if batch is None:
                batch = self._parts.source.poll(MAX_RECORDS, 0 if found else timeout_s)
            if batch is None:
                break
            if any(batch.partition == one.partition for one in found):
                self._held = batch
                break
            found.append(batch)
        return tuple(found)

    def handle(self, batches: Sequence[RecordBatch]) -> Counts:
        """
        Fold what `poll` gave and write it; waits and tries again while a part is gone.

        Raises:
            PositionMoved: another worker took a partition over, or the store was emptied.
        """
        wait_s = FIRST_WAIT_S
        left = list(batches)
        while left:
            try:
                counts = self._parts.worker.process(*left)
            except Retryable as error:
                log.warning("features.retry", error=str(error), wait_s=wait_s)
                if self._stop.is_set():
                    raise
            else:
                self._measure(left, counts)
                return counts
            self._parts.clock.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            left = [batch for batch in left if not self._written(batch)]
        return Counts()

    def stop(self) -> None:
        """End the waiting of `handle` with its error."""
        self._stop.set()

    def fail(self, error: BaseException) -> None:
        """Let the next `poll` raise the error of what runs beside the fold."""
        self._failure = self._failure or error
        self.stop()

    def close(self) -> None:
        """Give everything up. Idempotent."""
        self._stop.set()
        if self._beside is not None:
            self._beside.close()
            self._beside = None
        self._parts.source.close()
        for part in self._parts.closing:
            part.close()

    def _measure(self, batches: Sequence[RecordBatch], counts: Counts) -> None:
        metrics = self._parts.metrics
        if metrics is None:
            return
        metrics.count("features.events", counts.folded)
        metrics.count("features.duplicates", counts.duplicates)
        metrics.count("features.late", counts.late)
        metrics.count("features.misplaced", counts.misplaced)
        # Live producers stamp the wall clock; a replay's old timestamps say nothing of freshness.
        now_ms = self._parts.clock.now_ms()
        for batch in batches:
            age_ms = now_ms - int(batch.timestamps_ms[0]) if len(batch) else REPLAY_MS
            if 0 <= age_ms < REPLAY_MS:
                metrics.observe("features.freshness_s", age_ms / 1000)

    def _begin(self, lease: Lease) -> None:
        """Nothing is folded yet: what stands in the store is left over from a lost position."""
        left_over = self._parts.writer.clear(lease)
        log.info(
            "features.begin",
            partition=lease.partition,
            offset=lease.position.next_offset,
            left_over=left_over,
        )

    def _written(self, batch: RecordBatch) -> bool:
        """Whether it was written, be it without acknowledgement; the lease then moves on."""
        worker = self._parts.worker
        ours = worker.leases[batch.partition].position
        if ours.next_offset == batch.next_offset:
            return True
        try:
            stored = self._parts.reader.positions([batch.partition])[batch.partition]
        except Retryable:
            return False  # still gone: `process` fails again, and waits longer
        if (
            stored is None
            or stored.next_offset != batch.next_offset
            or replace(ours, next_offset=0, origins=(), counts=())
            != replace(stored, next_offset=0, origins=(), counts=())
        ):
            return False
        worker.take(Lease(partition=batch.partition, position=stored))
        return True


def check_start(
    partition: int, stored: Position | None, start: Position, end: int, from_earliest: bool
) -> None:
    """
    Whether a partition whose log spans `start.next_offset` to `end` may go on from `stored`.

    Raises:
        Misconfigured: nothing is stored, and the log no longer holds its beginning.
        PositionForeign: what is stored is no offset of this log.
    """
    rebuild = f"`millstream features rebuild --partition {partition}`"
    first = start.next_offset
    if stored is None:
        if first > 0 and not from_earliest:
            raise Misconfigured(
                f"the store holds no position of partition {partition}, and its log begins at "
                f"offset {first}: earlier events are gone. To fold what is left, run "
                "`millstream features run --from-earliest`"
            )
        return
    if (stored.cluster_id, stored.topic_id) != (start.cluster_id, start.topic_id):
        raise PositionForeign(
            f"partition {partition} of the store was folded from cluster {stored.cluster_id}, "
            f"topic id {stored.topic_id}; this log is cluster {start.cluster_id}, topic id "
            f"{start.topic_id}. To fold this log instead, run {rebuild}"
        )
    if not first <= stored.next_offset <= end:
        raise PositionForeign(
            f"partition {partition} of the store stands at offset {stored.next_offset}, but its "
            f"log spans {first} to {end}. To fold what the log holds, run {rebuild}"
        )


def check_rows(reader: RowReader, log: Log, topic: str) -> None:
    """
    Whether the stored rows are a fold of this log, as a reader of them asks at its start.

    Raises:
        PositionForeign: they are of another cluster, topic, or stretch of it.
        StoreUnavailable: the store did not answer.
    """
    cluster_id, topic_id = log.cluster_id(), log.topic_id(topic)
    bounds = log.bounds(topic)
    for partition, stored in reader.positions(list(bounds)).items():
        first, end = bounds[partition]
        if stored is None:
            continue
        # A reader needs no events: rows may stand where retention has taken the log away.
        at = min(first, stored.next_offset)
        start = Position(cluster_id=cluster_id, topic_id=topic_id, epoch=1, next_offset=at)
        check_start(partition, stored, start, end, from_earliest=True)


class Pool:
    """Open splits of this process by name."""

    def __init__(self) -> None:
        self._splits: dict[str, Split] = {}
        self._lock = threading.Lock()
        self.stopping = threading.Event()  # readers end when set
        self.failure: BaseException | None = None  # the first; a runner keeps only its text
        self.metrics: Metrics | None = None  # of the splits that are opened
        self.on_open: Callable[[Split], None] | None = None  # told when one is open

    def get(self, name: str, open_split: Callable[[], Split]) -> Split:
        """The open split of that name, opened if there is none."""
        with self._lock, self.noting():
            if name not in self._splits:
                split = open_split()
                try:
                    split.open()
                except BaseException:
                    split.close()
                    raise
                self._splits[name] = split
                if self.on_open is not None:
                    self.on_open(split)
            return self._splits[name]

    @contextmanager
    def using(self, name: str) -> Iterator[Split]:
        """The open split of that name; it is dropped when the work on it fails."""
        with self._lock:
            split = self._splits.get(name)
        if split is None:
            raise PositionMoved(f"{name} was dropped after an error: read again")
        try:
            with self.noting():
                yield split
        except BaseException as error:
            log.warning("features.dropped", partitions=split.partitions, error=repr(error))
            self.drop(name)
            raise

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep the first error for whoever started the pipeline."""
        try:
            yield
        except BaseException as error:
            self.failure = self.failure or error
            raise

    def drop(self, name: str) -> None:
        """Close one split, if it is open."""
        with self._lock:
            split = self._splits.pop(name, None)
        if split is not None:
            split.close()

    def stop(self) -> None:
        """Let the readers end; what is in work is finished, unless it waits for a lost part."""
        self.stopping.set()
        for split in list(self._splits.values()):
            split.stop()

    def reset(self) -> None:
        """Close everything and start afresh."""
        for name in list(self._splits):
            self.drop(name)
        self.stopping.clear()
        self.failure = self.metrics = self.on_open = None


POOL = Pool()
