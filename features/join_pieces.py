"""
Events that lists wait for, kept so that the labels of many lists are found at once.

A label of a list is an event of its user on one of its items, within the window, in a range of
offsets; an event that names a request is a label of that one alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.shown import Done, Shown, concat_done, take_done


@dataclass(frozen=True, slots=True)
class Piece:
    """Events in log order, and the order that sorts them by user."""

    events: Done
    by_user: NDArray[np.int64]
    users: NDArray[np.uint64]  # sorted
    used: NDArray[np.bool_]  # became a label, in time or late: grows with the lists that are taken

    @classmethod
    def of(cls, events: Done, used: NDArray[np.bool_] | None = None) -> Piece:
        by_user = np.argsort(events.user_hash, kind="stable")
        used = np.zeros(len(events), np.bool_) if used is None else used
        return cls(events, by_user, events.user_hash[by_user], used)

    def part(self, keep: NDArray[np.bool_]) -> Piece:
        """The events under a mask."""
        return Piece.of(take_done(self.events, keep), self.used[keep])

    def and_then(self, other: Piece) -> Piece:
        """Both, in this order."""
        return Piece.of(
            concat_done([self.events, other.events]), np.concatenate([self.used, other.used])
        )

    def unmatched(self, since: int) -> int:
        """Events from an offset on that name a request and became no label."""
        named = (self.events.request_hash != 0) & (self.events.offset >= since)
        return int((named & ~self.used).sum())


class Labels(NamedTuple):
    """Labels: the entry of the lists' items, and the event of the piece, of each."""

    entry: NDArray[np.int64]
    event: NDArray[np.int64]


def matches(
    lists: Shown,
    pieces: Sequence[Piece],
    bounds: tuple[NDArray[np.int64], NDArray[np.int64]],
    window_ms: int,
) -> Iterator[tuple[Piece, Labels]]:
    """
    Each piece with its labels.

    Args:
        bounds: for each list the first offset, and the offset after the last, that count.
    """
    first, after = bounds
    lo_ms, hi_ms = lists.event_time, lists.event_time + window_ms
    counts = np.diff(lists.splits)
    for piece in pieces:
        events = piece.events
        if not len(events):
            continue
        live = np.flatnonzero((first <= events.offset[-1]) & (after > events.offset[0]))
        left = np.searchsorted(piece.users, lists.user_hash[live])
        right = np.searchsorted(piece.users, lists.user_hash[live], "right")
        which, at = _expanded(live, left, right - left)
        event = piece.by_user[at]
        time, offset = events.event_time[event], events.offset[event]
        asked = events.request_hash[event]
        fits = (offset >= first[which]) & (offset < after[which])
        fits &= (time >= lo_ms[which]) & (time <= hi_ms[which])
        fits &= (asked == 0) | (asked == lists.request_hash[which])
        which, event = which[fits], event[fits]
        of, entry = _expanded(np.arange(len(which)), lists.splits[which], counts[which])
        same = lists.item_hash[entry] == events.item_hash[event[of]]
        yield piece, Labels(entry[same], event[of[same]])


def _expanded(
    keys: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Each key repeated `counts` times, beside the places start, start + 1, ... of its range.

    >>> [a.tolist() for a in _expanded(np.array([7, 8]), np.array([0, 5]), np.array([1, 2]))]
    [[7, 8, 8], [0, 5, 6]]
    """
    before = np.cumsum(counts) - counts
    places = np.arange(int(counts.sum())) - np.repeat(before - starts, counts)
    return np.repeat(keys, counts), places
