"""From 64-bit hashes to places: sorted arrays, looked up by whole columns. Immutable."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def _hashes() -> NDArray[np.uint64]:
    return np.empty(0, np.uint64)


def _places() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class HashIndex:
    """
    Two sorted runs, a large and a recent one, so that adding a few costs little among millions.

    >>> index = HashIndex().with_added(np.array([9, 4], np.uint64), np.array([0, 1]))
    >>> index.find(np.array([4, 5, 9], np.uint64)).tolist()
    [1, -1, 0]
    """

    large: NDArray[np.uint64] = field(default_factory=_hashes)
    large_at: NDArray[np.int64] = field(default_factory=_places)
    recent: NDArray[np.uint64] = field(default_factory=_hashes)
    recent_at: NDArray[np.int64] = field(default_factory=_places)

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Place of each hash, [n]; -1: not there."""
        found = _found(self.large, self.large_at, hashes)
        if len(self.recent):
            found = np.maximum(found, _found(self.recent, self.recent_at, hashes))
        return found

    def with_added(self, hashes: NDArray[np.uint64], at: NDArray[np.int64]) -> HashIndex:
        """This index and these distinct hashes, none of which it holds yet."""
        recent, recent_at = _merged(self.recent, self.recent_at, hashes, at)
        if len(recent) <= max(1024, len(self.large) // 16):
            return HashIndex(self.large, self.large_at, recent, recent_at)
        return HashIndex(*_merged(self.large, self.large_at, recent, recent_at))


def _found(
    run: NDArray[np.uint64], at: NDArray[np.int64], hashes: NDArray[np.uint64]
) -> NDArray[np.int64]:
    if not len(run):
        return np.full(len(hashes), -1, np.int64)
    place = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
    return np.where(run[place] == hashes, at[place], -1)


def _merged(
    run: NDArray[np.uint64],
    at: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    places: NDArray[np.int64],
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    order = np.argsort(hashes)
    place = np.searchsorted(run, hashes[order])
    return np.insert(run, place, hashes[order]), np.insert(at, place, places[order])
