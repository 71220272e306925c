"""Which decoded user-events are fit to be folded, judged as columns. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.text_columns import texts_of
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
    if not _suspicious(events):
        return ()
    checked = events.frame.lazy().with_columns(
        users=pl.lit(events.users),
        latest=pl.lit(pl.Series(events.timestamps_ms)) + events.future_ms,
    )
    checked = checked.select(_first_failed())
    failed = checked.collect()["failed"].to_numpy()
    return tuple(
        (row, Rejected(CHECKS[code].reason, _detail(events, row, CHECKS[code].column)))
        for row, code in zip(
            np.flatnonzero(failed >= 0).tolist(), failed[failed >= 0].tolist(), strict=True
        )
    )


def _suspicious(events: Candidates) -> bool:
    """
    Whether any event is bad, at less cost than saying which.

    Nearly every batch is clean, and a polars query costs 0.1 ms for each check, the half of a
    small batch's time.
    """
    frame = events.frame
    time, value = frame["event_time"].to_numpy(), frame["value"].to_numpy()
    return (
        events.users.null_count() > 0
        or not (frame["user_id"] == events.users).all()
        or bool(((time < FIRST_MS) | (time > LAST_MS)).any())
        or bool((time > events.timestamps_ms + events.future_ms).any())
        or int(np.isfinite(value).sum()) != len(value) - frame["value"].null_count()
        or any(_odd_lengths(frame[name]) for name in ("user_id", "event_id", "item_id"))
    )


def _odd_lengths(column: pl.Series) -> bool:
    """Whether a text is empty or too long."""
    texts = texts_of(column)
    lengths = texts.lengths if texts.given is None else texts.lengths[texts.given]
    return bool(len(lengths)) and not 0 < lengths.min() <= lengths.max() <= MAX_ID_BYTES


class Check(NamedTuple):
    """What is wrong with an event where `failed` is true; null counts as fine."""

    reason: Reason
    column: str
    failed: pl.Expr


def _too_long(column: str) -> Check:
    return Check(Reason.TOO_LARGE, column, pl.col(column).str.len_bytes() > MAX_ID_BYTES)


_TIME = pl.col("event_time")
CHECKS: Final = (
    Check(Reason.MISSING_FIELD, "user_id", pl.col("user_id") == ""),
    Check(Reason.KEY_MISMATCH, "user_id", pl.col("user_id").ne_missing(pl.col("users"))),
    Check(Reason.MISSING_FIELD, "event_id", pl.col("event_id") == ""),
    Check(Reason.MISSING_FIELD, "item_id", pl.col("item_id") == ""),
    Check(Reason.OUT_OF_RANGE, "event_time", (_TIME < FIRST_MS) | (_TIME > LAST_MS)),
    Check(Reason.IN_FUTURE, "event_time", pl.col("latest") < _TIME),
    Check(Reason.OUT_OF_RANGE, "value", ~pl.col("value").is_finite()),
    _too_long("user_id"),
    _too_long("item_id"),
    _too_long("event_id"),
)


def _first_failed() -> pl.Expr:
    """Index of the first check that an event fails; -1: none."""
    found = pl.lit(-1, pl.Int8)
    for code, check in reversed(list(enumerate(CHECKS))):
        found = pl.when(check.failed).then(pl.lit(code, pl.Int8)).otherwise(found)
    return found.alias("failed")


def _detail(events: Candidates, row: int, column: str) -> str:
    found: Any = events.frame[column][row]
    if isinstance(found, str):
        key = events.users[row]
        shown = found if len(found) <= 40 else f"{found[:40]}... of {len(found)} characters"
        return f"{column} is {shown!r}" + (f", key is {key!r}" if column == "user_id" else "")
    if isinstance(found, float) and not math.isfinite(found):
        return f"{column} is {found}"
    return f"{column} is {found}, the record's timestamp {int(events.timestamps_ms[row])}"
