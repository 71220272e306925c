"""
Recorded user-events folded to their end, one partition at a time: what a batch pipeline shares out.

A partition is folded by the streaming job's own split over a source that ends, so its rows and
partials are the streaming job's at the same offset, byte for byte. They go into the store together
with their position (streaming goes on from there, and so does a backfill that was killed), into
files, or nowhere: they are compared with what the store holds.

Records that the fold refuses, and misplaced ones, are counted and not sent anywhere: the streaming
job has sent them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Protocol

import polars as pl

from features import rebuild
from features.batch_reports import Reports
from features.counts import Counts
from features.declare import FeatureSet
from features.hot_rows import HotRows
from features.outlets import NoOutlets
from features.position import encoded
from features.rebuild import PartitionReport
from features.recording import RecordedLog, RecordedSource, Recording
from features.refold import RebuildParts
from features.split import Split, SplitParts
from features.store import Position, RowReader, RowWriter
from features.store_memory import MemoryStore
from features.worker import FeatureWorker, FoldRules
from ingest.clock import Clock, SystemClock
from schemas.errors import Misconfigured
from schemas.registry import Registry

Tell = Callable[[int], None]  # records folded since the last time


class Store(RowWriter, RowReader, Protocol):
    """A store of rows, with a connection to give up."""

    def close(self) -> None: ...


class Opening(Protocol):
    """Opens what a worker of the pipeline needs. Travels with it, so it holds no connection."""

    def registry(self) -> Registry: ...

    def store(self) -> Store: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldReport:
    """One partition folded up to `offset`."""

    partition: int
    offset: int
    counts: Counts = field(default_factory=Counts)  # of the records that were folded now
    compared: PartitionReport | None = None  # where there was something to compare with


class Target(Protocol):
    """What becomes of a folded partition. Travels with the pipeline."""

    def fold(self, recording: Recording, partition: int, tell: Tell) -> FoldReport:
        """Fold one partition of a recording to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntoStore:
    """Rows, partials and position go into the store, as the streaming job writes them."""

    features: FeatureSet
    opening: Opening

    def fold(self, recording: Recording, partition: int, tell: Tell) -> FoldReport:
        """
        As `Target.fold`; goes on from the store's position where that is one of this recording.

        Raises:
            Misconfigured: the store stands elsewhere, or the recording lacks its beginning.
            PositionMoved: a streaming job, or another backfill, has taken the partition over.
        """
        with closing(self.opening.store()) as store:
            stored = store.positions([partition])[partition]
            origin = recording.origin
            end = origin.bounds[partition][1]
            same = stored and (stored.cluster_id, stored.topic_id) == (
                origin.cluster_id,
                origin.topic_id,
            )
            if stored and same and stored.next_offset >= end:
                return FoldReport(partition=partition, offset=stored.next_offset)
            counts = _folded(self, recording, partition, HotRows(store), store, tell)
            return FoldReport(partition=partition, offset=end, counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntoFiles:
    """
    Rows and partials go into Parquet files, by key, and the position beside them as JSON.

        <folder>/rows-<partition>.parquet        user, row
        <folder>/partials-<partition>.parquet    item, partial
        <folder>/position-<partition>.json
    """

    features: FeatureSet
    opening: Opening
    folder: Path

    def fold(self, recording: Recording, partition: int, tell: Tell) -> FoldReport:
        memory = MemoryStore()
        counts = _folded(self, recording, partition, memory, memory, tell, whole=False)
        position = memory.positions([partition])[partition]
        if position is None:
            raise RuntimeError(f"partition {partition} was folded and has no position")
        self._write(memory, partition, position)
        return FoldReport(partition=partition, offset=position.next_offset, counts=counts)

    def _write(self, memory: MemoryStore, partition: int, position: Position) -> None:
        keys = memory.keys(partition)
        users, items = sorted(keys.users), sorted(keys.items)
        rows = memory.snapshots({partition: users})[partition].rows
        partials = memory.partials(partition, items).rows
        self.folder.mkdir(parents=True, exist_ok=True)
        tables = {
            "rows": pl.DataFrame({"user": users, "row": rows}, schema=_ROWS),
            "partials": pl.DataFrame({"item": items, "partial": partials}, schema=_PARTIALS),
        }
        for name, table in tables.items():
            table.write_parquet(self.folder / f"{name}-{partition}.parquet")
        (self.folder / f"position-{partition}.json").write_text(encoded(position))


_ROWS = {"user": pl.String(), "row": pl.Binary()}
_PARTIALS = {"item": pl.String(), "partial": pl.Binary()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Nothing is written: the store's rows and partials are compared with the recording's."""

    features: FeatureSet
    opening: Opening
    timeout_s: float = 10.0

    def fold(self, recording: Recording, partition: int, tell: Tell) -> FoldReport:
        """
        As `Target.fold`, up to where the store stands.

        Raises:
            Misconfigured: the store stands at no offset of this recording.
        """
        registry = self.opening.registry()
        with closing(self.opening.store()) as store:
            stored = store.positions([partition])[partition]
            start, end = _start(recording, partition), recording.origin.bounds[partition][1]
            if stored is not None and not rebuild.of_this_log(stored, start, end):
                raise Misconfigured(
                    f"partition {partition} of the store stands at offset {stored.next_offset} of "
                    f"{stored.cluster_id}/{stored.topic_id}: the recording is of "
                    f"{start.cluster_id}/{start.topic_id}, offsets {start.next_offset} to {end}"
                )
            parts = RebuildParts(
                topic=recording.origin.topic,
                log=RecordedLog(recording),
                store=store,
                features=self.features,
                open_source=lambda: RecordedSource(recording),
                open_reader=lambda: recording.reader(registry),
                open_outlets=NoOutlets,
                clock=SystemClock(),
                timeout_s=self.timeout_s,
            )
            compared = rebuild.verify_partition(parts, partition)
        tell(compared.offset - start.next_offset)
        return FoldReport(partition=partition, offset=compared.offset, compared=compared)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldStep:
    """Folds a partition; its report goes to whoever started the pipeline."""

    target: Target
    reports: Reports

    def __call__(
        self, recording: Recording, partition: int, before: Sequence[object] = ()
    ) -> Iterator[int]:
        with self.reports.noting(FOLD, partition) as tell:
            report = self.target.fold(recording, partition, tell)
        compared = report.compared
        self.reports.result(
            partition,
            {
                "partition": partition,
                "offset": report.offset,
                "counts": dict(report.counts.named()),
                "compared": None if compared is None else asdict(compared),
            },
        )
        yield partition


FOLD: Final = "fold"


class _Parts(Protocol):
    """What every target knows."""

    @property
    def features(self) -> FeatureSet: ...

    @property
    def opening(self) -> Opening: ...


def _folded(
    parts: _Parts,
    recording: Recording,
    partition: int,
    writer: RowWriter,
    reader: RowReader,
    tell: Tell,
    *,
    whole: bool = True,
) -> Counts:
    """
    Fold to the recording's end by the streaming job's split.

    Args:
        whole: the recording must begin where the log began, or go on from what is stored.
    """
    origin = recording.origin
    rules = FoldRules(features=parts.features, partitions=origin.partitions)
    events = recording.reader(parts.opening.registry())
    split = Split(
        SplitParts(
            topic=origin.topic,
            partitions=(partition,),
            source=RecordedSource(recording),
            log=RecordedLog(recording),
            writer=writer,
            reader=reader,
            worker=FeatureWorker(writer, events, NoOutlets(), rules),
            clock=_CLOCK,
            from_earliest=not whole,
        )
    )
    counts = Counts()
    with closing(split):
        split.open()
        while batches := split.poll(0.0):
            counts += split.handle(batches)
            tell(sum(map(len, batches)))
    return counts


_CLOCK: Clock = SystemClock()


def _start(recording: Recording, partition: int) -> Position:
    origin = recording.origin
    return Position(
        cluster_id=origin.cluster_id,
        topic_id=origin.topic_id,
        epoch=1,
        next_offset=origin.bounds[partition][0],
    )
