"""
The catalog: every feature of the standard set, declared once.

To add one, add an entry with its computation; row layout, model input, TFRecord, parse spec, drift
statistic and documentation follow. That changes the fingerprint: rows and models of the old set go
on side by side with the new.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from features import item_features as item
from features import user_features as user
from features.declare import DAY_MS, Drift, Feature, FeatureSet, Level, declared_set
from features.item_features import TARGETS
from features.user_features import ATTRIBUTES, DAY, MONTH, POLICY, WEEK, WINDOWS
from schemas.events import EventType

__all__ = ["CATALOG", "RETIRED", "TARGETS", "describe", "feature_set"]

COUNTED: Final = (
    EventType.IMPRESSION,
    EventType.VIEW,
    EventType.CLICK,
    EventType.LIKE,
    EventType.DISLIKE,
    EventType.SHARE,
    EventType.CART,
    EventType.PURCHASE,
    EventType.RATING,
)
RATED: Final = (EventType.CLICK, EventType.LIKE, EventType.CART, EventType.PURCHASE)
RECENT: Final = (
    EventType.VIEW,
    EventType.CLICK,
    EventType.LIKE,
    EventType.CART,
    EventType.PURCHASE,
)


def describe(features: FeatureSet) -> list[dict[str, str]]:
    """
    One row a feature, for people.

    `missing`: what becomes of examples from before the feature, see `features.declare.missing`.
    """
    return [
        {
            "name": f.name,
            "level": str(f.level),
            "type": f.dtype if f.length == 1 else f"{f.dtype}[{f.length}]",
            "default": f"{f.default:g}",
            "missing": "default" if f.defaultable else "refused",
            "drift": str(f.drift),
            "meaning": f.doc,
        }
        for f in features.features
    ]


_SEQUENCES: Final = (
    Feature(
        name="history_items",
        level=Level.USER,
        dtype="int64",
        compute=user.history_items,
        length=POLICY.history_length,
        drift=Drift.HASHED,
        doc="hashes of the last items the user did something with, newest last; 0: none",
    ),
    Feature(
        name="history_types",
        level=Level.USER,
        dtype="int64",
        compute=user.history_types,
        length=POLICY.history_length,
        drift=Drift.CATEGORICAL,
        doc="event types of the history",
    ),
    Feature(
        name="history_ages",
        level=Level.USER,
        dtype="float32",
        compute=user.history_ages,
        length=POLICY.history_length,
        doc="log(1 + seconds since) of the history; 0: none",
    ),
    Feature(
        name="history_values",
        level=Level.USER,
        dtype="float32",
        compute=user.history_values,
        length=POLICY.history_length,
        revision=2,
        doc="sign(v) * log(1 + |v|) of the values (rating, price, ...) of the history; 0: none",
    ),
    *(user.recent(event_type) for event_type in RECENT),
)

_USER: Final = (
    *(user.count(event_type, w) for event_type in COUNTED for w in WINDOWS),
    *(user.rate(event_type, w) for event_type in RATED for w in WINDOWS),
    user.decayed("user_positives_decayed_1d", TARGETS, 1),
    user.decayed("user_positives_decayed_7d", TARGETS, 7),
    user.decayed("user_impressions_decayed_1d", [EventType.IMPRESSION], 1),
    user.decayed("user_impressions_decayed_7d", [EventType.IMPRESSION], 7),
    user.decayed("user_views_decayed_7d", [EventType.VIEW], 7),
    user.decayed("user_dislikes_decayed_7d", [EventType.DISLIKE], 7),
    user.scalar(
        "user_recency",
        lambda c: user.since(c.rows.last_seen_ms, c.now_ms, 1000),
        "log(1 + seconds since the user's newest event)",
    ),
    user.scalar(
        "user_tenure",
        lambda c: user.since(c.rows.first_seen_ms, c.now_ms, DAY_MS),
        "log(1 + days since the user's first event)",
    ),
    user.scalar(
        "session_length",
        user.SESSION_LENGTH,
        "log(1 + interactions since the last gap of 30 minutes)",
    ),
    user.scalar(
        "session_age",
        user.SESSION_AGE,
        "log(1 + seconds since the first interaction of the session); 0: no session",
    ),
    user.scalar(
        "session_items", user.SESSION_ITEMS, "log(1 + items that the session's interactions are on)"
    ),
    *(user.recency(event_type) for event_type in RECENT),
    user.scalar("hour_sin", user.sine(DAY_MS), "hour of the day (UTC), sine"),
    user.scalar("hour_cos", user.cosine(DAY_MS), "hour of the day (UTC), cosine"),
    user.scalar("weekday_sin", user.sine(7 * DAY_MS), "day of the week (UTC), sine"),
    user.scalar("weekday_cos", user.cosine(7 * DAY_MS), "day of the week (UTC), cosine"),
    *(user.attribute(name) for name in ATTRIBUTES),
    user.context("surface"),
    user.context("device"),
    user.context("country"),
)

# Each one object: affinities to the same tags share their work.
_CATEGORIES, _CREATOR = attrgetter("categories"), attrgetter("creator")

_ITEM: Final = (
    Feature(
        name="item",
        level=Level.ITEM,
        dtype="int64",
        compute=item.item_hash,
        drift=Drift.HASHED,
        doc="hash of the item",
    ),
    Feature(
        name="item_categories",
        level=Level.ITEM,
        dtype="int64",
        compute=item.categories,
        length=8,
        drift=Drift.HASHED,
        doc="hashes of the item's first 8 categories; 0: none",
    ),
    Feature(
        name="item_creator",
        level=Level.ITEM,
        dtype="int64",
        compute=item.creator,
        drift=Drift.HASHED,
        doc="hash of who made the item; 0: not given",
    ),
    *(item.popularity("impressions", [EventType.IMPRESSION], w) for w in (DAY, WEEK, MONTH)),
    *(item.popularity("clicks", [EventType.CLICK], w) for w in (DAY, WEEK, MONTH)),
    *(item.popularity("positives", TARGETS, w) for w in WINDOWS),
    *(item.click_rate(w) for w in (DAY, WEEK, MONTH)),
    item.scalar(
        "item_trend", item.trend, "log of the last hour's positives against the week's hour"
    ),
    item.scalar("item_age", item.age, "log(1 + days since the item was published); 0: not given"),
    item.scalar("item_price", item.price, "log(1 + price); 0: not given"),
    item.scalar(
        "category_affinity",
        item.affinity(_CATEGORIES),
        "share of the user's history with the item's categories, mean over them",
    ),
    item.scalar(
        "creator_affinity",
        item.affinity(_CREATOR),
        "share of the user's history by the item's creator",
    ),
    item.scalar(
        "category_positives",
        item.affinity(_CATEGORIES, TARGETS),
        "share of the positives in the user's history with the item's categories, mean over them",
    ),
    item.scalar(
        "creator_positives",
        item.affinity(_CREATOR, TARGETS),
        "share of the positives in the user's history by the item's creator",
    ),
    item.scalar("item_known", item.known, "1 if the catalogue has named the item"),
)

CATALOG: Final = FeatureSet((*_SEQUENCES, *_USER, *_ITEM), row=POLICY)

# What no new model takes, computed for those that still do: an entry that leaves the catalog, or
# whose computation changes, stays here until no live or previous version needs it.
RETIRED: Final[tuple[Feature, ...]] = ()


def feature_set(declaration: str) -> FeatureSet:
    """
    The set of a declaration, computed by the catalog's entries and the retired ones.

    Raises:
        Refused: an entry is not known in the form that is declared.
    """
    return declared_set(declaration, (*CATALOG.features, *RETIRED))
