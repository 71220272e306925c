"""
The log from its beginning: what Kafka no longer retains comes from the event archive.

The archive and the log are joined at the offset where the log begins now, without gap or overlap.
To whoever reads, it is one log: `PastLog` says where it begins, `PastSource` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from features import archive
from features.archive import Manifest
from features.disk import Place
from features.event_archive import KINDS, read_events
from ingest.batches import empty, part
from ingest.log import Log, RecordBatch, Source, TopicPartition
from ingest.topics import Topics
from schemas.errors import Misconfigured, PositionForeign


class PastLog:
    """A log whose archived topics begin where their archive begins, if that is earlier."""

    def __init__(self, log: Log, root: Place, topics: Topics) -> None:
        self._log = log
        self._root = root
        self._kinds = {topics.prefix + kind: kind for kind in KINDS}

    def cluster_id(self) -> str:
        return self._log.cluster_id()

    def topic_id(self, topic: str) -> str:
        return self._log.topic_id(topic)

    def partitions(self, topic: str) -> int:
        return self._log.partitions(topic)

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """
        As `Log.bounds`.

        Raises:
            Misconfigured: records are neither in the archive nor on the log any more.
        """
        found = {}
        for partition, (first, end) in self._log.bounds(topic).items():
            held = self._archived(topic, partition) if first > 0 else None
            if held is not None and held.begin < first:
                _check_no_gap(TopicPartition(topic, partition), held.end, first)
                found[partition] = (held.begin, end)
            else:
                found[partition] = (first, end)
        return found

    def first_kept(self, topic: str) -> dict[int, int]:
        """Where the log itself begins now, by partition; nothing for what is not archived."""
        if topic not in self._kinds:
            return {}
        return {partition: first for partition, (first, _) in self._log.bounds(topic).items()}

    def archived_batches(
        self, tp: TopicPartition, offset: int, before: int, max_records: int
    ) -> Iterator[RecordBatch]:
        """
        Batches from an offset to the one where the log begins, contiguous.

        Raises:
            Misconfigured: the archive does not hold all of them.
            ArchiveUnavailable: a file that counts is missing or damaged.
        """
        held = self._archived(tp.topic, tp.partition)
        if held is None or offset < held.begin:
            raise PositionForeign(
                f"{tp.topic}[{tp.partition}]: offset {offset} is neither on the log, which begins "
                f"at {before}, nor in the archive {self._root}"
            )
        _check_no_gap(tp, held.end, before)
        kind = self._kinds[tp.topic]
        for batch in read_events(self._root, kind, tp.partition, offset, max_records):
            yield _up_to(batch, before)
            offset = batch.next_offset
            if offset >= before:
                return
        if offset < before:
            yield empty(tp, offset, before)

    def _archived(self, topic: str, partition: int) -> _Archived | None:
        """What the archive holds of a partition of this very log, or None."""
        kind = self._kinds.get(topic)
        manifest = archive.newest(self._root, kind, partition) if kind else None
        if kind is None or manifest is None or not self._is_ours(manifest, topic, kind):
            return None
        return _Archived(begin=manifest.begins[kind], end=manifest.position[kind])

    def _is_ours(self, manifest: Manifest, topic: str, kind: str) -> bool:
        ids = {"cluster": self._log.cluster_id(), kind: self._log.topic_id(topic)}
        return dict(manifest.log) == ids


class PastSource:
    """
    Reads the archive up to where the log begins, and then the log.

    Must pass `tests.contracts.log.LogContract`.
    """

    def __init__(self, source: Source, log: PastLog) -> None:
        self._source = source
        self._log = log
        self._past: dict[TopicPartition, _Reading] = {}
        self._live: dict[TopicPartition, int] = {}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        kept = {topic: self._log.first_kept(topic) for topic in {tp.topic for tp in positions}}
        past = {
            tp: offset
            for tp, offset in positions.items()
            if offset < kept[tp.topic].get(tp.partition, 0)
        }
        self._past = {tp: _Reading(next_offset=offset) for tp, offset in past.items()}
        self._live = {tp: offset for tp, offset in positions.items() if tp not in past}
        self._source.assign(self._live)

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        for tp in list(self._past):
            batch = self._poll_past(tp, max_records)
            if batch is not None:
                return batch
        batch = self._source.poll(max_records, timeout_s)
        if batch is not None:
            self._live[TopicPartition(batch.topic, batch.partition)] = batch.next_offset
        return batch

    def close(self) -> None:
        self._past = {}
        self._source.close()

    def _poll_past(self, tp: TopicPartition, max_records: int) -> RecordBatch | None:
        """The archive's next batch; None: from here on the log has everything."""
        reading = self._past[tp]
        batch = next(reading.batches, None)
        if batch is None:
            # The log may begin later now than it did.
            first = self._log.first_kept(tp.topic)[tp.partition]
            if reading.next_offset >= first:
                self._go_live(tp)
                return None
            reading.batches = self._log.archived_batches(
                tp, reading.next_offset, first, max_records
            )
            batch = next(reading.batches)
        reading.next_offset = batch.next_offset
        if len(self._past) > 1:  # in turn
            self._past[tp] = self._past.pop(tp)
        return batch

    def _go_live(self, tp: TopicPartition) -> None:
        self._live[tp] = self._past.pop(tp).next_offset
        self._source.assign(self._live)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Archived:
    """Offsets of a partition that the archive holds."""

    begin: int
    end: int


@dataclass(slots=True, kw_only=True)
class _Reading:
    """How far a partition has been read from the archive."""

    next_offset: int
    batches: Iterator[RecordBatch] = field(default_factory=lambda: iter(()))


def _check_no_gap(tp: TopicPartition, archived_end: int, first: int) -> None:
    if archived_end < first:
        raise Misconfigured(
            f"{tp.topic}[{tp.partition}]: offsets {archived_end} to {first - 1} are lost: the "
            f"archive ends before offset {archived_end}, and the log begins at {first}"
        )


def _up_to(batch: RecordBatch, before: int) -> RecordBatch:
    """The part of a batch that the log does not hold."""
    if batch.next_offset <= before:
        return batch
    return replace(part(batch, 0, int(np.searchsorted(batch.offsets, before))), next_offset=before)
