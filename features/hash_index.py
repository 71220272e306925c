"""Hash tables of 64-bit names that are not 0, looked up and filled by whole columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, filled, given

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_FREE, _ONE = np.uint64(0), np.uint64(1)  # no id hashes to 0: see features.hashing
_GOLDEN, _HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
_LEAST_RECENT = 1024


@dataclass(frozen=True, slots=True)
class _Table:
    """Open addressing with linear probing, less than half full."""

    names: Hashes = field(default_factory=lambda: np.zeros(2, np.uint64))
    at: Places = field(default_factory=lambda: np.zeros(2, np.int64))
    count: int = 0

    def with_added(self, hashes: Hashes, at: Places) -> _Table:
        count, size = self.count + len(hashes), len(self.names)
        while size <= 2 * count:
            size *= 2
        table = _Table(np.zeros(size, np.uint64), np.zeros(size, np.int64), count)
        kept = self.names != _FREE
        _put(table.names, table.at, self.names[kept], self.at[kept])
        _put(table.names, table.at, hashes, at)
        return table

    def merged(self, other: _Table) -> _Table:
        there = other.names != _FREE
        return self.with_added(other.names[there], other.at[there])


@dataclass(frozen=True, slots=True)
class HashIndex:
    """
    From hashes to places. Immutable.

    Two tables, a large and a recent one, so that adding a few costs little among millions.

    >>> index = HashIndex().with_added(np.array([9, 4], np.uint64), np.array([0, 1]))
    >>> index.find(np.array([4, 5, 9], np.uint64)).tolist()
    [1, -1, 0]
    """

    large: _Table = field(default_factory=_Table)
    recent: _Table = field(default_factory=_Table)

    def find(self, hashes: Hashes) -> Places:
        """Place of each hash, [n]; -1: not there."""
        found = np.full(len(hashes), -1, np.int64)
        for table in (self.large, self.recent):
            if table.count:
                _find(table.names, table.at, hashes, found)
        return found

    def with_added(self, hashes: Hashes, at: Places) -> HashIndex:
        """This index and these distinct hashes other than 0, none of which it holds yet."""
        recent = self.recent.with_added(hashes, at)
        if recent.count <= max(_LEAST_RECENT, self.large.count // 16):
            return HashIndex(self.large, recent)
        return HashIndex(self.large.merged(recent))


def distinct(names: Hashes) -> tuple[Places, Places]:
    """
    Where each name is for the first time, [m], and which of these each one is, [n].

    >>> [part.tolist() for part in distinct(np.array([7, 9, 7], np.uint64))]
    [[0, 1], [0, 1, 0]]
    """
    size = 2
    while size <= 2 * len(names):
        size *= 2
    first, which = np.empty(len(names), np.int64), np.empty(len(names), np.int64)
    count = _number(names, np.zeros(size, np.uint64), np.zeros(size, np.int64), first, which)
    return first[:count], which


@compiled(given("uint64"), "uint64")
def _slot(names: Hashes, name: np.uint64) -> np.uint64:
    """Where a name is, or would be (multiplicative hashing: Knuth, TAOCP 3, 6.4)."""
    mask = np.uint64(len(names) - 1)
    slot = ((name * _GOLDEN) >> _HALF) & mask
    while names[slot] != _FREE and names[slot] != name:
        slot = (slot + _ONE) & mask
    return slot


@compiled(filled("uint64"), filled("int64"), given("uint64"), given("int64"))
def _put(names: Hashes, at: Places, hashes: Hashes, places: Places) -> None:
    for i in range(len(hashes)):
        slot = _slot(names, hashes[i])
        names[slot], at[slot] = hashes[i], places[i]


@compiled(given("uint64"), given("int64"), given("uint64"), filled("int64"))
def _find(names: Hashes, at: Places, hashes: Hashes, found: Places) -> None:
    """Fill in the places of those that are there."""
    for i in range(len(hashes)):
        slot = _slot(names, hashes[i])
        if names[slot] == hashes[i] and hashes[i] != _FREE:
            found[i] = at[slot]


@compiled(given("uint64"), filled("uint64"), filled("int64"), filled("int64"), filled("int64"))
def _number(names: Hashes, slots: Hashes, numbers: Places, first: Places, which: Places) -> int:
    """Fill in where each distinct name is first, and which each one is; how many there are."""
    count = 0
    for i in range(len(names)):
        slot = _slot(slots, names[i])
        if slots[slot] == _FREE:
            slots[slot], numbers[slot], first[count] = names[i], count, i
            count += 1
        which[i] = numbers[slot]
    return count
