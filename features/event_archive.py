"""
The event archive: user-events and recommendations as Avro container files, each record once.

A record keeps everything that the log said of it, so what Kafka no longer retains is rebuilt from
here. A kind is a topic's name without prefix. Misplaced originals are left out; their copies, sent
on to the right partition, are kept.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import structlog

from features import archive
from features.archive import ArchiveWriter, Manifest
from features.archive_file import ArchiveFile
from features.disk import Disk, Place
from features.join_worker import Rotation
from features.misplaced import grouped, misplaced
from ingest.clock import Clock
from ingest.log import Log, RecordBatch, Source, TopicPartition
from ingest.metrics import Metrics
from ingest.topics import Topics, check_offset, check_partitions
from schemas import events
from schemas.codec import ContainerFile, Plain, read_container
from schemas.errors import ArchiveUnavailable, PositionForeign, Rejected, Retryable

SUFFIX: Final = ".avro"
_MEND: Final = (
    "Archive what the log holds to another folder: `millstream features archive --archive-dir`"
)
KINDS: Final = (events.USER_EVENTS, events.RECOMMENDATIONS)
SCHEMA: Final[dict[str, Any]] = {
    "type": "record",
    "name": "ArchivedRecord",
    "namespace": "millstream",
    "doc": "One record of the log, as it was there.",
    "fields": [
        {"name": "topic", "type": "string"},
        {"name": "partition", "type": "int"},
        {"name": "offset", "type": "long"},
        {"name": "timestamp", "type": "long", "doc": "Kafka's timestamp, ms"},
        {"name": "key", "type": ["null", "bytes"]},
        {"name": "value", "type": ["null", "bytes"], "doc": "framed, as produced"},
        {
            "name": "headers",
            "type": {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "ArchivedHeader",
                    "fields": [
                        {"name": "name", "type": "string"},
                        {"name": "value", "type": "bytes"},
                    ],
                },
            },
        },
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveParts:
    """What the event archive works with."""

    log: Log
    source: Source
    topics: Topics
    root: Place
    clock: Clock
    metrics: Metrics
    disk: Disk | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePolicy:
    """Sizes and patience."""

    rotation: Rotation = field(default_factory=Rotation)  # by size after compression
    max_records: int = 5_000
    poll_s: float = 0.2
    max_attempts: int = 8  # in a row, then the error goes up
    backoff_s: float = 0.2  # times the attempt


class _Partition:
    """One partition of one topic: its writer, its open file and how far it has come."""

    def __init__(self, kind: str, writer: ArchiveWriter) -> None:
        self.kind = kind
        self.writer = writer
        self.next_offset = writer.manifest.position[kind]
        self.file: ContainerFile | None = None
        self.dirty_since_s: float | None = None

    def append(self, records: list[Plain]) -> None:
        if self.file is None:
            self.file = ContainerFile(SCHEMA)
        piece = self.file.add(records)
        self.writer.append(piece, len(records), records[0]["timestamp"])

    def commit(self) -> None:
        self.writer.commit({self.kind: self.next_offset})
        self.file, self.dirty_since_s = None, None


class EventArchiver:
    """Archives the partitions it is given (default: all) until told to stop."""

    def __init__(
        self,
        parts: ArchiveParts,
        policy: ArchivePolicy | None = None,
        partitions: Sequence[int] | None = None,
    ) -> None:
        self._parts = parts
        self._policy = policy or ArchivePolicy()
        self._wanted = partitions
        check_partitions(parts.log, parts.topics)
        self._held: dict[TopicPartition, _Partition] = {}
        self._log = structlog.get_logger("archive")

    def run(self, stop: threading.Event, until: Mapping[TopicPartition, int] | None = None) -> None:
        """
        Work until `stop` is set or the manifests have reached `until`.

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
                    detail = {"error": type(error).__name__, "detail": str(error)}
                    self._log.warning("archive.again", **detail)
                    self._drop()
                    if attempts >= self._policy.max_attempts:
                        raise
                    self._parts.clock.sleep(self._policy.backoff_s * attempts)
            for partition in self._held.values():
                partition.commit()
        finally:
            self._drop()

    def _step(self, until: Mapping[TopicPartition, int] | None) -> None:
        if not self._held:
            self._claim()
        batch = self._parts.source.poll(self._policy.max_records, self._policy.poll_s)
        now_s = self._parts.clock.monotonic_s()
        if batch is not None:
            self._take(batch, now_s)
        for tp, partition in self._held.items():
            if partition.dirty_since_s is None:
                continue
            age_s = now_s - partition.dirty_since_s
            ended = until is not None and tp in until and partition.next_offset >= until[tp]
            if ended or self._policy.rotation.due(partition.writer.pending_bytes, age_s):
                partition.commit()

    def _take(self, batch: RecordBatch, now_s: float) -> None:
        partition = self._held[TopicPartition(batch.topic, batch.partition)]
        if batch.start_offset != partition.next_offset:
            raise RuntimeError(f"got {batch.start_offset}, expected {partition.next_offset}")
        kept = np.ones(len(batch), bool)
        if partition.kind == events.USER_EVENTS:
            partitions = self._parts.log.partitions(batch.topic)
            kept = ~misplaced(batch, grouped(batch.keys), partitions)
        records = _records(batch, np.flatnonzero(kept).tolist())
        if records:
            partition.append(records)
            self._parts.metrics.count("archive.records", len(records), topic=partition.kind)
        partition.next_offset = batch.next_offset
        if partition.dirty_since_s is None:
            partition.dirty_since_s = now_s

    def _claim(self) -> None:
        held = {}
        for kind in KINDS:
            topic = self._parts.topics.prefix + kind
            ids = {"cluster": self._parts.log.cluster_id(), kind: self._parts.log.topic_id(topic)}
            for number, (start, end) in self._parts.log.bounds(topic).items():
                if self._wanted is not None and number not in self._wanted:
                    continue
                first = Manifest(
                    kind=kind,
                    partition=number,
                    sequence=0,
                    generation=0,
                    position={kind: start},
                    log=ids,
                    fingerprint="",
                )
                writer = archive.claim(self._parts.root, first, SUFFIX, self._parts.disk)
                place = TopicPartition(topic, number)
                held[place] = _Partition(kind, writer)
                check_offset(place, held[place].next_offset, (start, end), _MEND)
        self._parts.source.assign({tp: p.next_offset for tp, p in held.items()})
        self._held = held

    def _reached(self, until: Mapping[TopicPartition, int] | None) -> bool:
        if until is None or not self._held:
            return False
        return all(
            self._held[tp].writer.manifest.position[self._held[tp].kind] >= end
            for tp, end in until.items()
        )

    def _drop(self) -> None:
        for partition in self._held.values():
            partition.writer.close()
        self._held = {}


def read_events(
    root: Place, kind: str, partition: int, from_offset: int = 0, batch_records: int = 5_000
) -> Iterator[RecordBatch]:
    """
    What the archive holds of a partition from an offset on, in contiguous batches.

    Raises:
        PositionForeign: the archive begins after that offset.
        ArchiveUnavailable: a file that counts is missing or damaged.
    """
    manifest = archive.newest(root, kind, partition)
    if manifest is None:
        return
    if from_offset < manifest.begins[kind]:
        raise PositionForeign(
            f"{root / kind}: the archive of partition {partition} begins at offset "
            f"{manifest.begins[kind]}, not {from_offset}"
        )
    at, end = from_offset, manifest.position[kind]
    held: list[Plain] = []
    for record in _archived(root / kind, _from(manifest.files, kind, from_offset)):
        if record["offset"] < from_offset:
            continue
        if len(held) == batch_records:
            yield _batch(held, at, record["offset"])
            at, held = record["offset"], []
        held.append(record)
    if held:
        yield _batch(held, at, max(end, at))


def _from(files: Sequence[ArchiveFile], kind: str, from_offset: int) -> Sequence[ArchiveFile]:
    """The files with records at or after an offset: each ends where the next one starts."""
    first = sum(1 for file in files[1:] if file.start[kind] <= from_offset)
    return files[first:]


def _archived(folder: Place, files: Sequence[ArchiveFile]) -> Iterator[Plain]:
    for file in files:
        path = folder / file.path
        try:
            with path.open("rb") as stream:
                yield from read_container(stream)
        except (OSError, Rejected) as error:
            raise ArchiveUnavailable(f"{path}: {error}") from error


def _records(batch: RecordBatch, index: list[int]) -> list[Plain]:
    offsets, times = batch.offsets.tolist(), batch.timestamps_ms.tolist()
    return [
        {
            "topic": batch.topic,
            "partition": batch.partition,
            "offset": offsets[i],
            "timestamp": times[i],
            "key": batch.keys[i],
            "value": batch.values[i],
            "headers": [{"name": n, "value": v} for n, v in batch.headers.get(i, ())],
        }
        for i in index
    ]


def _batch(records: list[Plain], start: int, end: int) -> RecordBatch:
    return RecordBatch(
        topic=records[0]["topic"],
        partition=records[0]["partition"],
        start_offset=start,
        next_offset=end,
        offsets=np.array([r["offset"] for r in records], np.int64),
        timestamps_ms=np.array([r["timestamp"] for r in records], np.int64),
        keys=[r["key"] for r in records],
        values=[r["value"] for r in records],
        headers={
            i: tuple((h["name"], h["value"]) for h in r["headers"])
            for i, r in enumerate(records)
            if r["headers"]
        },
    )
