"""
The label join over recorded topics: the examples of a bounded stretch, as streaming wrote them.

The join is the streaming one (`features.join`); only what feeds it comes to an end. A list that
neither an event of the recording nor a note of the streaming join closes is left out, and so are
those after it: what followed them is not known yet. With the notes of the streaming join's manifest
the examples are equal record for record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from features import archive
from features.archive import Manifest
from features.batch_fold import Opening
from features.batch_reports import Reports
from features.declare import FeatureSet
from features.example_bytes import encode, framed
from features.examples import Examples
from features.join import EVENTS, LISTS, JoinPolicy, LabelJoin
from features.join_worker import KIND, SUFFIX
from features.recording import Recording
from features.shown import DoneReader, ShownReader
from ingest.log import RecordBatch
from schemas.columns import ColumnReader
from schemas.events import Recommendation, UserEvent
from schemas.registry import Registry

REJOIN: Final = "rejoin"
_MAX_RECORDS: Final = 5_000
_TAKEN: Final = 256  # lists that become bytes at once


@dataclass(frozen=True, slots=True, kw_only=True)
class RejoinParts:
    """What is joined, and how. Travels with a pipeline."""

    lists: Recording  # of recommendations
    events: Recording  # of user-events
    features: FeatureSet
    policy: JoinPolicy
    streamed: Mapping[int, Manifest]  # the streaming join's by partition: their notes count


class Rejoin:
    """One partition joined again."""

    def __init__(self, parts: RejoinParts, registry: Registry, partition: int) -> None:
        self._parts = parts
        self._partition = partition
        self._count = parts.events.origin.partitions
        self._shown = ShownReader(ColumnReader(registry, Recommendation), parts.features)
        self._done = DoneReader(ColumnReader(registry, UserEvent), parts.features.row.future_ms)
        self._reading: Iterator[RecordBatch] = iter(())
        self._at = -1  # the user-events offset that comes next
        streamed = parts.streamed.get(partition)
        self.join = LabelJoin(
            parts.policy,
            partition=partition,
            fingerprint=parts.features.fingerprint,
            position=self.start,
            notes=() if streamed is None else streamed.notes,
        )

    @property
    def start(self) -> dict[str, int]:
        """Where the recordings begin."""
        parts = self._parts
        return {
            LISTS: parts.lists.origin.bounds[self._partition][0],
            EVENTS: parts.events.origin.bounds[self._partition][0],
        }

    def examples(self) -> Iterator[Examples]:
        """
        The examples of all lists that are closed, in the order of the lists.

        Raises:
            ArchiveUnavailable: a file is missing or damaged.
        """
        lists = self._parts.lists
        for batch in lists.batches(self._partition, self.join.lists_next, _MAX_RECORDS):
            found, _ = self._shown.read(batch, self._count)
            self.join.add_lists(found, batch.next_offset)
            self._feed()
            while (made := self.join.take(_TAKEN)) is not None:
                yield made

    def _feed(self) -> None:
        """Give the join the events that its lists wait for, as far as there are."""
        while self.join.waiting:
            if self.join.events_next != self._at:
                self._at = self.join.events_next
                events = self._parts.events
                self._reading = events.batches(self._partition, self._at, _MAX_RECORDS)
            batch = next(self._reading, None)
            if batch is None:
                return
            self.join.add_events(self._done.read(batch, self._count), batch.next_offset)
            self._at = batch.next_offset


@dataclass(frozen=True, slots=True, kw_only=True)
class RejoinStep:
    """A partition's examples into an archive of their own; a step of `features.batch_pipeline`."""

    parts: RejoinParts
    opening: Opening
    root: Path
    reports: Reports

    def __call__(self, recording: Recording, partition: int, before: object = ()) -> Iterator[int]:
        with self.reports.noting(REJOIN, partition) as tell:
            rejoin = Rejoin(self.parts, self.opening.registry(), partition)
            origin = self.parts.events.origin
            first = Manifest(
                kind=KIND,
                partition=partition,
                sequence=0,
                generation=0,
                position=rejoin.start,
                log={
                    "cluster": origin.cluster_id,
                    LISTS: self.parts.lists.origin.topic_id,
                    EVENTS: origin.topic_id,
                },
                fingerprint=self.parts.features.fingerprint,
            )
            with closing(archive.claim(self.root, first, SUFFIX)) as writer:
                for examples in rejoin.examples():
                    content = framed(encode(examples, self.parts.features))
                    writer.append(content, len(examples), int(examples.event_time[0]))
                    tell(len(examples))
                manifest = writer.commit(rejoin.join.position, replace_files=True)
        self.reports.result(partition, {"partition": partition, "examples": manifest.records})
        yield manifest.records
