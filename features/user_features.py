"""
User-level computations: from rows and requests to one value (or sequence) a request.

Everything is computed at the request's event time, so windows slide although no new event comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import tiles
from features.declare import DAY_MS, Array, Drift, Feature, Level, RowPolicy, UserContext
from features.hashing import hash_id
from features.interactions import last_by_type, sessions
from features.ragged import owners
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


class Window(NamedTuple):
    """How far back a window reaches: so many hours or days."""

    name: str
    hours: int = 0
    days: int = 0


HOUR: Final = Window("1h", hours=1)
DAY: Final = Window("24h", hours=24)
WEEK: Final = Window("7d", days=7)
MONTH: Final = Window("30d", days=30)


WINDOWS: Final = (HOUR, DAY, WEEK, MONTH)
RECENT: Final = 5  # items of each type that are told apart from the history


def _history(context: UserContext, column: str) -> Array:
    """The last entries of a column, newest last, [n, history_length]; 0 in front."""

    def places() -> NDArray[np.int64]:
        splits, length = context.rows.history_splits, POLICY.history_length
        at = splits[1:, None] + np.arange(-length, 0)
        return np.where(at >= splits[:-1, None], at, splits[-1])

    def newest() -> Array:
        values = getattr(context.rows, column)
        nothing = np.zeros(1, values.dtype)
        found: Array = np.concatenate([values, nothing])[context.shared("last entries", places)]
        return found

    return context.shared(column, newest)


def history_items(context: UserContext) -> Array:
    """Hashes of the history, [n, history_length]."""
    return _history(context, "history_item").view(np.int64)


def history_types(context: UserContext) -> Array:
    """Event types of the history, [n, history_length]."""
    return _history(context, "history_type").astype(np.int64)


def history_ages(context: UserContext) -> Array:
    """log(1 + seconds since), [n, history_length]."""
    times = _history(context, "history_time_ms")
    ages = np.maximum(context.now_ms[:, None] - times, 0) / 1000
    return np.where(times > 0, np.log1p(ages), 0).astype(np.float32)


def history_values(context: UserContext) -> Array:
    """Values of the history, sign(v) * log(1 + |v|), 0 for none, [n, history_length]."""
    given = _history(context, "history_value")
    values = np.clip(np.where(np.isnan(given), 0, given), -LARGEST, LARGEST)
    return np.asarray(np.copysign(np.log1p(np.abs(values)), values), np.float32)


def _sliding(context: UserContext) -> tiles.Sliding:
    rows = context.rows
    held = tiles.Tiles(rows.tile_splits, rows.tile_key, rows.tile_count)
    return context.shared("sliding", lambda: tiles.Sliding(held, context.now_ms))


def _window_table(context: UserContext, window: Window) -> Array:
    """Events of each type in the window, [n, types] float64; see `tiles.Sliding`."""
    hours, days = window.hours, window.days
    return context.shared(window, lambda: _sliding(context).window(hours=hours, days=days))


def count(event_type: EventType, window: Window) -> Feature:
    """Counts of one event type in a window."""

    def compute(context: UserContext) -> Array:
        table = context.shared(
            ("logarithms", window), lambda: np.log1p(_window_table(context, window))
        )
        return table[:, event_type]

    return Feature(
        name=f"user_{event_type.name.lower()}s_{window.name}",
        level=Level.USER,
        dtype="float32",
        compute=compute,
        revision=2,
        doc=f"log(1 + {event_type.name} events of the user in the last {window.name}); of the "
        "oldest bucket the share that the window covers",
    )


def rate(done: EventType, window: Window) -> Feature:
    """How often an impression is followed by something, shrunk towards the prior."""

    def compute(context: UserContext) -> Array:
        table = _window_table(context, window)
        many = table[:, done] + PRIOR_CLICKS
        of = table[:, EventType.IMPRESSION] + PRIOR_IMPRESSIONS
        return np.minimum(many / of, 1.0).astype(np.float32)

    return Feature(
        name=f"user_{done.name.lower()}_rate_{window.name}",
        level=Level.USER,
        dtype="float32",
        compute=compute,
        default=PRIOR_CLICKS / PRIOR_IMPRESSIONS,
        revision=2,
        doc=f"{done.name} events an impression in the last {window.name}, shrunk to 1 in 20",
    )


def decayed(name: str, types: Sequence[EventType], half_life_days: int) -> Feature:
    """Counts that fade: each event halves with every half-life since its day."""

    def compute(context: UserContext) -> Array:
        table = context.shared(
            ("decayed", half_life_days),
            lambda: _sliding(context).decayed(half_life_days * DAY_MS),
        )
        total: Array = np.log1p(table[:, list(types)].sum(axis=1)).astype(np.float32)
        return total

    return scalar(
        name,
        compute,
        f"log(1 + {', '.join(t.name for t in types)} events of 30 days, each halved for every "
        f"{half_life_days} days since)",
    )


def recent(event_type: EventType) -> Feature:
    """The last items of one type, from the history."""

    def compute(context: UserContext) -> Array:
        found = context.shared("by type", lambda: _ByType(context))
        return found.items[:, event_type].view(np.int64)

    return Feature(
        name=f"recent_{event_type.name.lower()}s",
        level=Level.USER,
        dtype="int64",
        compute=compute,
        length=RECENT,
        drift=Drift.HASHED,
        doc=f"hashes of the last {RECENT} {event_type.name} items of the history, newest last; "
        "0: none",
    )


def recency(event_type: EventType) -> Feature:
    """How long ago the history's newest event of a type is."""

    def compute(context: UserContext) -> Array:
        found = context.shared("by type", lambda: _ByType(context))
        return since(found.newest_ms[:, event_type], context.now_ms, 1000)

    return scalar(
        f"since_{event_type.name.lower()}",
        compute,
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


def since(time_ms: NDArray[np.int64], now_ms: NDArray[np.int64], unit_ms: int) -> Array:
    """log(1 + units since a time); 0 where there was none."""
    passed = np.maximum(now_ms - time_ms, 0) / unit_ms
    found: Array = np.where(time_ms > 0, np.log1p(passed), 0).astype(np.float32)
    return found


def _sessions(context: UserContext) -> NDArray[np.int64]:
    """Interactions since the last gap of 30 minutes, when the first was, and items, [n, 3]."""

    def compute() -> NDArray[np.int64]:
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
        return found

    return context.shared("sessions", compute)


def session_length(context: UserContext) -> Array:
    """Interactions since the last gap of 30 minutes, 0 if the newest is older than that."""
    length: Array = np.log1p(_sessions(context)[:, 0]).astype(np.float32)
    return length


def session_age(context: UserContext) -> Array:
    """Time since the session's first interaction, 0 without a session."""
    first_ms = _sessions(context)[:, 1]
    return since(np.where(first_ms <= context.now_ms, first_ms, 0), context.now_ms, 1000)


def session_items(context: UserContext) -> Array:
    """How many items the session is about."""
    distinct: Array = np.log1p(_sessions(context)[:, 2]).astype(np.float32)
    return distinct


def cycle(
    period_ms: int, wave: Callable[[NDArray[np.float64]], Array]
) -> Callable[[UserContext], Array]:
    """A sine or cosine of where in a period the request lies."""

    def compute(context: UserContext) -> Array:
        phase = (context.now_ms % period_ms) / period_ms
        return wave(2 * np.pi * phase).astype(np.float32)

    return compute


def attribute(name: str) -> Feature:
    """A static attribute of the user, as a hash."""
    hashed = np.uint64(hash_id(name))

    def compute(context: UserContext) -> Array:
        rows = context.rows
        whose = context.shared("profile owners", lambda: owners(rows.profile_splits))
        at = np.flatnonzero(rows.profile_name == hashed)
        found = np.zeros(len(rows), np.uint64)
        found[whose[at]] = rows.profile_value[at]
        return found.view(np.int64)

    return Feature(
        name=f"profile_{name}",
        level=Level.USER,
        dtype="int64",
        compute=compute,
        drift=Drift.CATEGORICAL,
        doc=f"hash of the user's static attribute {name!r}; 0: not given",
    )


def context(name: str, compute: Callable[[UserContext], Array]) -> Feature:
    """Something that the request itself says, as a hash."""
    return Feature(
        name=f"request_{name}",
        level=Level.USER,
        dtype="int64",
        compute=lambda context: compute(context).view(np.int64),
        drift=Drift.CATEGORICAL,
        doc=f"hash of the request's {name}; 0: not given",
    )


def scalar(name: str, compute: Callable[[UserContext], Array], doc: str) -> Feature:
    """One float32 a request."""
    return Feature(name=name, level=Level.USER, dtype="float32", compute=compute, doc=doc)
