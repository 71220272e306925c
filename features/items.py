"""
The item table: what the catalogue says of items, and what all users did with them.

It adds up the partials of all partitions (`features.partials`), as they come on `item-features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import tiles as tiling
from features.arena import Arena, ArenaView
from features.declare import HOUR_MS
from features.hash_index import HashIndex, distinct
from features.hashing import hash_ids
from features.partials import (
    DecodedPartials,
    Partials,
    decode_partials,
    empty_partials,
    encode_partials,
    fold_partials,
)
from features.ragged import owners
from features.texts import Texts
from features.tiles import Window
from schemas.events import Item, ItemFeatures

__all__ = [
    "DecodedPartials",
    "ItemTable",
    "ItemWindows",
    "Partials",
    "decode_partials",
    "empty_partials",
    "encode_partials",
    "fold_partials",
]

CATEGORIES: Final = 8  # places for an item's categories; more are left out


class Counted(NamedTuple):
    """Events of some types in a window. Neither hours nor days: the totals, open."""

    types: tuple[int, ...]
    window: Window


class ItemWindows:
    """
    Event counts of m candidates, each in windows before its own now.

    Windows are closed: the bucket of now is left out, so that serving and backfill agree.
    """

    def __init__(
        self, table: ItemTable, index: NDArray[np.int64], now_ms: NDArray[np.int64] | int
    ) -> None:
        self._table = table
        hour = np.broadcast_to(np.asarray(now_ms, np.int64) // HOUR_MS, index.shape)
        # Many requests ask for the same item in the same hour: count it once. Hours fit in 26
        # bits, see features.tiles; an unknown item is -1.
        first, self._again = distinct((((index + 2) << 26) | hour).view(np.uint64))
        self._item, self._now_ms = index[first], hour[first] * HOUR_MS
        self._windows: tuple[Window, ...] = ()
        self._counted = np.zeros((0, 0))  # [d, windows * TYPES] of the different items

    def counts(self, wanted: tuple[Counted, ...]) -> NDArray[np.float64]:
        """Events of some types in windows, [m, len(wanted)] float64, exact below 2**53."""
        asked = {one.window: None for one in wanted}
        if not asked.keys() <= set(self._windows):  # the first feature asks for most windows
            self._windows = tuple({**dict.fromkeys(self._windows), **asked})
            tables = self._table.window_tables(self._item, self._now_ms, self._windows)
            self._counted = tables.reshape(len(tables), len(self._windows) * tiling.TYPES)
        found: NDArray[np.float64] = (self._counted @ _places(wanted, self._windows))[self._again]
        return found


@lru_cache
def _places(wanted: tuple[Counted, ...], windows: tuple[Window, ...]) -> NDArray[np.float64]:
    """What is added up of the windows' tables beside each other, [windows * TYPES, wanted]."""
    found = np.zeros((len(windows), tiling.TYPES, len(wanted)))
    for at, one in enumerate(wanted):
        found[windows.index(one.window), one.types, at] = 1
    return found.reshape(-1, len(wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """The catalogue's words on items, as columns."""

    hashes: NDArray[np.uint64]
    listed: NDArray[np.bool_]
    available: NDArray[np.bool_]
    categories: NDArray[np.uint64]  # [n, CATEGORIES]
    creator: NDArray[np.uint64]
    published_ms: NDArray[np.int64]
    price: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.hashes)

    def grown(self, capacity: int) -> _Columns:
        """A copy with room for so many items."""
        columns = {}
        for name in _Columns.__slots__:
            column = getattr(self, name)
            columns[name] = np.zeros((capacity, *column.shape[1:]), column.dtype)
            columns[name][: len(column)] = column
        return _Columns(**columns)

    def put(self, at: NDArray[np.int64], other: _Columns) -> None:
        """Overwrite these places."""
        for name in _Columns.__slots__:
            getattr(self, name)[at] = getattr(other, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """All that a reader needs, published by swapping one reference."""

    size: int
    columns: _Columns  # [capacity]
    lookup: HashIndex
    tiles: ArenaView


class ItemTable:
    """
    Every item of the catalogue or of the events, with aggregates summed over partitions.

    One thread may put while others read. An index, once given, stays the item's for good; the
    arrays that the properties return are as of their call, and never change.
    """

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self.ids = Texts()
        self._sums = Arena()
        self._parts: dict[int, Arena] = {}  # by partition of user-events
        self._state = _State(
            size=0, columns=_columns([]), lookup=HashIndex(), tiles=self._sums.view()
        )

    def __len__(self) -> int:
        return self._state.size

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """[n] hashes of the ids."""
        state = self._state
        return state.columns.hashes[: state.size]

    @property
    def listed(self) -> NDArray[np.bool_]:
        """[n] whether the catalogue has named the item; if not, only events have."""
        state = self._state
        return state.columns.listed[: state.size]

    @property
    def available(self) -> NDArray[np.bool_]:
        """[n] whether the item may be recommended."""
        state = self._state
        return state.columns.available[: state.size]

    @property
    def categories(self) -> NDArray[np.uint64]:
        """[n, CATEGORIES] hashes of the categories; 0 pads."""
        state = self._state
        return state.columns.categories[: state.size]

    @property
    def creator(self) -> NDArray[np.uint64]:
        """[n] hash of the creator; 0: none."""
        state = self._state
        return state.columns.creator[: state.size]

    @property
    def published_ms(self) -> NDArray[np.int64]:
        """[n] time of publication; 0: not known."""
        state = self._state
        return state.columns.published_ms[: state.size]

    @property
    def price(self) -> NDArray[np.float32]:
        """[n] price; NaN: none."""
        state = self._state
        return state.columns.price[: state.size]

    def index(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Index of each item hash, [m]; -1: unknown."""
        return self._state.lookup.find(hashes)

    def by_id(self, item_id: str) -> int:
        """Index of one item; -1: unknown."""
        at = int(self.index(hash_ids([item_id]))[0])
        return at if at >= 0 and self.ids[at] == item_id else -1

    def window_counts(
        self,
        index: NDArray[np.int64],
        event_types: Sequence[int],
        now_ms: NDArray[np.int64] | int,
        *,
        hours: int = 0,
        days: int = 0,
    ) -> NDArray[np.int64]:
        """Events of these types in the closed window before now, [m]; unknown items have none."""
        wanted = (Counted(tuple(event_types), Window("", hours, days)),)
        return self.windows(index, now_ms).counts(wanted)[:, 0].astype(np.int64)

    def windows(self, index: NDArray[np.int64], now_ms: NDArray[np.int64] | int) -> ItemWindows:
        """What several windows over the same candidates share."""
        return ItemWindows(self, index, now_ms)

    def window_tables(
        self, index: NDArray[np.int64], now_ms: NDArray[np.int64], windows: tuple[Window, ...]
    ) -> NDArray[np.float64]:
        """
        Counts of every event type in closed windows, [m, len(windows), TYPES]; of unknown items 0.

        `now_ms`: [m].
        """
        low, high = tiling.window_keys(now_ms, windows, closed=True)
        return self._state.tiles.counted(index, low, high)

    def put_items(self, items: Sequence[Item]) -> None:
        """Take in catalogue entries; of one item's, the last counts."""
        newest = list({item.item_id: item for item in items}.values())
        columns = _columns(newest)
        state = self._state
        at = state.lookup.find(columns.hashes)
        old, new = np.flatnonzero(at >= 0), np.flatnonzero(at < 0)
        kept = state.columns
        if len(old):  # readers hold the arrays: what changes is changed in a copy
            kept = kept.grown(len(kept))
            kept.put(at[old], _picked(columns, old))
        ids = [newest[i].item_id for i in new.tolist()]
        self._publish(self._with_new(kept, _picked(columns, new), ids))

    def put_partials(self, partials: Sequence[ItemFeatures]) -> int:
        """
        Take in aggregates: each replaces what its partition said of its item before.

        Those of other feature sets, which share the topic, are passed over.

        Returns:
            How many were refused: damaged, or stored in a form that is not known here.
        """
        ours = (p for p in partials if p.fingerprint == self._fingerprint)
        newest = list({(p.item_id, p.partition): p for p in ours}.values())
        decoded = decode_partials([p.partial for p in newest], self._fingerprint)
        good = np.setdiff1d(np.arange(len(newest)), np.array(decoded.corrupt, np.int64))
        ids = [newest[i].item_id for i in good.tolist()]
        at = self._index_or_add(ids)
        partition = np.array([newest[i].partition for i in good.tolist()], np.int64)
        for p in np.unique(partition).tolist():
            mine = np.flatnonzero(partition == p)
            arena = self._parts.setdefault(p, Arena())
            arena.reserve(len(self))
            arena.put(at[mine], tiling.take(decoded.partials.tiles, good[mine]))
        self._sum_up(np.unique(at))
        return len(decoded.corrupt)

    def holds_partial(self, item_id: str, partition: int) -> bool:
        """Whether a partition has said anything of an item."""
        arena, at = self._parts.get(partition), self.by_id(item_id)
        return arena is not None and at >= 0 and arena.holds(at)

    def _index_or_add(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Index of each id; those that the catalogue has not named (yet) become unlisted items."""
        hashes = hash_ids(ids)
        missing = np.flatnonzero(self._state.lookup.find(hashes) < 0)
        if len(missing):
            names = list(dict.fromkeys(ids[i] for i in missing.tolist()))
            columns = _columns([Item(item_id=n, title=n, available=False) for n in names])
            columns.listed[:] = False
            self._publish(self._with_new(self._state.columns, columns, names))
        return self._state.lookup.find(hashes)

    def _with_new(self, columns: _Columns, new: _Columns, ids: Sequence[str]) -> _State:
        """The state with these items behind the others. Nobody reads there before it is out."""
        size = self._state.size
        grown = size + len(new)
        if grown > len(columns):
            columns = columns.grown(max(grown, 2 * len(columns), 64))
        at = np.arange(size, grown)
        columns.put(at, new)
        self.ids.extend(ids)
        self._sums.reserve(len(columns))
        lookup = self._state.lookup
        if len(new):
            lookup = lookup.with_added(new.hashes, at)
        return _State(size=grown, columns=columns, lookup=lookup, tiles=self._sums.view())

    def _sum_up(self, items: NDArray[np.int64]) -> None:
        """Add up the partitions of these items, and publish."""
        rows, keys, counts = [], [], []
        for arena in self._parts.values():
            arena.reserve(len(self))
            part = arena.view().take(items)
            rows.append(owners(part.splits))
            keys.append(part.key)
            counts.append(part.count)
        if rows:
            total = tiling.summed(
                np.concatenate(rows), np.concatenate(keys), np.concatenate(counts), len(items)
            )
            self._sums.put(items, total)
            self._publish(replace(self._state, tiles=self._sums.view()))

    def _publish(self, state: _State) -> None:
        self._state = state


def _columns(items: Sequence[Item]) -> _Columns:
    n = len(items)
    padded = [
        name
        for item in items
        for name in (*item.categories[:CATEGORIES], *[None] * (CATEGORIES - len(item.categories)))
    ]
    return _Columns(
        hashes=hash_ids([item.item_id for item in items]),
        listed=np.ones(n, np.bool_),
        available=np.array([item.available for item in items], np.bool_),
        categories=hash_ids(padded).reshape(n, CATEGORIES),
        creator=hash_ids([item.creator for item in items]),
        published_ms=np.array([item.published_at or 0 for item in items], np.int64),
        price=np.array([np.nan if i.price is None else i.price for i in items], np.float32),
    )


def _picked(columns: _Columns, index: NDArray[np.int64]) -> _Columns:
    return _Columns(**{name: getattr(columns, name)[index] for name in _Columns.__slots__})
