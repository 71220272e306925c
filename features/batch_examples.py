"""
Examples of recorded history, partition by partition: what a batch pipeline shares out.

Users of different partitions do not know of each other, items do: so first every partition says
what was done to items by the hour, then each makes its examples with all of that beside it. A
partition's examples lie in a scratch file, in their order; put together they are, record for
record, what one process writes (`features.backfill`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from features.archive import ArchiveWriter, Manifest
from features.backfill import FILE_BYTES, BackfillPolicy, examples_of, fold_all
from features.batch_fold import Opening
from features.batch_reports import Reports
from features.declare import FeatureSet
from features.example_bytes import encode, framed
from features.history import (
    History,
    HistoryItems,
    HistoryReader,
    ItemHours,
    item_hours,
    read_history,
)
from features.recording import Recording
from schemas.events import Item

HOURS: Final = "hours"
EXAMPLES: Final = "examples"
_MAX_RECORDS: Final = 10_000
_MERGED: Final = 1_024  # examples appended to the archive at once
_NONE: Final = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleParts:
    """What both steps work with. Travels with the pipeline."""

    features: FeatureSet
    opening: Opening
    catalogue: Callable[[], list[Item]]  # asked for where the examples are made
    policy: BackfillPolicy
    reports: Reports
    scratch: Path  # a folder that all workers and whoever started them reach


@dataclass(frozen=True, slots=True)
class HoursStep:
    """A partition becomes what was done in it to items."""

    parts: ExampleParts

    def __call__(
        self, recording: Recording, partition: int, before: Sequence[object] = ()
    ) -> Iterator[ItemHours]:
        with self.parts.reports.noting(HOURS, partition) as tell:
            history = _history(self.parts, recording, partition)
            found = item_hours(history, fold_all(history, self.parts.features))
            tell(len(history))
        yield found


@dataclass(frozen=True, slots=True)
class ExamplesStep:
    """A partition becomes its scratch file."""

    parts: ExampleParts

    def __call__(
        self, recording: Recording, partition: int, before: Sequence[ItemHours]
    ) -> Iterator[int]:
        parts = self.parts
        with parts.reports.noting(EXAMPLES, partition) as tell:
            history = _history(parts, recording, partition)
            items = HistoryItems(parts.features.fingerprint, parts.catalogue())
            items.put_hours(before)
            made = _write(parts, history, items, partition, tell)
        end = history.ends.get(partition, recording.origin.bounds[partition][1])
        result = {"partition": partition, "end": end, "examples": made}
        parts.reports.result(partition, result)
        yield made


def merge(parts: ExampleParts, writer: ArchiveWriter) -> Manifest:
    """
    Put the scratch files' examples into the archive in the order of all partitions, as one
    process does; `writer` must be of `features.backfill`'s KIND and SUFFIX.

    Raises:
        PositionMoved: another backfill has begun.
        ArchiveUnavailable: the disk failed or is full; what was there before stands.
    """
    results = parts.reports.results()
    numbers = [result["partition"] for result in results]
    indexes = [np.load(_index(parts.scratch, p)) for p in numbers]
    which = np.repeat(np.arange(len(numbers)), [len(i["size"]) for i in indexes])
    clock, offset, size, time = (
        np.concatenate([_NONE, *(index[name] for index in indexes)])
        for name in ("clock", "offset", "size", "time")
    )
    order = np.lexsort((offset, np.array(numbers, np.int64)[which], clock))
    with ExitStack() as closing:
        files = [closing.enter_context(_records(parts.scratch, p).open("rb")) for p in numbers]
        for at in range(0, len(order), _MERGED):
            chosen = order[at : at + _MERGED]
            pairs = zip(which[chosen].tolist(), size[chosen].tolist(), strict=True)
            content = b"".join(files[file].read(length) for file, length in pairs)
            writer.append(content, len(chosen), int(time[chosen[0]]))
            if writer.pending_bytes >= FILE_BYTES:
                writer.roll()
    position = {f"user-events/{result['partition']}": result["end"] for result in results}
    return writer.commit(position, replace_files=not parts.policy.since)


def _history(parts: ExampleParts, recording: Recording, partition: int) -> History:
    reader = HistoryReader(
        recording.reader(parts.opening.registry()),
        recording.origin.partitions,
        parts.features.row.future_ms,
    )
    first = recording.origin.bounds[partition][0]
    return read_history(recording.batches(partition, first, _MAX_RECORDS), reader)


def _write(
    parts: ExampleParts,
    history: History,
    items: HistoryItems,
    partition: int,
    tell: Callable[[int], None],
) -> int:
    """The partition's examples one after the other, and an index of them; how many."""
    before = 0

    def progress(done: int, of: int) -> None:
        nonlocal before
        tell(done - before)
        before = done

    parts.scratch.mkdir(parents=True, exist_ok=True)
    offset, size, time = [_NONE], [_NONE], [_NONE]
    accepted = fold_all(history, parts.features)
    chunks = examples_of(history, accepted, items, parts.features, parts.policy, progress)
    with _records(parts.scratch, partition).open("wb") as file:
        for chunk in chunks:
            records = [framed([record]) for record in encode(chunk, parts.features)]
            file.write(b"".join(records))
            offset.append(chunk.events_offset)
            size.append(np.fromiter(map(len, records), np.int64, len(records)))
            time.append(chunk.event_time)
    offsets = np.concatenate(offset)
    # Within a partition the history is in order of its offsets.
    place = np.searchsorted(history.frame["offset"].to_numpy(), offsets)
    np.savez(
        _index(parts.scratch, partition),
        offset=offsets,
        size=np.concatenate(size),
        time=np.concatenate(time),
        clock=history.clock_ms[place],
    )
    return len(offsets)


def _records(scratch: Path, partition: int) -> Path:
    return scratch / f"examples-{partition}.tfrecord"


def _index(scratch: Path, partition: int) -> Path:
    return scratch / f"examples-{partition}.npz"
