"""Which decoded user-events are fit to be folded, judged as columns. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.errors import Reason, Rejected

MAX_ID_BYTES = 512  # of a user's, an item's or an event's id
# The bounds of an event's time: tiles count hours since 1970, and 0 means "no event".
FIRST_MS = 1
LAST_MS = 4_102_444_800_000  # 2100-01-01


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """n decoded events beside what Kafka says of them."""

    frame: pl.DataFrame  # [n] columns of UserEvent
    users: pl.Series  # [n] the record's key as text; null: not UTF-8
    timestamps_ms: NDArray[np.int64]  # [n]
    future_ms: int  # an event may be this much later than its record


def rejections(events: Candidates) -> tuple[tuple[int, Rejected], ...]:
    """
    The events that may not be folded, each with the first reason found, by row of the frame.
    """
    bad: dict[int, Rejected] = {}
    for reason, mask, column in _checks(events):
        if mask.any():
            for row in np.flatnonzero(mask.to_numpy()).tolist():
                bad.setdefault(row, Rejected(reason, _detail(events, row, column)))
    return tuple(sorted(bad.items()))


def _checks(events: Candidates) -> list[tuple[Reason, pl.Series, str]]:
    frame = events.frame
    time = frame["event_time"]
    latest = pl.Series(events.timestamps_ms + events.future_ms)
    value = frame["value"]
    checks = [
        (Reason.MISSING_FIELD, frame["user_id"] == "", "user_id"),
        (Reason.KEY_MISMATCH, frame["user_id"].ne_missing(events.users), "user_id"),
        (Reason.MISSING_FIELD, frame["event_id"] == "", "event_id"),
        (Reason.MISSING_FIELD, (frame["item_id"] == "").fill_null(value=False), "item_id"),
        (Reason.OUT_OF_RANGE, (time < FIRST_MS) | (time > LAST_MS), "event_time"),
        (Reason.IN_FUTURE, time > latest, "event_time"),
        (Reason.OUT_OF_RANGE, (~value.is_finite()).fill_null(value=False), "value"),
    ]
    for column in ("user_id", "item_id", "event_id"):
        long = (frame[column].str.len_bytes() > MAX_ID_BYTES).fill_null(value=False)
        checks.append((Reason.TOO_LARGE, long, column))
    return checks


def _detail(events: Candidates, row: int, column: str) -> str:
    found: Any = events.frame[column][row]
    if isinstance(found, str):
        key = events.users[row]
        shown = found if len(found) <= 40 else f"{found[:40]}... of {len(found)} characters"
        return f"{column} is {shown!r}" + (f", key is {key!r}" if column == "user_id" else "")
    if isinstance(found, float) and not math.isfinite(found):
        return f"{column} is {found}"
    return f"{column} is {found}, the record's timestamp {int(events.timestamps_ms[row])}"
