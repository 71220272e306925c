"""Which declared feature plays which part in the network. Pure: read by training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.declare import Drift, Feature, FeatureSet, Level
from inference.samples import ITEM

HISTORY_ITEMS = "history_items"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Names of features by what the network does with them."""

    history_types: tuple[str, ...]  # [batch, length] small integers
    history_numbers: tuple[str, ...]  # [batch, length] floats
    hashed: tuple[str, ...]  # user-level int64: attributes, device, surface, ...
    numbers: tuple[str, ...]  # user-level float32
    content: tuple[str, ...]  # item-level int64: categories, creator
    history_length: int


def roles_of(features: FeatureSet) -> Roles:
    """
    The roles by level, dtype and length: a new feature of a known kind needs no change here.

    Raises:
        ValueError: there is no history to encode.
    """
    user = {f.name: f for f in features.of(Level.USER)}
    if HISTORY_ITEMS not in user:
        raise ValueError(f"the feature set has no {HISTORY_ITEMS}")
    length = user[HISTORY_ITEMS].length

    def named(level: Level, dtype: str, *, history: bool) -> tuple[str, ...]:
        return tuple(
            f.name
            for f in features.of(level, dtype)
            if f.name != HISTORY_ITEMS and _is_history(f, length) == history
        )

    return Roles(
        history_types=named(Level.USER, "int64", history=True),
        history_numbers=named(Level.USER, "float32", history=True),
        hashed=named(Level.USER, "int64", history=False),
        numbers=named(Level.USER, "float32", history=False),
        content=tuple(
            f.name
            for f in features.of(Level.ITEM, "int64")
            if f.name != ITEM  # the vocabulary's business, not content
            and f.drift in (Drift.HASHED, Drift.CATEGORICAL)
        ),
        history_length=length,
    )


def history_items(features: FeatureSet, longs: NDArray[np.int64]) -> NDArray[np.uint64]:
    """
    The item hashes of each row's history, [n, length]; 0 pads.

    Args:
        longs: [n, wide] packed int64 user features.
    """
    part = features.slices(Level.USER, "int64")[HISTORY_ITEMS]
    return np.ascontiguousarray(longs[:, part]).view(np.uint64)


def _is_history(feature: Feature, length: int) -> bool:
    return feature.name.startswith("history_") and feature.length == length
