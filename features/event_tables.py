"""
User-events in tables that know no log: Parquet files and data sets. What order they are in.

Such an event names neither partition nor offset, so both are defined here. Its partition is
Kafka's: murmur2 of the user id. Within the partition events are in order of event time, then of the
number of their table, then of their row; an event's offset is its place in that order, and its
Kafka timestamp is its own event time. So a table, or the same events cut into tables otherwise but
in the same order, is folded as if it had been replayed into an empty topic in that order.

A partition's events are put in order in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import polars as pl

from features.fit import EventReader
from features.misplaced import grouped
from features.recording import FILES, Origin
from ingest.datasets import open_dataset
from ingest.log import RecordBatch
from ingest.placement import partitions_of
from schemas.codec import schema_of
from schemas.columns import Decoded
from schemas.errors import ArchiveUnavailable, Misconfigured
from schemas.events import USER_EVENTS, EventType, Item, UserEvent
from schemas.plan import dtypes_of
from schemas.registry import Registry

DTYPES: Final = dtypes_of(json.loads(schema_of(UserEvent)))
_NEEDED: Final = ("event_id", "user_id", "event_type", "event_time")
_TYPES: Final = {kind.name: int(kind) for kind in EventType}
_PLACE: Final = {"table": pl.Int32(), "row": pl.Int64()}
# Rows of a Parquet file that become one element: a bundle of them is some 100 MB.
_SLICE: Final = 500_000


class EventTable(Protocol):
    """A table of user-events. Travels with a pipeline: it is opened where it is read."""

    @property
    def number(self) -> int:
        """Of the table, among those read together."""

    def frames(self) -> Iterator[pl.DataFrame]:
        """Its events as columns of UserEvent, with `table` and `row`, some at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetTable:
    """
    A Parquet file with the columns of UserEvent; what may be null may be missing.

    `event_type` is a name or a number; one that this reader does not know becomes UNKNOWN.
    `event_time` is in milliseconds, or a timestamp.
    """

    path: Path
    number: int

    def frames(self) -> Iterator[pl.DataFrame]:
        try:
            lazy = pl.scan_parquet(self.path)
            there = set(lazy.collect_schema().names())
            missing = [name for name in _NEEDED if name not in there]
            if missing:
                raise Misconfigured(f"{self.path} has no column {', '.join(missing)}")
            rows = lazy.select(pl.len()).collect().item()
            for at in range(0, rows, _SLICE):
                known = [name for name in DTYPES if name in there]
                frame = lazy.slice(at, _SLICE).select(known).collect()
                yield _normal(frame, self.number, at, str(self.path))
        except (OSError, pl.exceptions.ComputeError) as error:
            raise ArchiveUnavailable(f"{self.path}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetTable:
    """One of `ingest.datasets` as a replay sends it, later by `shift_ms`."""

    name: str
    path: Path | None
    data_dir: Path
    shift_ms: int = 0
    number: int = 0

    def frames(self) -> Iterator[pl.DataFrame]:
        row = 0
        for chunk in open_dataset(self.name, self.path, self.data_dir).chunks(
            shift_ms=self.shift_ms
        ):
            yield _normal(frame_of(chunk.events), self.number, row, self.name)
            row += len(chunk.events)

    def items(self) -> list[Item]:
        """The data set's catalogue."""
        return list(open_dataset(self.name, self.path, self.data_dir).items)


def frame_of(events: Sequence[UserEvent]) -> pl.DataFrame:
    """Events as a table of their fields."""
    columns = {
        f.name: [getattr(event, f.name) for event in events]
        for f in fields(UserEvent)
        if f.name != "profile"
    }
    profiles = [[{"name": a.name, "value": a.value} for a in event.profile] for event in events]
    return pl.DataFrame(columns | {"profile": profiles}, schema=DTYPES)


def parted(frame: pl.DataFrame, partitions: int) -> list[tuple[int, pl.DataFrame]]:
    """A table's events by the partition of their users, each part in the order of the table."""
    users = grouped([user.encode() for user in frame["user_id"].to_list()])
    place = partitions_of(users.keys, partitions)[users.code]
    found = np.unique(place).tolist()
    return [(p, frame.filter(pl.Series(place == p))) for p in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRecording:
    """One partition of tables, in its order; a record's value is the number of its row here."""

    origin: Origin
    frame: pl.DataFrame

    def batches(self, partition: int, offset: int, max_records: int) -> Iterator[RecordBatch]:
        for at in range(offset, len(self.frame), max_records):
            stop = min(at + max_records, len(self.frame))
            part = self.frame[at:stop]
            rows = np.arange(at, stop)
            packed = rows.astype("<i8").tobytes()
            yield RecordBatch(
                topic=self.origin.topic,
                partition=partition,
                start_offset=at,
                next_offset=stop,
                offsets=rows,
                timestamps_ms=part["event_time"].to_numpy(),
                keys=[user.encode() for user in part["user_id"].to_list()],
                values=[packed[i : i + 8] for i in range(0, len(packed), 8)],
                headers={},
            )

    def reader(self, registry: Registry) -> EventReader:
        return TableReader(self.frame)


def table_recording(
    partition: int, partitions: int, pieces: Iterable[pl.DataFrame]
) -> TableRecording:
    """Pieces of one partition, in any order, as a recording."""
    frame = pl.concat(pieces).sort("event_time", "table", "row").select(list(DTYPES))
    return TableRecording(
        origin=_origin(partitions, {partition: (0, len(frame))}),
        frame=frame,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Tables read together, as the events of a topic of so many partitions."""

    tables: tuple[EventTable, ...]
    partitions: int

    @property
    def origin(self) -> Origin:
        """What their recordings say; where their partitions end is not known before."""
        return _origin(self.partitions, {})


def table_recordings(given: Tables) -> Iterator[tuple[int, TableRecording]]:
    """The partitions of some tables, read and put in order in this process."""
    pieces: dict[int, list[pl.DataFrame]] = {}
    for table in given.tables:
        for frame in table.frames():
            for partition, piece in parted(frame, given.partitions):
                pieces.setdefault(partition, []).append(piece)
    for partition in sorted(pieces):
        yield partition, table_recording(partition, given.partitions, pieces.pop(partition))


def _origin(partitions: int, bounds: Mapping[int, tuple[int, int]]) -> Origin:
    return Origin(
        topic=USER_EVENTS,
        cluster_id=FILES,
        topic_id=USER_EVENTS,
        partitions=partitions,
        bounds=bounds,
    )


class TableReader:
    """Reads values that are numbers of rows, 8 bytes each. Implements EventReader."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame
        self.dtypes = DTYPES

    def read(self, values: Sequence[bytes | None], columns: Sequence[str] | None = None) -> Decoded:
        wanted = list(self.dtypes) if columns is None else list(columns)
        index = np.array([i for i, value in enumerate(values) if value is not None], np.int64)
        rows = np.frombuffer(b"".join(value for value in values if value is not None), "<i8")
        return Decoded(self._frame.select(wanted)[rows], index, ())


def _normal(frame: pl.DataFrame, table: int, first_row: int, name: str) -> pl.DataFrame:
    """The columns of UserEvent as the fold takes them, and each event's place."""
    kind = frame["event_type"]
    if kind.dtype == pl.String or isinstance(kind.dtype, pl.Categorical | pl.Enum):
        kind = kind.cast(pl.String).replace_strict(_TYPES, default=0, return_dtype=pl.Int32)
    kind = kind.cast(pl.Int32)
    known = kind.is_between(0, max(_TYPES.values())).fill_null(value=False)
    time = frame["event_time"]
    if isinstance(time.dtype, pl.Datetime):
        time = time.dt.epoch("ms")
    frame = frame.with_columns(
        kind.zip_with(known, pl.Series([0], dtype=pl.Int32)).alias("event_type"),
        time.cast(pl.Int64).alias("event_time"),
    )
    empty = [name for name in _NEEDED if frame[name].null_count()]
    if empty:
        raise Misconfigured(f"{name}: {', '.join(empty)} may not be null")
    optional = [
        pl.lit([] if column == "profile" else None, dtype).alias(column)
        for column, dtype in DTYPES.items()
        if column not in frame.columns
    ]
    frame = frame.with_columns(*optional).with_columns(pl.col("profile").fill_null([]))
    rows = pl.int_range(first_row, first_row + len(frame), dtype=pl.Int64, eager=True)
    return frame.select(
        *(pl.col(column).cast(dtype) for column, dtype in DTYPES.items()),
        pl.lit(table, _PLACE["table"]).alias("table"),
        rows.alias("row"),
    )
