"""Backfill: the event archive's files, and Parquet, to rows and partials; in events/s a core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from features.batch_fold import IntoFiles
from features.batch_job import FromSettings, Input, Work, fold_rows
from features.batch_reports import Reports
from features.catalog import CATALOG
from features.event_archive import SCHEMA
from features.event_files import AvroRecording, container_files
from features.event_tables import ParquetTable, Tables
from features.split import MAX_RECORDS
from ingest.placement import partitions_of
from schemas.codec import ContainerFile
from schemas.columns import ColumnReader
from schemas.events import USER_EVENTS, UserEvent
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, chunks, own_cpu_s, profiled
from tests.bench.world import PARTITIONS, Sent, World, by_partition

AIM = 300_000.0
MOST = 1_200_000
PASSES = 2
FILE_RECORDS = 200_000
BLOCK_RECORDS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """One pass: processor seconds of this process, all threads, and seconds by the wall."""

    cpu_s: float
    wall_s: float


def run(world: World) -> Iterator[Figure]:
    """Fold the same events from container files without Beam and with it, then from Parquet."""
    folder = world.directory / "backfill"
    folder.mkdir(parents=True, exist_ok=True)
    records = [record for record in world.records[-MOST:] if record.value is not None]
    recording = container_files(_containers(folder, records))
    total = recording.origin.records
    read = best(lambda: _read(recording))
    decoded = best(lambda: _decode(world, recording))
    limits = {
        "reading the files alone": total / read.cpu_s,
        "reading and decoding them": total / decoded.cpu_s,
    }
    here = best(lambda: _fold(world, recording, folder, Work()))
    with_beam = best(lambda: _fold(world, recording, folder, Work(runner="fnapi")))
    value = total / with_beam.cpu_s
    yield figure(
        "backfill by Beam, Avro files to rows and partials",
        value,
        "events/s a core",
        aim=AIM,
        limits=limits,
        peer=("the same without Beam", total / here.cpu_s),
        events=total,
        wall_events_per_s=round(total / with_beam.wall_s),
        cpu_us_per_event=round(1e6 * with_beam.cpu_s / total, 2),
        bytes_per_event=round(sum(p.stat().st_size for p in folder.glob("*.avro")) / total, 1),
        **(
            {}
            if value >= AIM
            else {"profile": profiled(lambda: _fold(world, recording, folder, Work()))}
        ),
    )
    tables = Tables(tables=_parquet(world, folder, records), partitions=PARTITIONS)
    parquet = best(lambda: _fold(world, tables, folder, Work(runner="fnapi")))
    yield figure(
        "backfill by Beam, Parquet to rows and partials",
        total / parquet.cpu_s,
        "events/s a core",
        peer=("from Avro files", value),
        events=total,
        wall_events_per_s=round(total / parquet.wall_s),
        note="by partition in a GroupByKey, put in order of event time",
    )


def best(work: Callable[[], object]) -> Spent:
    """The pass of the least processor time: what else runs on the machine only adds to it."""
    found = []
    for _ in range(PASSES):
        cpu_s, wall_s = own_cpu_s(), CLOCK.monotonic_s()
        work()
        found.append(Spent(cpu_s=own_cpu_s() - cpu_s, wall_s=CLOCK.monotonic_s() - wall_s))
    return min(found, key=lambda one: one.cpu_s)


def _fold(world: World, given: Input, folder: Path, work: Work) -> None:
    opening = FromSettings(settings=world.settings)
    target = IntoFiles(features=CATALOG, opening=opening, folder=folder / "rows")
    fold_rows(given, target, work, Reports(folder=folder / "reports"))


def _read(recording: AvroRecording) -> None:
    for partition in recording.origin.bounds:
        for _ in recording.batches(partition, 0, MAX_RECORDS):
            pass


def _decode(world: World, recording: AvroRecording) -> None:
    reader = ColumnReader(world.registry, UserEvent)
    for partition in recording.origin.bounds:
        for batch in recording.batches(partition, 0, MAX_RECORDS):
            reader.read(batch.values)


def _containers(folder: Path, records: list[Sent]) -> list[Path]:
    """The records as the event archive keeps them."""
    found = []
    parts = by_partition(records, lambda keys: partitions_of(keys, PARTITIONS))
    for partition, part in enumerate(parts):
        for number, some in enumerate(chunks(part, FILE_RECORDS)):
            path = folder / f"part-{partition}-{number}.avro"
            file, first = ContainerFile(SCHEMA), number * FILE_RECORDS
            with path.open("wb") as stream:
                for block in chunks(some, BLOCK_RECORDS):
                    plain = [_plain(r, partition, n) for n, r in enumerate(block, first)]
                    stream.write(file.add(plain))
                    first += len(block)
            found.append(path)
    return found


def _plain(record: Sent, partition: int, offset: int) -> dict[str, object]:
    return {
        "topic": USER_EVENTS,
        "partition": partition,
        "offset": offset,
        "timestamp": record.timestamp_ms,
        "key": record.key,
        "value": record.value,
        "headers": [],
    }


def _parquet(world: World, folder: Path, records: list[Sent]) -> tuple[ParquetTable, ...]:
    """The same events as tables, in the order in which they were produced."""
    reader = ColumnReader(world.registry, UserEvent)
    found = []
    for number, some in enumerate(chunks(records, FILE_RECORDS)):
        path = folder / f"{number}.parquet"
        reader.read([record.value for record in some]).frame.write_parquet(path)
        found.append(ParquetTable(path=path, number=number))
    return tuple(found)
