"""
Assembly: rows, items and requests become model input. One function for serving, backfill,
training and audit; it reads no clock and no store.

Features lie packed in two matrices a level, int64 and float32, in the catalog's order; `named`
gives the views by feature name that the model's signature and the TFRecords use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.declare import Array, Feature, FeatureSet, ItemContext, Level, UserContext


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFeatures:
    """Features of n requests: `longs` [n, wide_l] int64, `floats` [n, wide_f] float32."""

    longs: NDArray[np.int64]
    floats: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.longs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFeatures:
    """Features of m candidates: `longs` [m, wide_l] int64, `floats` [m, wide_f] float32."""

    longs: NDArray[np.int64]
    floats: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.longs)


def assemble_users(features: FeatureSet, context: UserContext) -> UserFeatures:
    """User-level features of every request, [n]."""
    n = len(context.now_ms)
    return UserFeatures(
        longs=_packed(features.of(Level.USER, "int64"), context, n, np.int64),
        floats=_packed(features.of(Level.USER, "float32"), context, n, np.float32),
    )


def assemble_items(features: FeatureSet, context: ItemContext) -> ItemFeatures:
    """Item-level features of every candidate, [m]."""
    m = len(context.hashes)
    return ItemFeatures(
        longs=_packed(features.of(Level.ITEM, "int64"), context, m, np.int64),
        floats=_packed(features.of(Level.ITEM, "float32"), context, m, np.float32),
    )


def named(
    features: FeatureSet, level: Level, longs: NDArray[np.int64], floats: NDArray[np.float32]
) -> dict[str, Array]:
    """
    Views of the packed matrices by feature name: [n] for scalars, [n, length] for sequences.
    """
    found: dict[str, Array] = {}
    for dtype, matrix in (("int64", longs), ("float32", floats)):
        wide = features.width(level, dtype)
        if matrix.ndim != 2 or matrix.shape[1] != wide:
            raise ValueError(f"{level} {dtype} features are {wide} wide, got {matrix.shape}")
        for name, part in features.slices(level, dtype).items():
            view = matrix[:, part]
            found[name] = view[:, 0] if view.shape[1] == 1 else view
    return found


def _packed(
    declared: tuple[Feature, ...],
    context: UserContext | ItemContext,
    n: int,
    dtype: type[np.int64] | type[np.float32],
) -> Array:
    packed = np.empty((n, sum(f.length for f in declared)), dtype)
    at = 0
    for f in declared if n else ():
        values = np.asarray(f.compute(context)).reshape(n, -1)
        if values.shape[1] != f.length:
            raise ValueError(f"{f.name}: {f.length} values a row declared, got {values.shape[1]}")
        packed[:, at : at + f.length] = values
        at += f.length
    return packed
