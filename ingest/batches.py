"""Batches cut: by partition when read, by size when asked for less, in two to find a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from ingest.log import Headers, RecordBatch, TopicPartition


def part(batch: RecordBatch, first: int, last: int) -> RecordBatch:
    """
    Records `first` to `last` (exclusive) of a batch; adjoining parts are contiguous.

    A hole between two records belongs to the part before it; a batch without records has one part.

    >>> whole = empty(TopicPartition("t", 0), 5, 9)
    >>> part(whole, 0, 0).next_offset
    9
    """

    def boundary(i: int) -> int:
        if i == 0:
            return batch.start_offset
        return batch.next_offset if i == len(batch) else int(batch.offsets[i])

    # With nothing left to the right, the part ends where the batch ends.
    end = batch.next_offset if last == len(batch) else boundary(last)
    return RecordBatch(
        topic=batch.topic,
        partition=batch.partition,
        start_offset=boundary(first),
        next_offset=end,
        offsets=batch.offsets[first:last],
        timestamps_ms=batch.timestamps_ms[first:last],
        keys=batch.keys[first:last],
        values=batch.values[first:last],
        headers={i - first: h for i, h in batch.headers.items() if first <= i < last},
    )


def empty(tp: TopicPartition, start_offset: int, next_offset: int) -> RecordBatch:
    """A batch without records: the position moves over a hole."""
    none = np.zeros(0, np.int64)
    return RecordBatch(
        topic=tp.topic,
        partition=tp.partition,
        start_offset=start_offset,
        next_offset=next_offset,
        offsets=none,
        timestamps_ms=none,
        keys=[],
        values=[],
        headers={},
    )


def picked(batch: RecordBatch, keep: NDArray[np.bool_]) -> RecordBatch:
    """The records under a mask; the batch spans the same offsets."""
    index = np.flatnonzero(keep).tolist()
    places = {at: n for n, at in enumerate(index)}
    return RecordBatch(
        topic=batch.topic,
        partition=batch.partition,
        start_offset=batch.start_offset,
        next_offset=batch.next_offset,
        offsets=batch.offsets[keep],
        timestamps_ms=batch.timestamps_ms[keep],
        keys=[batch.keys[i] for i in index],
        values=[batch.values[i] for i in index],
        headers={places[at]: h for at, h in batch.headers.items() if at in places},
    )


def groups(codes: Sequence[int]) -> list[tuple[int, NDArray[np.int64] | None]]:
    """
    Indices of each distinct code, in order; None: all of them (nothing to cut).

    >>> [(code, index.tolist()) for code, index in groups([1, 0, 1])]
    [(0, [1]), (1, [0, 2])]
    >>> groups([3, 3])
    [(3, None)]
    """
    found = set(codes)
    if len(found) == 1:
        return [(found.pop(), None)]
    column = np.fromiter(codes, np.int64, len(codes))
    return [(code, np.flatnonzero(column == code)) for code in sorted(found)]


class Columns:
    """Columns of records that came in mixed from several partitions, to be taken out by index."""

    def __init__(
        self,
        offsets: NDArray[np.int64],
        timestamps_ms: NDArray[np.int64],
        keys: list[bytes | None],
        values: list[bytes | None],
        headers: Mapping[int, Headers],
    ) -> None:
        self.offsets = offsets
        self.timestamps_ms = timestamps_ms
        self.keys = keys
        self.values = values
        self.headers = headers

    def batch(
        self, tp: TopicPartition, start_offset: int, index: NDArray[np.int64] | None
    ) -> RecordBatch:
        """The records at `index` (None: all), all of one partition, at least one."""
        if index is None:
            return self._all(tp, start_offset)
        at = index.tolist()
        places = {i: n for n, i in enumerate(at)} if self.headers else {}
        offsets = self.offsets[index]
        return RecordBatch(
            topic=tp.topic,
            partition=tp.partition,
            start_offset=start_offset,
            next_offset=int(offsets[-1]) + 1,
            offsets=offsets,
            timestamps_ms=self.timestamps_ms[index],
            keys=_picked(self.keys, at),
            values=_picked(self.values, at),
            headers={places[i]: h for i, h in self.headers.items() if i in places},
        )

    def _all(self, tp: TopicPartition, start_offset: int) -> RecordBatch:
        return RecordBatch(
            topic=tp.topic,
            partition=tp.partition,
            start_offset=start_offset,
            next_offset=int(self.offsets[-1]) + 1,
            offsets=self.offsets,
            timestamps_ms=self.timestamps_ms,
            keys=self.keys,
            values=self.values,
            headers=self.headers,
        )


def _picked(column: list[bytes | None], index: list[int]) -> list[bytes | None]:
    """The entries at `index`, at C's speed."""
    if len(index) == 1:
        return [column[index[0]]]
    return list(itemgetter(*index)(column))
