"""
User-level computations: from rows and requests to one value (or sequence) a request.

Everything is computed at the request's event time, so windows slide although no new event comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import tiles
from features.declare import (
    DAY_MS,
    Array,
    Drift,
    Feature,
    Level,
    RowPolicy,
    Together,
    UserContext,
)
from features.hashing import hash_id
from features.interactions import last_by_type, newest, sessions
from features.ragged import owners
from features.tiles import Window
from schemas.events import EventType

# Static user attributes that rows keep.
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

SESSION_GAP_MS: Final = 30 * 60_000
# Pseudo-counts of a rate's prior: 1 click in 20 impressions.
PRIOR_CLICKS, PRIOR_IMPRESSIONS = 1.0, 20.0

LARGEST: Final = np.finfo(np.float32).max  # for what is infinite


HOUR: Final = Window("1h", hours=1)
DAY: Final = Window("24h", hours=24)
WEEK: Final = Window("7d", days=7)
MONTH: Final = Window("30d", days=30)


WINDOWS: Final = (HOUR, DAY, WEEK, MONTH)
RECENT: Final = 5  # items of each type that are told apart from the history


class _Newest:
    """Of each history, newest last and 0 in front: see `interactions.newest`."""

    def __init__(self, context: UserContext) -> None:
        rows, shape = context.rows, (len(context.now_ms), POLICY.history_length)
        told, self.values = np.zeros((3, *shape), np.int64), np.zeros(shape, np.float32)
        newest(
            rows.history_splits,
            rows.history_item,
            rows.history_type,
            rows.history_time_ms,
            rows.history_value,
            told,
            self.values,
        )
        self.items, self.types, self.times_ms = told


def _newest(context: UserContext) -> _Newest:
    return context.shared("newest", lambda: _Newest(context))


def history_items(context: UserContext) -> Array:
    """Hashes of the history, [n, history_length]."""
    return _newest(context).items


def history_types(context: UserContext) -> Array:
    """Event types of the history, [n, history_length]."""
    return _newest(context).types


def history_ages(context: UserContext) -> Array:
    """log(1 + seconds since), [n, history_length]."""
    return since(_newest(context).times_ms, context.now_ms[:, None], 1000)


def history_values(context: UserContext) -> Array:
    """Values of the history, sign(v) * log(1 + |v|), 0 for none, [n, history_length]."""
    values = _newest(context).values
    return np.asarray(np.copysign(np.log1p(np.abs(values)), values))


def _sliding(context: UserContext) -> tiles.Sliding:
    rows = context.rows
    held = tiles.Tiles(rows.tile_splits, rows.tile_key, rows.tile_count)
    return context.shared("sliding", lambda: tiles.Sliding(held, context.now_ms))


class _InWindow(NamedTuple):
    """Events of a type in a window."""

    event_type: EventType
    window: Window


def _in_windows(context: UserContext, keys: tuple[_InWindow, ...]) -> Array:
    """How many there are, [n, m] float64; see `tiles.Sliding`."""
    windows, at = _places(keys)
    table = context.shared(windows, lambda: _sliding(context).windows(windows))
    found: Array = table.reshape(len(table), -1)[:, at]
    return found


@lru_cache
def _places(keys: tuple[_InWindow, ...]) -> tuple[tuple[Window, ...], NDArray[np.int64]]:
    """The windows, and where a table of all types in these has what is asked for."""
    windows = tuple(dict.fromkeys(one.window for one in keys))
    at = [windows.index(one.window) * tiles.TYPES + one.event_type for one in keys]
    return windows, np.array(at)


def _counts(context: UserContext, keys: tuple[_InWindow, ...]) -> Array:
    return np.log1p(_in_windows(context, keys))


def count(event_type: EventType, window: Window) -> Feature:
    """Counts of one event type in a window."""
    return Feature(
        name=f"user_{event_type.name.lower()}s_{window.name}",
        level=Level.USER,
        dtype="float32",
        compute=Together(_counts, _InWindow(event_type, window)),
        revision=2,
        doc=f"log(1 + {event_type.name} events of the user in the last {window.name}); of the "
        "oldest bucket the share that the window covers",
    )


def _rates(context: UserContext, keys: tuple[_InWindow, ...]) -> Array:
    shown = tuple(_InWindow(EventType.IMPRESSION, one.window) for one in keys)
    return shrunk(_in_windows(context, keys + shown))


def shrunk(counts: Array) -> Array:
    """
    Rates, shrunk towards the prior: [n, m] of [n, 2 m] counts, first of what followed impressions
    and then of the impressions.

    >>> shrunk(np.array([[0, 31, 0, 20]])).tolist()
    [[0.05, 0.8]]
    """
    m = counts.shape[1] // 2
    many, of = counts[:, :m] + PRIOR_CLICKS, counts[:, m:] + PRIOR_IMPRESSIONS
    rates: Array = np.minimum(many / of, 1.0)
    return rates


def rate(done: EventType, window: Window) -> Feature:
    """How often an impression is followed by something, shrunk towards the prior."""
    return Feature(
        name=f"user_{done.name.lower()}_rate_{window.name}",
        level=Level.USER,
        dtype="float32",
        compute=Together(_rates, _InWindow(done, window)),
        default=PRIOR_CLICKS / PRIOR_IMPRESSIONS,
        revision=2,
        doc=f"{done.name} events an impression in the last {window.name}, shrunk to 1 in 20",
    )


class _Decayed(NamedTuple):
    """Events of some types, that fade."""

    types: tuple[EventType, ...]
    half_life_days: int


def _decayed(context: UserContext, half_life_days: int) -> NDArray[np.float64]:
    """Events of every type, [n, types]; see `tiles.Sliding`."""
    return context.shared(
        ("decayed", half_life_days), lambda: _sliding(context).decayed(half_life_days * DAY_MS)
    )


def _fading(context: UserContext, keys: tuple[_Decayed, ...]) -> Array:
    found = np.empty((len(context.now_ms), len(keys)))
    for at, (types, days) in enumerate(keys):
        _decayed(context, days)[:, types].sum(axis=1, out=found[:, at])
    return np.log1p(found)


def decayed(name: str, types: Sequence[EventType], half_life_days: int) -> Feature:
    """Counts that fade: each event halves with every half-life since its day."""
    return scalar(
        name,
        Together(_fading, _Decayed(tuple(types), half_life_days)),
        f"log(1 + {', '.join(t.name for t in types)} events of 30 days, each halved for every "
        f"{half_life_days} days since)",
    )


def _recent(context: UserContext, keys: tuple[EventType, ...]) -> Array:
    items: Array = _by_type(context).items[:, keys]
    return items.reshape(len(items), -1).view(np.int64)


def recent(event_type: EventType) -> Feature:
    """The last items of one type, from the history."""
    return Feature(
        name=f"recent_{event_type.name.lower()}s",
        level=Level.USER,
        dtype="int64",
        compute=Together(_recent, event_type),
        length=RECENT,
        drift=Drift.HASHED,
        doc=f"hashes of the last {RECENT} {event_type.name} items of the history, newest last; "
        "0: none",
    )


def _recencies(context: UserContext, keys: tuple[EventType, ...]) -> Array:
    return since(_by_type(context).newest_ms[:, keys], context.now_ms[:, None], 1000)


def recency(event_type: EventType) -> Feature:
    """How long ago the history's newest event of a type is."""
    return scalar(
        f"since_{event_type.name.lower()}",
        Together(_recencies, event_type),
        f"log(1 + seconds since the newest {event_type.name} of the history); 0: none",
    )


class _ByType:
    """The history apart by event type: the last items [n, TYPES, RECENT] and their newest time."""

    def __init__(self, context: UserContext) -> None:
        rows = context.rows
        self.items = np.zeros((len(rows), tiles.TYPES, RECENT), np.uint64)
        self.newest_ms = np.zeros((len(rows), tiles.TYPES), np.int64)
        last_by_type(
            rows.history_splits,
            rows.history_type,
            rows.history_item,
            rows.history_time_ms,
            self.items,
            self.newest_ms,
        )


def _by_type(context: UserContext) -> _ByType:
    return context.shared("by type", lambda: _ByType(context))


def since(time_ms: NDArray[np.int64], now_ms: NDArray[np.int64], unit_ms: int) -> Array:
    """log(1 + units since a time); 0 where there was none."""
    passed = np.maximum(now_ms - time_ms, 0) / unit_ms
    found: Array = np.where(time_ms > 0, np.log1p(passed), 0).astype(np.float32)
    return found


def _sessions(context: UserContext, keys: tuple[int, ...]) -> Array:
    """Of length, age and items of the session, which have the keys 0, 1 and 2."""
    rows, found = context.rows, np.empty((len(context.now_ms), 3), np.int64)
    sessions(
        rows.history_splits,
        rows.history_item,
        rows.history_time_ms,
        context.now_ms,
        POLICY.history_length,
        SESSION_GAP_MS,
        found,
    )
    told = np.log1p(found)
    first_ms, now_ms = found[:, 1], context.now_ms
    told[:, 1] = since(np.where(first_ms <= now_ms, first_ms, 0), now_ms, 1000)
    wanted: Array = told[:, keys]
    return wanted


# Interactions since the last gap of 30 minutes, none if the newest is older than that; since the
# first of these; how many items they are about.
SESSION_LENGTH, SESSION_AGE, SESSION_ITEMS = (Together(_sessions, key) for key in range(3))


class _Wave(NamedTuple):
    """Of where in a period the request lies."""

    period_ms: int
    quarter: bool  # whether it is the cosine


def _waves(context: UserContext, keys: tuple[_Wave, ...]) -> Array:
    period_ms, quarter = np.array(keys).T
    phase = 2 * np.pi * (context.now_ms[:, None] % period_ms / period_ms)
    waves: Array = np.where(quarter, np.cos(phase), np.sin(phase))
    return waves


def sine(period_ms: int) -> Together:
    """Of where in a period the request lies."""
    return Together(_waves, _Wave(period_ms, quarter=False))


def cosine(period_ms: int) -> Together:
    """Of where in a period the request lies."""
    return Together(_waves, _Wave(period_ms, quarter=True))


def _attributes(context: UserContext, keys: tuple[int, ...]) -> Array:
    rows, found = context.rows, np.zeros((len(context.now_ms), len(keys)), np.uint64)
    at, which = np.nonzero(rows.profile_name[:, None] == np.array(keys, np.uint64))
    found[owners(rows.profile_splits)[at], which] = rows.profile_value[at]
    return found.view(np.int64)


def attribute(name: str) -> Feature:
    """A static attribute of the user, as a hash."""
    return Feature(
        name=f"profile_{name}",
        level=Level.USER,
        dtype="int64",
        compute=Together(_attributes, hash_id(name)),
        drift=Drift.CATEGORICAL,
        doc=f"hash of the user's static attribute {name!r}; 0: not given",
    )


def _of_request(context: UserContext, keys: tuple[str, ...]) -> Array:
    found: Array = np.stack([getattr(context, name) for name in keys], axis=1)
    return found.view(np.int64)


def context(name: Literal["surface", "device", "country"]) -> Feature:
    """Something that the request itself says, as a hash."""
    return Feature(
        name=f"request_{name}",
        level=Level.USER,
        dtype="int64",
        compute=Together(_of_request, name),
        drift=Drift.CATEGORICAL,
        doc=f"hash of the request's {name}; 0: not given",
    )


def scalar(name: str, compute: Callable[[UserContext], Array], doc: str) -> Feature:
    """One float32 a request."""
    return Feature(name=name, level=Level.USER, dtype="float32", compute=compute, doc=doc)
