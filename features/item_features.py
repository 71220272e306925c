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
    given = np.nan_to_num(_looked_up(context, context.items.price))
    found: Array = np.log1p(np.maximum(given, 0)).astype(np.float32)
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
        rows = context.users.rows
        some = np.flatnonzero(looked_for[rows.history_type])
        owner = owners(rows.history_splits)[some]
        at = context.history_index[some]
        table = column(context.items)  # after `at`: another thread may be adding items
        table = table if table.ndim == 2 else table[:, None]
        known = at >= 0
        held, held_by = _tags(table[at[known]], owner[known])
        wanted = _looked_up(context, table)
        asked, asked_by = _tags(wanted, np.arange(len(wanted)))
        share = _shares(held, held_by, asked, context.request[asked_by])
        looked_at = np.bincount(owner, minlength=len(rows))
        share = share / np.maximum(looked_at, 1)[context.request[asked_by]]
        total = np.bincount(asked_by, weights=share, minlength=len(wanted))
        mean: Array = total / np.maximum((wanted != 0).sum(axis=1), 1)
        return mean.astype(np.float32)

    return compute


def _tags(
    tags: NDArray[np.uint64], owner: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Tags that are there, flat, with their owners."""
    there = tags != 0
    return tags[there], np.repeat(owner, there.sum(axis=1))


def _shares(
    held: NDArray[np.uint64],
    held_by: NDArray[np.int64],
    asked: NDArray[np.uint64],
    asked_by: NDArray[np.int64],
) -> NDArray[np.float64]:
    """How often each asked tag is held by the same user, [asked] float64."""
    if len(held) == 0 or len(asked) == 0:
        return np.zeros(len(asked))
    # What is asked for is sorted; what is held, which is far more, is only looked up in it.
    names, asked_at = np.unique(asked, return_inverse=True)
    held_at = np.minimum(np.searchsorted(names, held), len(names) - 1)
    named = names[held_at] == held
    wanted, again = np.unique(asked_by * len(names) + asked_at, return_inverse=True)
    pairs = held_by[named] * len(names) + held_at[named]
    at = np.minimum(np.searchsorted(wanted, pairs), len(wanted) - 1)
    counts = np.bincount(at[wanted[at] == pairs], minlength=len(wanted))
    return counts[again].astype(np.float64)


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
