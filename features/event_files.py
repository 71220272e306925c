"""
User-events in files, as recordings: the event archive, and loose Avro container files of its form.

A record in such a file says its partition and offset, so a file is the log over again: the same
order, the same bytes. A file is read as columns, whole. Misplaced originals are not in the archive;
their places are holes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from features import archive
from features.fit import EventReader
from features.misplaced import grouped, misplaced
from features.recording import FILES, Origin, cut
from ingest.batches import empty, part
from ingest.log import RecordBatch, TopicPartition
from schemas.codec import read_container
from schemas.columns import ColumnReader
from schemas.containers import container_columns
from schemas.errors import ArchiveUnavailable, Misconfigured, Rejected
from schemas.events import USER_EVENTS, UserEvent
from schemas.registry import Registry

_COLUMNS: Final = ("offset", "timestamp", "key", "value", "headers")
_CHECKED: Final = 4_096  # of each file's records


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFile:
    """One file of one partition; what a manifest says of it, if one does."""

    path: Path
    records: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AvroRecording:
    """Container files of a topic, by partition in the order of their offsets."""

    origin: Origin
    files: Mapping[int, tuple[ContainerFile, ...]]
    placed: bool = True  # misplaced originals were left out

    def batches(self, partition: int, offset: int, max_records: int) -> Iterator[RecordBatch]:
        """
        As `Recording.batches`. An offset that comes again is passed over.

        Raises:
            ArchiveUnavailable: a file is missing or damaged.
        """
        tp, end = TopicPartition(self.origin.topic, partition), self.origin.bounds[partition][1]
        for file in self.files.get(partition, ()):
            frame = columns_of(file)
            first, stop = np.searchsorted(frame["offset"].to_numpy(), (offset, end)).tolist()
            if first < stop:
                batch = _batch(frame[first:stop], tp, offset)
                if self.placed:
                    self._check_placed(part(batch, 0, min(_CHECKED, len(batch))), file.path)
                yield from cut(batch, offset, max_records)
                offset = batch.next_offset
        if offset < end:
            yield empty(tp, offset, end)

    def reader(self, registry: Registry) -> EventReader:
        return ColumnReader(registry, UserEvent)

    def _check_placed(self, batch: RecordBatch, path: Path) -> None:
        """With a wrong partition count the fold would pass over nearly all events."""
        count = self.origin.partitions
        wrong = misplaced(batch, grouped(batch.keys), count)
        if wrong.any():
            raise Misconfigured(
                f"{path}: the key at offset {batch.offsets[wrong][0]} is not of partition "
                f"{batch.partition} of {count}: say how many partitions the topic has"
            )


def archived(root: Path, topic: str, kind: str = USER_EVENTS) -> AvroRecording:
    """
    What the event archive holds of a topic, up to its newest manifests.

    Raises:
        Misconfigured: there is no such archive, or it lacks a partition.
    """
    found = archive.manifests(root, kind)
    if not found:
        raise Misconfigured(
            f"{root / kind} holds no event archive: run `millstream features archive`"
        )
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise Misconfigured(f"{root / kind} lacks partitions {', '.join(map(str, missing))}")
    files = {
        p: tuple(
            ContainerFile(path=root / kind / f.path, records=f.records, sha256=f.sha256)
            for f in manifest.files
        )
        for p, manifest in found.items()
    }
    log = found[0].log
    return AvroRecording(
        origin=Origin(
            topic=topic,
            cluster_id=log["cluster"],
            topic_id=log[kind],
            partitions=len(found),
            bounds={p: (m.begins[kind], m.position[kind]) for p, m in found.items()},
        ),
        files=files,
        placed=kind == USER_EVENTS,
    )


def container_files(paths: Sequence[Path], partitions: int | None = None) -> AvroRecording:
    """
    Loose container files of one topic's records, in any order.

    Args:
        partitions: of the topic; default: one more than the highest in the files.

    Raises:
        Misconfigured: no file, a file without records or of another topic, or files of one
            partition that overlap without being one another's copies.
        ArchiveUnavailable: a file is missing or damaged.
    """
    places = sorted((*_place(path), path) for path in paths)
    topics = sorted({topic for topic, _, _, _ in places})
    if len(topics) != 1:
        raise Misconfigured(f"expected files of one topic, got {', '.join(topics) or 'none'}")
    files: dict[int, list[ContainerFile]] = {}
    firsts: dict[int, int] = {}
    for _, partition, first, path in places:
        files.setdefault(partition, []).append(ContainerFile(path=path))
        firsts.setdefault(partition, first)
    ends = {p: _end(found[-1]) for p, found in files.items()}
    return AvroRecording(
        origin=Origin(
            topic=topics[0],
            cluster_id=FILES,
            topic_id=topics[0],
            partitions=partitions or max(files) + 1,
            bounds={p: (firsts[p], ends[p]) for p in files},
        ),
        files={p: tuple(found) for p, found in files.items()},
    )


def columns_of(file: ContainerFile) -> pl.DataFrame:
    """
    The records of one file as columns.

    Raises:
        ArchiveUnavailable: it is missing, damaged, or not the file that the manifest lists.
    """
    try:
        content = file.path.read_bytes()
        if file.sha256 is not None and hashlib.sha256(content).hexdigest() != file.sha256:
            raise ArchiveUnavailable(f"{file.path} was altered: its manifest has another SHA-256")
        return container_columns(io.BytesIO(content), _COLUMNS)
    except (OSError, Rejected) as error:
        raise ArchiveUnavailable(f"{file.path}: {error}") from error


def _place(path: Path) -> tuple[str, int, int]:
    """Topic, partition and offset of a file's first record."""
    try:
        with path.open("rb") as stream:
            record: dict[str, Any] = next(read_container(stream), {})
    except (OSError, Rejected) as error:
        raise ArchiveUnavailable(f"{path}: {error}") from error
    if not {"topic", "partition", *_COLUMNS} <= set(record):
        raise Misconfigured(f"{path} holds no archived records: give files of the event archive")
    return record["topic"], record["partition"], record["offset"]


def _end(file: ContainerFile) -> int:
    return int(columns_of(file)["offset"].to_numpy()[-1]) + 1


def _batch(frame: pl.DataFrame, tp: TopicPartition, start_offset: int) -> RecordBatch:
    offsets = frame["offset"].to_numpy()
    if not bool((np.diff(offsets) > 0).all()):
        raise ArchiveUnavailable(f"{tp.topic}[{tp.partition}]: offsets of a file do not ascend")
    lists = frame["headers"]
    return RecordBatch(
        topic=tp.topic,
        partition=tp.partition,
        start_offset=start_offset,
        next_offset=int(offsets[-1]) + 1,
        offsets=offsets,
        timestamps_ms=frame["timestamp"].to_numpy(),
        keys=frame["key"].to_list(),
        values=frame["value"].to_list(),
        headers={
            at: tuple((h["name"], h["value"]) for h in lists[at])
            for at in np.flatnonzero(lists.list.len().to_numpy()).tolist()
        },
    )
