"""
Tiles of many items in one growing array of words: no object an item, and no dense table.

One thread writes, any number read: a reader holds `view()`, whose arrays are only ever appended to
(beyond every published length) or repointed slot by slot, one aligned 64-bit store each. Growing
and compaction make new arrays and leave the old ones to whoever still reads them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.ragged import spans, splits_of
from features.tiles import TYPES, Tiles, tiles_of_words, words_of_tiles
from schemas.compiled import compiled, filled, given

_LENGTH_BITS = np.uint64(16)
_LENGTH_MASK = np.uint64(0xFFFF)
_KEY_MASK = np.uint64(2**32 - 1)
_COUNT_SHIFT = np.uint64(32)


class ArenaView(NamedTuple):
    """What a reader holds."""

    words: NDArray[np.uint64]  # key | count << 32 of every tile, old ones among them
    slots: NDArray[np.uint64]  # [capacity] by item: offset << 16 | length

    def take(self, index: NDArray[np.int64]) -> Tiles:
        """Tiles of the items `index`, in that order."""
        slots = self.slots[index]
        lengths = (slots & _LENGTH_MASK).astype(np.int64)
        at = spans((slots >> _LENGTH_BITS).astype(np.int64), lengths)
        return tiles_of_words(splits_of(lengths), self.words[at])

    def counted(
        self, index: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """
        Counts of every event type in the tiles whose keys are in `low <= key < high`.

        Args:
            index: [m] items; -1: nothing is known of it.
            low, high: [w, m] of w windows.

        Returns:
            [m, w, TYPES] float64, exact below 2**53, as what is computed from them is.

        Raises:
            IndexError: there is no such item.
        """
        if index.max(initial=-1) >= len(self.slots):
            raise IndexError(f"there is no item {index.max()} among {len(self.slots)}")
        found = np.zeros((len(index), len(low), TYPES), np.float64)
        _count(self.slots, self.words, index, low, high, found)
        return found


@compiled(
    given("uint64"),
    given("uint64"),
    given("int64"),
    given("int64", 2),
    given("int64", 2),
    filled("float64", 3),
)
def _count(
    slots: NDArray[np.uint64],
    words: NDArray[np.uint64],
    index: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    found: NDArray[np.float64],
) -> None:
    for i in range(len(index)):
        if index[i] < 0:
            continue
        slot = slots[index[i]]
        start = np.int64(slot >> _LENGTH_BITS)
        for j in range(start, start + np.int64(slot & _LENGTH_MASK)):
            key = np.int64(words[j] & _KEY_MASK)
            for w in range(len(low)):
                if low[w, i] <= key < high[w, i]:
                    found[i, w, key & (found.shape[2] - 1)] += words[j] >> _COUNT_SHIFT


class Arena:
    """The writer's side."""

    def __init__(self) -> None:
        self._words = np.empty(1024, np.uint64)
        self._slots = np.zeros(64, np.uint64)
        self._used = 0
        self._live = 0

    def view(self) -> ArenaView:
        """The present arrays; valid for as long as they are held."""
        return ArenaView(self._words, self._slots)

    def reserve(self, items: int) -> None:
        """Make room for item indexes below `items`."""
        if items > len(self._slots):
            slots = np.zeros(max(items, 2 * len(self._slots)), np.uint64)
            slots[: len(self._slots)] = self._slots
            self._slots = slots

    def holds(self, index: int) -> bool:
        """Whether an item has any tiles."""
        return index < len(self._slots) and bool(self._slots[index] & _LENGTH_MASK)

    def put(self, index: NDArray[np.int64], tiles: Tiles) -> None:
        """Replace the tiles of these distinct items."""
        lengths = np.diff(tiles.splits)
        added = int(lengths.sum())
        replaced = int((self._slots[index] & _LENGTH_MASK).sum())
        if self._used + added > len(self._words):
            self._compact(added)
        self._words[self._used : self._used + added] = words_of_tiles(tiles)
        offsets = (tiles.splits[:-1] + self._used).astype(np.uint64)
        self._slots[index] = (offsets << _LENGTH_BITS) | lengths.astype(np.uint64)
        self._used += added
        self._live += added - replaced

    def _compact(self, added: int) -> None:
        """New arrays without the words that no slot points to, at most half full."""
        slots = self._slots
        lengths = (slots & _LENGTH_MASK).astype(np.int64)
        words = np.empty(max(1024, 2 * (self._live + added)), np.uint64)
        words[: self._live] = self._words[spans((slots >> _LENGTH_BITS).astype(np.int64), lengths)]
        starts = splits_of(lengths)[:-1].astype(np.uint64)
        self._slots = (starts << _LENGTH_BITS) | lengths.astype(np.uint64)
        self._words, self._used = words, self._live
