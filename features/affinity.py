"""How much of a user's history shares a tag with a candidate: one pass over the candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, filled, given

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_NONE, _ONE = np.uint64(0), np.uint64(1)


@compiled(filled("uint64"), "uint64")
def _slot(names: Hashes, tag: np.uint64) -> np.uint64:
    """Where a tag is in the hash table, or would be: open addressing, linear probing."""
    mask = np.uint64(len(names) - 1)
    slot = tag & mask
    while names[slot] != _NONE and names[slot] != tag:
        slot = (slot + _ONE) & mask
    return slot


@compiled(given("uint64", 2), given("int64"), given("boolean"), filled("uint64"), filled("int64"))
def _count(
    tags: Hashes, held: Places, counts: NDArray[np.bool_], names: Hashes, times: Places
) -> int:
    """Count the tags of one history in an empty hash table; how many interactions count."""
    events = 0
    for h in range(len(held)):
        if not counts[h]:
            continue
        events += 1
        # An item may be newer than the tags: another thread may be adding items.
        for t in range(tags.shape[1] if 0 <= held[h] < len(tags) else 0):
            tag = tags[held[h], t]
            if tag != _NONE:
                slot = _slot(names, tag)
                times[slot] = 1 if names[slot] == _NONE else times[slot] + 1
                names[slot] = tag
    return events


@compiled(
    given("uint64", 2),
    given("int64"),
    given("int64"),
    given("int64"),
    given("int64"),
    given("boolean"),
    filled("float32"),
)
def affinities(
    tags: Hashes,
    index: Places,
    request: Places,
    splits: Places,
    held: Places,
    counts: NDArray[np.bool_],
    found: NDArray[np.float32],
) -> None:
    """
    Share of the user's history that has a tag of the candidate, mean over the candidate's tags.

    A user's tags are counted anew whenever the candidates of another request begin: those of one
    should stand together.

    Args:
        tags: [items, t] of every item, hashes; 0: none.
        index: [m] the candidates among the items; -1: unknown.
        request: [m] whose candidate it is.
        splits: [n + 1] of the histories.
        held: [h] their interactions' items; -1: unknown.
        counts: [h] which of the interactions count.
        found: [m] is filled; 0 for candidates without tags.
    """
    names, times = np.zeros(2, np.uint64), np.zeros(2, np.int64)
    last, events = -1, 0
    for c in range(len(index)):
        if request[c] != last:
            last = request[c]
            start, stop = splits[last], splits[last + 1]
            size = len(names)
            while size < 2 * tags.shape[1] * (stop - start):
                size *= 2
            names, times = np.zeros(size, np.uint64), np.zeros(size, np.int64)
            events = _count(tags, held[start:stop], counts[start:stop], names, times)
        total, own = 0.0, 0
        for t in range(tags.shape[1] if 0 <= index[c] < len(tags) else 0):
            tag = tags[index[c], t]
            if tag != _NONE:
                own += 1
                slot = _slot(names, tag)
                if names[slot] == tag:
                    total += times[slot] / max(events, 1)
        found[c] = np.float32(total / max(own, 1))
