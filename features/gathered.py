"""
Batches of several partitions put together, so that one set of column operations folds them all.

An operation on columns costs some microseconds whatever their length, and a fold has hundreds: with
a batch of each of four partitions in turn, an event would wait for four folds of a few events each.
Users and items stay apart by partition, and each partition is written by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from features.fit import Fit
from features.misplaced import KeyGroups, grouped
from features.to_columns import DistinctItems, LogOrder
from ingest.log import RecordBatch
from ingest.origin import origin_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """b batches of as many partitions, and the columns of their n records, batch after batch."""

    batches: tuple[RecordBatch, ...]
    starts: NDArray[np.int64]  # [b + 1] where the records of each batch begin
    values: Sequence[bytes | None]  # [n]
    timestamps_ms: NDArray[np.int64]  # [n]
    parts: tuple[KeyGroups, ...]  # [b] the keys of each batch by themselves
    groups: KeyGroups  # all keys: one that occurs in two batches is there twice
    key_starts: NDArray[np.int64]  # [b + 1] where the keys of each batch begin

    def __len__(self) -> int:
        return len(self.values)

    def place(self, at: int) -> tuple[RecordBatch, int]:
        """The batch of record `at`, and its index in it."""
        batch = int(np.searchsorted(self.starts, at, side="right")) - 1
        return self.batches[batch], at - int(self.starts[batch])

    def origin(self, at: int) -> bytes:
        """Where record `at` first was."""
        return origin_of(*self.place(at))


def gather(batches: Sequence[RecordBatch]) -> Gathered:
    """Put batches of different partitions together."""
    parts = tuple(grouped(batch.keys) for batch in batches)
    key_starts = _starts([len(part.keys) for part in parts])
    if len(batches) == 1:
        values, timestamps_ms, groups = batches[0].values, batches[0].timestamps_ms, parts[0]
    else:
        values = list(chain.from_iterable(batch.values for batch in batches))
        timestamps_ms = np.concatenate([batch.timestamps_ms for batch in batches])
        shifted = [
            np.where(part.code < 0, -1, part.code + start)
            for part, start in zip(parts, key_starts[:-1].tolist(), strict=True)
        ]
        groups = KeyGroups(
            keys=list(chain.from_iterable(part.keys for part in parts)),
            code=np.concatenate(shifted),
        )
    return Gathered(
        batches=tuple(batches),
        starts=_starts([len(batch) for batch in batches]),
        values=values,
        timestamps_ms=timestamps_ms,
        parts=parts,
        groups=groups,
        key_starts=key_starts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """Whose rows and partials the fit records are folded into, batch after batch."""

    events: NDArray[np.int64]  # [b + 1] where the m fit records of each batch begin
    users: tuple[list[str], ...]  # [b] of each batch
    user_starts: NDArray[np.int64]  # [b + 1]
    row: NDArray[np.int64]  # [m] index among all users
    items: tuple[list[str], ...]  # [b] of each batch
    item_starts: NDArray[np.int64]  # [b + 1]
    partial: NDArray[np.int64]  # [m] index among all items; -1: no item


def touched(gathered: Gathered, order: LogOrder, items: DistinctItems) -> Touched:
    """
    Users and items of the fit records, apart by batch.

    Args:
        items: of the m records in the order of the log, alike texts alike.
    """
    count, keys = len(gathered.batches), gathered.groups.keys
    events = np.searchsorted(order.places, gathered.starts)
    key, row = distinct(gathered.groups.code[order.places], len(keys))
    user_starts = np.searchsorted(key, gathered.key_starts)
    owner = np.repeat(np.arange(count), np.diff(events))
    given = items.code >= 0
    pairs = owner[given] * len(items.ids) + items.code[given]
    pair, place = distinct(pairs, count * len(items.ids))
    partial = np.full(len(items.code), -1, np.int64)
    partial[given] = place
    item_starts = np.searchsorted(pair, np.arange(count + 1) * len(items.ids))
    users = [keys[at].decode() for at in key.tolist()]
    names = [items.ids[at] for at in (pair % max(1, len(items.ids))).tolist()]
    return Touched(
        events=events,
        users=_cut(users, user_starts),
        user_starts=user_starts,
        row=row,
        items=_cut(names, item_starts),
        item_starts=item_starts,
        partial=partial,
    )


def refusals(gathered: Gathered, found: Fit) -> NDArray[np.int64]:
    """[b] how many records of each batch were refused."""
    at = np.array([place for place, _ in found.refused], np.int64)
    return np.diff(np.searchsorted(at, gathered.starts))


def distinct(code: NDArray[np.int64], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    The codes below n that occur, ascending, and the place of each code among them: no sort.

    >>> [found.tolist() for found in distinct(np.array([4, 1, 4]), 6)]
    [[1, 4], [1, 0, 1]]
    """
    occurs = np.zeros(n, np.bool_)
    occurs[code] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[code]


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *lengths])


def _cut(names: list[str], starts: NDArray[np.int64]) -> tuple[list[str], ...]:
    bounds = starts.tolist()
    return tuple(names[a:b] for a, b in pairwise(bounds))
