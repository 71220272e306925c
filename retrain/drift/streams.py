"""
From wire records to what the monitor watches: features as served, the best score, and reactions.

A sequence feature is watched by its newest entry, an item feature on the first item of the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.declare import Drift, Feature, FeatureSet, Level
from features.hashing import hash_ids
from retrain.drift.cohorts import Answers, Reactions
from retrain.drift.counts import Stream
from retrain.drift.monitor import Column
from schemas.events import Arm, EventType, Status

STABLE = list(Arm).index(Arm.STABLE)
FALLBACK = list(Status).index(Status.FALLBACK)
ANSWERED = (list(Status).index(Status.OK), FALLBACK)

ANSWER_COLUMNS = (
    "request_id",
    "user_id",
    "event_time",
    "status",
    "items",
    "model_version",
    "arm",
    "stale",
    "fingerprint",
    "row_age_ms",
    "user_longs",
    "user_floats",
    "surface",
)
REACTION_COLUMNS = ("request_id", "event_time", "event_type")


def streams_of(features: FeatureSet) -> tuple[Stream, ...]:
    """Every watched feature of the set, in the order of `answers_of`'s columns, and the score."""
    watched = (
        Stream(name=f.name, kind=f.drift) for level in Level for f, _ in _watched(features, level)
    )
    return (*watched, Stream(name="score", kind=Drift.NUMERIC))


def answers_of(frame: pl.DataFrame, features: FeatureSet, surface: str | None) -> Answers:
    """
    Answers of the stable model on one surface (None: all) from decoded recommendations.

    Args:
        frame: ANSWER_COLUMNS of one partition, in log order.
    """
    kept = frame.filter(
        pl.col("status").is_in(ANSWERED)
        & ((pl.col("arm") == STABLE) | (pl.col("status") == FALLBACK))
        & (pl.lit(True) if surface is None else pl.col("surface") == surface)
    )
    longs = _matrix(kept["user_longs"], features.width(Level.USER, "int64"), np.int64)
    floats = _matrix(kept["user_floats"], features.width(Level.USER, "float32"), np.float32)
    first = kept["items"].list.first().struct.unnest()
    item_longs = _matrix(first["longs"], features.width(Level.ITEM, "int64"), np.int64)
    item_floats = _matrix(first["floats"], features.width(Level.ITEM, "float32"), np.float32)
    score = first["score"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    foreign = (kept["fingerprint"] != features.fingerprint).to_numpy()
    fallback = (kept["status"] == FALLBACK).to_numpy() | foreign
    return Answers(
        request_ids=kept["request_id"].to_list(),
        event_time_ms=kept["event_time"].to_numpy(),
        users=hash_ids(kept["user_id"].to_list()),
        version=kept["model_version"].cast(pl.Int64).to_numpy(),
        columns=(
            *_columns(features, Level.USER, longs, floats),
            *_columns(features, Level.ITEM, item_longs, item_floats),
            score,
        ),
        fallback=fallback,
        without_row=(kept["row_age_ms"] < 0).to_numpy(),
        stale=kept["stale"].to_numpy(),
    )


def reactions_of(frame: pl.DataFrame, targets: Sequence[EventType]) -> Reactions:
    """User events that name the request they react to, from decoded events in log order."""
    kept = frame.filter(pl.col("request_id").is_not_null())
    return Reactions(
        request_ids=kept["request_id"].to_list(),
        event_time_ms=kept["event_time"].to_numpy(),
        positive=kept["event_type"].is_in([int(t) for t in targets]).to_numpy(),
        impression=(kept["event_type"] == int(EventType.IMPRESSION)).to_numpy(),
    )


def _watched(features: FeatureSet, level: Level) -> list[tuple[Feature, int]]:
    """Watched features with the column of their newest entry in their packed matrix."""
    return [
        (f, features.slices(level, f.dtype)[f.name].stop - 1)
        for f in features.of(level)
        if f.drift != Drift.NONE
    ]


def _columns(
    features: FeatureSet, level: Level, longs: NDArray[np.int64], floats: NDArray[np.float32]
) -> list[Column]:
    found: list[Column] = []
    for f, column in _watched(features, level):
        values = longs[:, column] if f.dtype == "int64" else floats[:, column]
        numeric = f.drift == Drift.NUMERIC
        found.append(values.astype(np.float64) if numeric else values.astype(np.int64))
    return found


def _matrix(lists: pl.Series, width: int, dtype: type[np.int64] | type[np.float32]) -> Any:
    """
    Lists of one width as a matrix [n, width]. Where a list is missing or of another width (an
    answer without features): zeros, or NaN for floats, which the monitor counts as non-finite.
    """
    found = np.full((len(lists), width), 0 if dtype is np.int64 else np.nan, dtype)
    whole = (lists.list.len().fill_null(0) == width).to_numpy()
    if width and whole.any():
        found[whole] = lists.filter(pl.Series(whole)).explode().to_numpy().reshape(-1, width)
    return found
