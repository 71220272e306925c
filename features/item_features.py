"""
Item-level computations: from the item table, and a user's row with it, to one value a candidate.

Windows leave out the bucket of now, so that what is served now and what a backfill computes later
agree, however far the table's partials have come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from features.affinity import affinities
from features.declare import DAY_MS, Array, Feature, ItemContext, Level, Together
from features.items import Counted
from features.tiles import Window
from features.user_features import (
    HOUR,
    LARGEST,
    PRIOR_CLICKS,
    PRIOR_IMPRESSIONS,
    WEEK,
    shrunk,
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


def _popularities(context: ItemContext, keys: tuple[Counted, ...]) -> Array:
    return np.log1p(context.windows.counts(keys))


def popularity(what: str, types: Sequence[EventType], window: Window) -> Feature:
    """Counts of some event types on the item in a window."""
    return scalar(
        f"item_{what}_{window.name}",
        Together(_popularities, Counted(tuple(types), window)),
        f"log(1 + {what} of the item in the last {window.name}, whole buckets before now)",
    )


def _click_rates(context: ItemContext, keys: tuple[Window, ...]) -> Array:
    done = tuple(Counted(TARGETS, window) for window in keys)
    shown = tuple(Counted((EventType.IMPRESSION,), window) for window in keys)
    return shrunk(context.windows.counts(done + shown))


def click_rate(window: Window) -> Feature:
    """Positives an impression, shrunk towards the prior."""
    return scalar(
        f"item_click_rate_{window.name}",
        Together(_click_rates, window),
        f"positives an impression in the last {window.name}, whole buckets before now, shrunk to "
        "1 in 20",
        default=PRIOR_CLICKS / PRIOR_IMPRESSIONS,
    )


def trend(context: ItemContext) -> Array:
    """The last hour's positives against the week's hourly mean."""
    found = context.windows.counts((Counted(TARGETS, HOUR), Counted(TARGETS, WEEK)))
    return np.log((found[:, 0] + 1) / (found[:, 1] / (7 * 24) + 1)).astype(np.float32)


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
        rows, table = context.users.rows, column(context.items)
        found = np.empty(len(context.index), np.float32)
        affinities(
            table if table.ndim == 2 else table[:, None],
            context.index,
            context.request,
            rows.history_splits,
            context.history_index,
            looked_for[rows.history_type],
            found,
        )
        return found

    return compute


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
