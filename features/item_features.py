"""
Item-level computations: from the item table, and a user's row with it, to one value a candidate.

Windows leave out the bucket of now, so that what is served now and what a backfill computes later
agree, however far the table's partials have come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.declare import DAY_MS, Array, Feature, ItemContext, Level
from features.ragged import owners
from features.user_features import (
    HOUR,
    LARGEST,
    PRIOR_CLICKS,
    PRIOR_IMPRESSIONS,
    WEEK,
    Window,
    since,
)
from schemas.events import EventType

TARGETS: Final = (
    EventType.CLICK,
    EventType.LIKE,
    EventType.SHARE,
    EventType.CART,
    EventType.PURCHASE,
    EventType.RATING,
)  # what counts as a positive label


def _looked_up(context: ItemContext, column: Array, default: float = 0) -> Array:
    """A column of the item table by candidate; `default` for unknown items."""
    if len(column) == 0:
        return np.full((len(context.index), *column.shape[1:]), default, column.dtype)
    found: Array = column[np.maximum(context.index, 0)]
    found[context.index < 0] = default
    return found


def _item_count(
    context: ItemContext, types: Sequence[EventType], window: Window
) -> NDArray[np.int64]:
    return context.windows.counts(types, hours=window.hours, days=window.days)


def popularity(what: str, types: Sequence[EventType], window: Window) -> Feature:
    """Counts of some event types on the item in a window."""

    def compute(context: ItemContext) -> Array:
        return np.log1p(_item_count(context, types, window)).astype(np.float32)

    return scalar(
        f"item_{what}_{window.name}",
        compute,
        f"log(1 + {what} of the item in the last {window.name}, whole buckets before now)",
    )


def click_rate(window: Window) -> Feature:
    """Positives an impression, shrunk towards the prior."""

    def compute(context: ItemContext) -> Array:
        many = _item_count(context, TARGETS, window) + PRIOR_CLICKS
        of = _item_count(context, [EventType.IMPRESSION], window) + PRIOR_IMPRESSIONS
        return np.minimum(many / of, 1.0).astype(np.float32)

    return scalar(
        f"item_click_rate_{window.name}",
        compute,
        f"positives an impression in the last {window.name}, whole buckets before now, shrunk to "
        "1 in 20",
        default=PRIOR_CLICKS / PRIOR_IMPRESSIONS,
    )


def trend(context: ItemContext) -> Array:
    """The last hour's positives against the week's hourly mean."""
    hour = _item_count(context, TARGETS, HOUR)
    mean = _item_count(context, TARGETS, WEEK) / (7 * 24)
    return np.log((hour + 1) / (mean + 1)).astype(np.float32)


def age(context: ItemContext) -> Array:
    """log(1 + days since publication)."""
    return since(_looked_up(context, context.items.published_ms), context.now_ms, DAY_MS)


def price(context: ItemContext) -> Array:
    """log(1 + price)."""
    given = np.fmax(_looked_up(context, context.items.price), 0)  # of NaN and a number the number
    found: Array = np.log1p(np.minimum(given, LARGEST)).astype(np.float32)
    return found


def known(context: ItemContext) -> Array:
    """1 for items that the catalogue has named, 0 for those that only events have."""
    return _looked_up(context, context.items.listed).astype(np.float32)


def affinity(
    column: Callable[[Any], Array], types: Sequence[EventType] = tuple(EventType)
) -> Callable[[ItemContext], Array]:
    """
    Share of the user's history that has a tag of the candidate, mean over the candidate's tags.

    Args:
        column: the tags of every item, [items] or [items, tags] hashes, 0 for none.
        types: only the history's events of these types are looked at.
    """

    looked_for = np.zeros(256, np.bool_)  # by type
    looked_for[list(types)] = True

    def compute(context: ItemContext) -> Array:
        tags = context.shared(column, lambda: _Tags(context, column(context.items)))
        return tags.affinity(looked_for)

    return compute


class _Tags:
    """
    Tags of the candidates, and where they occur in their users' histories: what affinities to
    different types of events have in common.
    """

    def __init__(self, context: ItemContext, table: NDArray[np.uint64]) -> None:
        rows = context.users.rows
        table = table if table.ndim == 2 else table[:, None]
        self._owner = context.users.shared("history owners", lambda: owners(rows.history_splits))
        self._type, self._people = rows.history_type, len(rows)
        self._request = context.request
        wanted = _looked_up(context, table)
        named = wanted != 0
        self._count = named.sum(axis=1)  # of each candidate's tags
        self._asked_by = np.repeat(np.arange(len(wanted)), self._count)
        asked, person = wanted[named], context.request[self._asked_by]
        # What is asked for is sorted; what is held, which is far more, is only looked up in it.
        names, asked_at = np.unique(asked, return_inverse=True)
        pairs, self._again = np.unique(person * len(names) + asked_at, return_inverse=True)
        self._pairs = len(pairs)
        at = context.history_index
        entry = np.flatnonzero(at >= 0)
        # An item may be newer than the column: another thread may be adding items.
        entry = entry[at[entry] < len(table)]
        tags = table[at[entry]]
        there = tags != 0
        held, entry = tags[there], np.repeat(entry, there.sum(axis=1))
        if not (len(pairs) and len(held)):
            self._entry, self._place = entry[:0], entry[:0]
            return
        name = np.minimum(np.searchsorted(names, held), len(names) - 1)
        alike = np.flatnonzero(names[name] == held)
        key = self._owner[entry[alike]] * len(names) + name[alike]
        place = np.minimum(np.searchsorted(pairs, key), len(pairs) - 1)
        met = pairs[place] == key
        self._entry, self._place = entry[alike[met]], place[met]

    def affinity(self, looked_for: NDArray[np.bool_]) -> Array:
        """
        Mean share of each candidate's tags among its user's events of these types, [m] float32.

        Args:
            looked_for: [256] by type.
        """
        mine = looked_for[self._type]
        counts = np.bincount(self._place[mine[self._entry]], minlength=self._pairs)
        events = np.bincount(self._owner[mine], minlength=self._people)
        whose = self._request[self._asked_by]
        share = counts[self._again].astype(np.float64) / np.maximum(events, 1)[whose]
        total = np.bincount(self._asked_by, weights=share, minlength=len(self._count))
        mean: Array = total / np.maximum(self._count, 1)
        return mean.astype(np.float32)


def scalar(
    name: str, compute: Callable[[ItemContext], Array], doc: str, default: float = 0
) -> Feature:
    """One float32 a candidate."""
    return Feature(
        name=name, level=Level.ITEM, dtype="float32", compute=compute, doc=doc, default=default
    )


def item_hash(context: ItemContext) -> Array:
    """The candidate itself, as a hash."""
    return context.hashes.view(np.int64)


def categories(context: ItemContext) -> Array:
    """Hashes of its categories, [m, 8]."""
    return _looked_up(context, context.items.categories).view(np.int64)


def creator(context: ItemContext) -> Array:
    """Hash of its creator."""
    return _looked_up(context, context.items.creator).view(np.int64)
