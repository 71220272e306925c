"""Which events of a batch repeat an id that their row has seen: the ring's question, by columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.ragged import spans


class Repeats(NamedTuple):
    """What is certain, and which rows are not."""

    duplicate: NDArray[np.bool_]  # [n] certain where the row is
    doubtful: NDArray[np.bool_]  # [rows] a first push may have been evicted before its repeat


class Hits(NamedTuple):
    """Pairs of an event and an entry of its row's ring with the same id."""

    event: NDArray[np.int64]
    entry: NDArray[np.int64]  # index in the flat ring


def find_repeats(
    row: NDArray[np.int64],
    event_id: NDArray[np.uint32],
    ring_splits: NDArray[np.int64],
    ring: NDArray[np.uint32],
    ring_length: int,
) -> Repeats:
    """
    Repeats among events that come row by row (`row` ascending), each row's in log order.

    An entry at place p of a ring of s entries is there for sure when k events have come since, if
    p >= s + k - ring_length: at most k were pushed. The same holds for a push within the batch.
    """
    n = len(row)
    rank = np.arange(n) - np.searchsorted(row, row)  # events of the row before this one
    by_id = np.argsort(event_id, kind="stable")
    ids = event_id[by_id]
    hits = _ring_hits(row, by_id, ids, ring_splits, ring)
    owner = row[hits.event]
    place = hits.entry - ring_splits[owner]
    had = ring_splits[owner + 1] - ring_splits[owner]
    sure = place >= had + rank[hits.event] - ring_length
    duplicate = np.zeros(n, np.bool_)
    doubtful = np.zeros(len(ring_splits) - 1, np.bool_)
    duplicate[hits.event[sure]] = True
    doubtful[owner[~sure]] = True
    again, first = _repeats_within(row, by_id, ids)
    near = rank[again] - rank[first] <= ring_length
    duplicate[again[near]] = True
    doubtful[row[again[~near]]] = True
    return Repeats(duplicate, doubtful)


def _ring_hits(
    row: NDArray[np.int64],
    by_id: NDArray[np.int64],
    ids: NDArray[np.uint32],
    ring_splits: NDArray[np.int64],
    ring: NDArray[np.uint32],
) -> Hits:
    # Rings hold 100 times as many ids as a batch: a bitmap of the batch's ids (they are hashes, so
    # their low bits do) leaves 1 entry in 64, and only those are searched for.
    bits = min(max((64 * len(ids)).bit_length(), 10), 22)
    mask = np.uint32((1 << bits) - 1)
    some = np.zeros(1 << bits, np.bool_)
    some[ids & mask] = True
    entry = np.flatnonzero(some[ring & mask])
    left = np.searchsorted(ids, ring[entry])
    times = np.searchsorted(ids, ring[entry], side="right") - left
    event = by_id[spans(left, times)]
    entry = np.repeat(entry, times)
    own = np.searchsorted(ring_splits, entry, side="right") - 1 == row[event]
    return Hits(event[own], entry[own])


def _repeats_within(
    row: NDArray[np.int64], by_id: NDArray[np.int64], ids: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Events whose row has had their id earlier in the batch, and the first that had it."""
    equal = np.flatnonzero(ids[1:] == ids[:-1])
    if not len(equal):
        return equal, equal
    some = by_id[np.union1d(equal, equal + 1)]
    pairs = np.stack([np.searchsorted(ids, ids[np.union1d(equal, equal + 1)]), row[some]])
    order = np.lexsort((some, pairs[1], pairs[0]))
    some, pairs = some[order], pairs[:, order]
    starts = np.ones(len(some), np.bool_)
    starts[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    first = some[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return some[~starts], first[~starts]
