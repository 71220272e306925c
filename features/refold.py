"""One partition of user-events folded again in memory, up to any offset that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from features import rows
from features.declare import FeatureSet
from features.fit import EventReader
from features.outlets import NoOutlets, Outlets
from features.store import Keys, Position, RowReader, RowWriter, Update
from features.store_memory import MemoryStore
from features.worker import FeatureWorker, FoldRules
from ingest.batches import part
from ingest.clock import Clock
from ingest.log import Log, RecordBatch, Source, TopicPartition
from schemas.errors import BrokerUnavailable, Misconfigured

MAX_RECORDS = 8_192
POLL_S = 1.0


class Store(RowWriter, RowReader, Protocol):
    """The live rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildParts:
    """What a rebuild needs. `open_source` and `open_reader` give fresh ones."""

    topic: str
    log: Log
    store: Store
    features: FeatureSet
    open_source: Callable[[], Source]
    open_reader: Callable[[], EventReader]
    open_outlets: Callable[[], Outlets]  # a fold that starts afresh sends on again
    clock: Clock
    timeout_s: float
    tell: Callable[[int], None] = lambda offset: None  # how far a fold has come

    def start(self, partition: int) -> tuple[Position, int]:
        """Where a partition's fold starts, and the end of its log."""
        first, end = self.log.bounds(self.topic)[partition]
        start = Position(
            cluster_id=self.log.cluster_id(),
            topic_id=self.log.topic_id(self.topic),
            epoch=1,
            next_offset=first,
        )
        return start, end

    def worker(self, store: RowWriter, outlets: Outlets) -> FeatureWorker:
        """A worker that folds this topic into `store`."""
        rules = FoldRules(features=self.features, partitions=self.log.partitions(self.topic))
        return FeatureWorker(store, self.open_reader(), outlets, rules)


class Tape:
    """Records of one partition in order, cut wherever it is asked for."""

    def __init__(self, parts: RebuildParts, partition: int, offset: int) -> None:
        self._clock = parts.clock
        self._timeout_s = parts.timeout_s
        self._tp = TopicPartition(parts.topic, partition)
        self._source = parts.open_source()
        self._source.assign({self._tp: offset})
        self._pending: RecordBatch | None = None

    def before(self, offset: int) -> RecordBatch:
        """The next records that come before `offset`; empty when only a hole is left."""
        batch = self._pending or self._next(offset)
        self._pending = None
        cut = int(np.searchsorted(batch.offsets, offset))
        if cut < len(batch):
            self._pending = part(batch, cut, len(batch))
            batch = part(batch, 0, cut)
        return batch

    def close(self) -> None:
        self._source.close()

    def _next(self, offset: int) -> RecordBatch:
        until_s = self._clock.monotonic_s() + self._timeout_s
        while self._clock.monotonic_s() < until_s:
            batch = self._source.poll(MAX_RECORDS, POLL_S)
            if batch is not None:
                return batch
        raise BrokerUnavailable(
            f"{self._tp.topic}[{self._tp.partition}] gave nothing in {self._timeout_s:g} s on the "
            f"way to offset {offset}"
        )


class Refold:
    """A fold in memory that only goes forward."""

    def __init__(self, parts: RebuildParts, partition: int, start: Position) -> None:
        self.partition = partition
        self.offset = start.next_offset
        self._memory = MemoryStore()
        self._worker = parts.worker(self._memory, NoOutlets())
        self._worker.take(self._memory.claim(partition, start))
        self._tape = Tape(parts, partition, start.next_offset)
        self._tell = parts.tell
        # What the log does not know is replaced by the row of a user nothing is known of.
        self._nobody = rows.encode(rows.empty(1), parts.features.fingerprint)[0]

    def advance_to(self, offset: int) -> None:
        """Fold the records before `offset`."""
        while self.offset < offset:
            batch = self._tape.before(offset)
            if batch.next_offset > self.offset:
                self._worker.process(batch)
                self.offset = batch.next_offset
                self._tell(self.offset)

    def known(self) -> Keys:
        return self._memory.keys(self.partition)

    def rows(self, users: Sequence[str]) -> Sequence[bytes | None]:
        return self._memory.snapshots({self.partition: users})[self.partition].rows

    def partials(self, items: Sequence[str]) -> Sequence[bytes | None]:
        return self._memory.partials(self.partition, items).rows

    def says_nothing(self, row: bytes | None) -> bool:
        """Whether a stored row is none at all, or the empty one that a rebuild leaves."""
        return row is None or row == self._nobody

    def update(self, users: Sequence[str], items: Sequence[str], at: Position) -> Update:
        """What puts these keys right without moving the position."""
        partials = zip(items, self.partials(items), strict=True)
        return Update(
            rows={u: r or self._nobody for u, r in zip(users, self.rows(users), strict=True)},
            partials={item: partial for item, partial in partials if partial is not None},
            next_offset=at.next_offset,
        )

    def close(self) -> None:
        self._tape.close()


@contextmanager
def refolding(parts: RebuildParts, partition: int) -> Iterator[Refold]:
    """
    A refold that stands at the beginning.

    Raises:
        Misconfigured: the beginning of the log is gone.
    """
    start, _ = parts.start(partition)
    if start.next_offset > 0:
        raise Misconfigured(
            f"{parts.topic}[{partition}] begins at offset {start.next_offset}: its earlier events "
            "are gone, and rows cannot be rebuilt from the log alone"
        )
    refold = Refold(parts, partition, start)
    try:
        yield refold
    finally:
        refold.close()
