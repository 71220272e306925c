"""
The catalog: every feature of the standard set, declared once.

To add one, add an entry with its computation; row layout, model input, TFRecord, parse spec, drift
statistic and documentation follow. That changes the fingerprint: rows and models of the old set go
on side by side with the new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import tiles
from features.declare import (
    DAY_MS,
    Array,
    Drift,
    Feature,
    FeatureSet,
    ItemContext,
    Level,
    RowPolicy,
    UserContext,
)
from features.hashing import hash_id
from features.ragged import owners, spans
from schemas.events import EventType

TARGETS: Final = (
    EventType.CLICK,
    EventType.LIKE,
    EventType.SHARE,
    EventType.CART,
    EventType.PURCHASE,
    EventType.RATING,
)  # what counts as a positive label

ATTRIBUTES: Final = (
    "age",  # MovieLens
    "gender",
    "occupation",
    "user_active_degree",  # KuaiRand
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)

POLICY: Final = RowPolicy(attributes=ATTRIBUTES)

COUNTED: Final = (
    EventType.IMPRESSION,
    EventType.VIEW,
    EventType.CLICK,
    EventType.LIKE,
    EventType.CART,
    EventType.PURCHASE,
    EventType.RATING,
)
SESSION_GAP_MS: Final = 30 * 60_000
# Pseudo-counts of a rate's prior: 1 click in 20 impressions.
PRIOR_CLICKS, PRIOR_IMPRESSIONS = 1.0, 20.0


class Window(NamedTuple):
    """A window of whole buckets."""

    name: str
    hours: int = 0
    days: int = 0


HOUR: Final = Window("1h", hours=1)
DAY: Final = Window("24h", hours=24)
WEEK: Final = Window("7d", days=7)
MONTH: Final = Window("30d", days=30)


def describe(features: FeatureSet) -> list[dict[str, str]]:
    """One row a feature, for people: name, level, type, default, drift statistic, meaning."""
    return [
        {
            "name": f.name,
            "level": str(f.level),
            "type": f.dtype if f.length == 1 else f"{f.dtype}[{f.length}]",
            "default": f"{f.default:g}",
            "drift": str(f.drift),
            "meaning": f.doc,
        }
        for f in features.features
    ]


# --- user level ---------------------------------------------------------------------------------


def _newest(splits: NDArray[np.int64], values: Array, default: float = 0) -> Array:
    """The last entries of each row, newest last, [n, history_length]; `default` in front."""
    length = POLICY.history_length
    kept = np.minimum(np.diff(splits), length)
    found = np.full((len(kept), length), default, values.dtype)
    rows = np.repeat(np.arange(len(kept)), kept)
    columns = spans(length - kept, kept)
    found[rows, columns] = values[spans(splits[1:] - kept, kept)]
    return found


def _history_items(context: UserContext) -> Array:
    rows = context.rows
    return _newest(rows.history_splits, rows.history_item).view(np.int64)


def _history_types(context: UserContext) -> Array:
    rows = context.rows
    return _newest(rows.history_splits, rows.history_type).astype(np.int64)


def _history_ages(context: UserContext) -> Array:
    rows = context.rows
    times = _newest(rows.history_splits, rows.history_time_ms)
    ages = np.maximum(context.now_ms[:, None] - times, 0) / 1000
    return np.where(times > 0, np.log1p(ages), 0).astype(np.float32)


def _history_values(context: UserContext) -> Array:
    rows = context.rows
    return np.nan_to_num(_newest(rows.history_splits, rows.history_value))


def _window_count(
    context: UserContext, types: Sequence[EventType], window: Window
) -> NDArray[np.int64]:
    return tiles.window_counts(
        context.rows, types, context.now_ms, hours=window.hours, days=window.days
    )


def _count(event_type: EventType, window: Window) -> Feature:
    def compute(context: UserContext) -> Array:
        return np.log1p(_window_count(context, [event_type], window)).astype(np.float32)

    return Feature(
        name=f"user_{event_type.name.lower()}s_{window.name}",
        level=Level.USER,
        dtype="float32",
        compute=compute,
        doc=f"log(1 + {event_type.name} events of the user in the last {window.name})",
    )


def _rate(name: str, done: EventType, window: Window) -> Feature:
    def compute(context: UserContext) -> Array:
        many = _window_count(context, [done], window) + PRIOR_CLICKS
        of = _window_count(context, [EventType.IMPRESSION], window) + PRIOR_IMPRESSIONS
        return np.minimum(many / of, 1.0).astype(np.float32)

    return Feature(
        name=name,
        level=Level.USER,
        dtype="float32",
        compute=compute,
        default=PRIOR_CLICKS / PRIOR_IMPRESSIONS,
        doc=f"{done.name} events an impression in the last {window.name}, shrunk to 1 in 20",
    )


def _since(time_ms: NDArray[np.int64], now_ms: NDArray[np.int64], unit_ms: int) -> Array:
    """log(1 + units since a time); 0 where there was none."""
    passed = np.maximum(now_ms - time_ms, 0) / unit_ms
    return np.where(time_ms > 0, np.log1p(passed), 0).astype(np.float32)


def _session_length(context: UserContext) -> Array:
    """Interactions since the last gap of 30 minutes, 0 if the newest is older than that."""
    times = _newest(context.rows.history_splits, context.rows.history_time_ms)
    # A later neighbour of the newest entry is the request itself.
    later = np.concatenate([times[:, 1:], context.now_ms[:, None]], axis=1)
    near = (times > 0) & (later - times <= SESSION_GAP_MS)
    unbroken = np.cumprod(near[:, ::-1], axis=1)
    return np.log1p(unbroken.sum(axis=1)).astype(np.float32)


def _cycle(
    period_ms: int, wave: Callable[[NDArray[np.float64]], Array]
) -> Callable[[UserContext], Array]:
    def compute(context: UserContext) -> Array:
        phase = (context.now_ms % period_ms) / period_ms
        return wave(2 * np.pi * phase).astype(np.float32)

    return compute


def _attribute(name: str) -> Feature:
    hashed = np.uint64(hash_id(name))

    def compute(context: UserContext) -> Array:
        rows = context.rows
        at = np.flatnonzero(rows.profile_name == hashed)
        found = np.zeros(len(rows), np.uint64)
        found[owners(rows.profile_splits)[at]] = rows.profile_value[at]
        return found.view(np.int64)

    return Feature(
        name=f"profile_{name}",
        level=Level.USER,
        dtype="int64",
        compute=compute,
        drift=Drift.CATEGORICAL,
        doc=f"hash of the user's static attribute {name!r}; 0: not given",
    )


def _context(name: str, compute: Callable[[UserContext], Array]) -> Feature:
    return Feature(
        name=f"request_{name}",
        level=Level.USER,
        dtype="int64",
        compute=lambda context: compute(context).view(np.int64),
        drift=Drift.CATEGORICAL,
        doc=f"hash of the request's {name}; 0: not given",
    )


def _user(name: str, compute: Callable[[UserContext], Array], doc: str) -> Feature:
    return Feature(name=name, level=Level.USER, dtype="float32", compute=compute, doc=doc)


# --- item level ---------------------------------------------------------------------------------


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
    return context.items.window_counts(
        context.index, types, context.now_ms, hours=window.hours, days=window.days
    )


def _popularity(what: str, types: Sequence[EventType], window: Window) -> Feature:
    def compute(context: ItemContext) -> Array:
        return np.log1p(_item_count(context, types, window)).astype(np.float32)

    return _item(
        f"item_{what}_{window.name}",
        compute,
        f"log(1 + {what} of the item in the last {window.name}, whole buckets before now)",
    )


def _click_rate(context: ItemContext) -> Array:
    many = _item_count(context, TARGETS, WEEK) + PRIOR_CLICKS
    of = _item_count(context, [EventType.IMPRESSION], WEEK) + PRIOR_IMPRESSIONS
    return np.minimum(many / of, 1.0).astype(np.float32)


def _trend(context: ItemContext) -> Array:
    hour = _item_count(context, TARGETS, HOUR)
    mean = _item_count(context, TARGETS, WEEK) / (7 * 24)
    return np.log((hour + 1) / (mean + 1)).astype(np.float32)


def _age(context: ItemContext) -> Array:
    return _since(_looked_up(context, context.items.published_ms), context.now_ms, DAY_MS)


def _price(context: ItemContext) -> Array:
    price = np.nan_to_num(_looked_up(context, context.items.price))
    return np.log1p(np.maximum(price, 0)).astype(np.float32)


def _known(context: ItemContext) -> Array:
    return (context.index >= 0).astype(np.float32)


def _affinity(column: Callable[[Any], Array]) -> Callable[[ItemContext], Array]:
    """
    Share of the user's history that has a tag of the candidate, mean over the candidate's tags.

    `column` gives the tags of every item, [items] or [items, tags] hashes, 0 for none.
    """

    def compute(context: ItemContext) -> Array:
        table = column(context.items)
        table = table.reshape(len(table), -1)
        rows = context.users.rows
        at = context.items.index(rows.history_item)
        known = np.flatnonzero(at >= 0)
        owner = owners(rows.history_splits)[known]
        held, held_by = _tags(table[at[known]], owner)
        wanted = _looked_up(context, table)
        asked, asked_by = _tags(wanted, np.arange(len(wanted)))
        share = _shares(held, held_by, asked, context.request[asked_by])
        share = share / np.maximum(np.diff(rows.history_splits), 1)[context.request[asked_by]]
        total = np.bincount(asked_by, weights=share, minlength=len(wanted))
        return (total / np.maximum((wanted != 0).sum(axis=1), 1)).astype(np.float32)

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
    names, held_at = np.unique(held, return_inverse=True)
    asked_at = np.minimum(np.searchsorted(names, asked), len(names) - 1)
    pairs, counts = np.unique(held_by * len(names) + held_at, return_counts=True)
    wanted = asked_by * len(names) + asked_at
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    hit = (pairs[at] == wanted) & (names[asked_at] == asked)
    return np.where(hit, counts[at], 0).astype(np.float64)


def _item(name: str, compute: Callable[[ItemContext], Array], doc: str) -> Feature:
    return Feature(name=name, level=Level.ITEM, dtype="float32", compute=compute, doc=doc)


def _item_hash(context: ItemContext) -> Array:
    return context.hashes.view(np.int64)


def _categories(context: ItemContext) -> Array:
    return _looked_up(context, context.items.categories).view(np.int64)


def _creator(context: ItemContext) -> Array:
    return _looked_up(context, context.items.creator).view(np.int64)


_SEQUENCES: Final = (
    Feature(
        name="history_items",
        level=Level.USER,
        dtype="int64",
        compute=_history_items,
        length=POLICY.history_length,
        drift=Drift.HASHED,
        doc="hashes of the last items the user did something with, newest last; 0: none",
    ),
    Feature(
        name="history_types",
        level=Level.USER,
        dtype="int64",
        compute=_history_types,
        length=POLICY.history_length,
        drift=Drift.CATEGORICAL,
        doc="event types of the history",
    ),
    Feature(
        name="history_ages",
        level=Level.USER,
        dtype="float32",
        compute=_history_ages,
        length=POLICY.history_length,
        doc="log(1 + seconds since) of the history; 0: none",
    ),
    Feature(
        name="history_values",
        level=Level.USER,
        dtype="float32",
        compute=_history_values,
        length=POLICY.history_length,
        doc="values (rating, price, ...) of the history; 0: none",
    ),
)

_USER: Final = (
    *(_count(event_type, w) for event_type in COUNTED for w in (HOUR, DAY, WEEK, MONTH)),
    _rate("user_click_rate_24h", EventType.CLICK, DAY),
    _rate("user_click_rate_30d", EventType.CLICK, MONTH),
    _rate("user_like_rate_30d", EventType.LIKE, MONTH),
    _user(
        "user_recency",
        lambda c: _since(c.rows.last_seen_ms, c.now_ms, 1000),
        "log(1 + seconds since the user's newest event)",
    ),
    _user(
        "user_tenure",
        lambda c: _since(c.rows.first_seen_ms, c.now_ms, DAY_MS),
        "log(1 + days since the user's first event)",
    ),
    _user(
        "session_length",
        _session_length,
        "log(1 + interactions since the last gap of 30 minutes)",
    ),
    _user("hour_sin", _cycle(DAY_MS, np.sin), "hour of the day (UTC), sine"),
    _user("hour_cos", _cycle(DAY_MS, np.cos), "hour of the day (UTC), cosine"),
    _user("weekday_sin", _cycle(7 * DAY_MS, np.sin), "day of the week (UTC), sine"),
    _user("weekday_cos", _cycle(7 * DAY_MS, np.cos), "day of the week (UTC), cosine"),
    *(_attribute(name) for name in ATTRIBUTES),
    _context("surface", lambda c: c.surface),
    _context("device", lambda c: c.device),
    _context("country", lambda c: c.country),
)

_ITEM: Final = (
    Feature(
        name="item",
        level=Level.ITEM,
        dtype="int64",
        compute=_item_hash,
        drift=Drift.HASHED,
        doc="hash of the item",
    ),
    Feature(
        name="item_categories",
        level=Level.ITEM,
        dtype="int64",
        compute=_categories,
        length=8,
        drift=Drift.HASHED,
        doc="hashes of the item's first 8 categories; 0: none",
    ),
    Feature(
        name="item_creator",
        level=Level.ITEM,
        dtype="int64",
        compute=_creator,
        drift=Drift.HASHED,
        doc="hash of who made the item; 0: not given",
    ),
    _popularity("impressions", [EventType.IMPRESSION], DAY),
    _popularity("impressions", [EventType.IMPRESSION], WEEK),
    _popularity("clicks", [EventType.CLICK], DAY),
    _popularity("clicks", [EventType.CLICK], WEEK),
    _popularity("positives", TARGETS, DAY),
    _popularity("positives", TARGETS, MONTH),
    _item("item_click_rate_7d", _click_rate, "positives an impression in 7 days, shrunk"),
    _item("item_trend", _trend, "log of the last hour's positives against the week's hourly mean"),
    _item("item_age", _age, "log(1 + days since the item was published); 0: not given"),
    _item("item_price", _price, "log(1 + price); 0: not given"),
    _item(
        "category_affinity",
        _affinity(lambda items: items.categories),
        "share of the user's history with the item's categories, mean over them",
    ),
    _item(
        "creator_affinity",
        _affinity(lambda items: items.creator),
        "share of the user's history by the item's creator",
    ),
    _item("item_known", _known, "1 if the item is in the item table"),
)

CATALOG: Final = FeatureSet((*_SEQUENCES, *_USER, *_ITEM), row=POLICY)
