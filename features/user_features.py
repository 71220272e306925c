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
from features.declare import Array, Drift, Feature, Level, RowPolicy, UserContext
from features.hashing import hash_id
from features.ragged import owners, spans
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


class Window(NamedTuple):
    """A window of whole buckets."""

    name: str
    hours: int = 0
    days: int = 0


HOUR: Final = Window("1h", hours=1)
DAY: Final = Window("24h", hours=24)
WEEK: Final = Window("7d", days=7)
MONTH: Final = Window("30d", days=30)


def _newest(splits: NDArray[np.int64], values: Array, default: float = 0) -> Array:
    """The last entries of each row, newest last, [n, history_length]; `default` in front."""
    length = POLICY.history_length
    kept = np.minimum(np.diff(splits), length)
    found = np.full((len(kept), length), default, values.dtype)
    rows = np.repeat(np.arange(len(kept)), kept)
    columns = spans(length - kept, kept)
    found[rows, columns] = values[spans(splits[1:] - kept, kept)]
    return found


def history_items(context: UserContext) -> Array:
    """Hashes of the history, [n, history_length]."""
    rows = context.rows
    return _newest(rows.history_splits, rows.history_item).view(np.int64)


def history_types(context: UserContext) -> Array:
    """Event types of the history, [n, history_length]."""
    rows = context.rows
    return _newest(rows.history_splits, rows.history_type).astype(np.int64)


def history_ages(context: UserContext) -> Array:
    """log(1 + seconds since), [n, history_length]."""
    rows = context.rows
    times = _newest(rows.history_splits, rows.history_time_ms)
    ages = np.maximum(context.now_ms[:, None] - times, 0) / 1000
    return np.where(times > 0, np.log1p(ages), 0).astype(np.float32)


def history_values(context: UserContext) -> Array:
    """Values of the history, 0 for none, [n, history_length]."""
    rows = context.rows
    return np.nan_to_num(_newest(rows.history_splits, rows.history_value))


def _window_count(
    context: UserContext, types: Sequence[EventType], window: Window
) -> NDArray[np.int64]:
    return tiles.window_counts(
        context.rows, types, context.now_ms, hours=window.hours, days=window.days
    )


def count(event_type: EventType, window: Window) -> Feature:
    """Counts of one event type in a window."""

    def compute(context: UserContext) -> Array:
        return np.log1p(_window_count(context, [event_type], window)).astype(np.float32)

    return Feature(
        name=f"user_{event_type.name.lower()}s_{window.name}",
        level=Level.USER,
        dtype="float32",
        compute=compute,
        doc=f"log(1 + {event_type.name} events of the user in the last {window.name})",
    )


def rate(name: str, done: EventType, window: Window) -> Feature:
    """How often an impression is followed by something, shrunk towards the prior."""

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


def since(time_ms: NDArray[np.int64], now_ms: NDArray[np.int64], unit_ms: int) -> Array:
    """log(1 + units since a time); 0 where there was none."""
    passed = np.maximum(now_ms - time_ms, 0) / unit_ms
    found: Array = np.where(time_ms > 0, np.log1p(passed), 0).astype(np.float32)
    return found


def session_length(context: UserContext) -> Array:
    """Interactions since the last gap of 30 minutes, 0 if the newest is older than that."""
    times = _newest(context.rows.history_splits, context.rows.history_time_ms)
    # A later neighbour of the newest entry is the request itself.
    later = np.concatenate([times[:, 1:], context.now_ms[:, None]], axis=1)
    near = (times > 0) & (later - times <= SESSION_GAP_MS)
    unbroken = np.cumprod(near[:, ::-1], axis=1)
    length: Array = np.log1p(unbroken.sum(axis=1)).astype(np.float32)
    return length


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
