"""
Assembly: rows, items and requests become model input. One function for serving, backfill,
training and audit; it reads no clock and no store.

Features lie packed in two matrices a level, int64 and float32, in the catalog's order; `named`
gives the views by feature name that the model's signature and the TFRecords use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from features.declare import Array, Columns, FeatureSet, ItemContext, Level, UserContext
from schemas.errors import Refused


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


class ItemsShown(Protocol):
    """As `ItemFeatures`, there or not yet: not every model looks at them."""

    @property
    def longs(self) -> NDArray[np.int64]: ...

    @property
    def floats(self) -> NDArray[np.float32]: ...

    def __len__(self) -> int: ...


class LaterItems:
    """Features of m candidates, assembled when they are first looked at. For one thread."""

    def __init__(self, count: int, assemble: Callable[[], ItemFeatures]) -> None:
        self._count, self._assemble = count, assemble

    @cached_property
    def _found(self) -> ItemFeatures:
        return self._assemble()

    @property
    def longs(self) -> NDArray[np.int64]:
        return self._found.longs

    @property
    def floats(self) -> NDArray[np.float32]:
        return self._found.floats

    def __len__(self) -> int:
        return self._count


def assemble_users(features: FeatureSet, context: UserContext) -> UserFeatures:
    """User-level features of every request, [n]."""
    n = len(context.now_ms)
    return UserFeatures(
        longs=_packed(features.columns(Level.USER, "int64"), context, n, np.int64),
        floats=_packed(features.columns(Level.USER, "float32"), context, n, np.float32),
    )


def assemble_items(features: FeatureSet, context: ItemContext) -> ItemFeatures:
    """Item-level features of every candidate, [m]."""
    m = len(context.hashes)
    return ItemFeatures(
        longs=_packed(features.columns(Level.ITEM, "int64"), context, m, np.int64),
        floats=_packed(features.columns(Level.ITEM, "float32"), context, m, np.float32),
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


def packed_users(features: FeatureSet, given: Mapping[str, Array]) -> UserFeatures:
    """The user features of n requests by name as `named` tells them, packed again."""
    longs, floats = (
        np.concatenate(
            [
                given[name].reshape(len(given[name]), -1)
                for name in features.slices(Level.USER, kind)
            ],
            axis=1,
        )
        for kind in ("int64", "float32")
    )
    return UserFeatures(longs=longs, floats=floats)


class Narrowing:
    """
    The part of one set's packed features that a model of another set takes.

    So that a version can be asked about what was kept for its successor's set.
    """

    def __init__(self, source: FeatureSet, target: FeatureSet) -> None:
        """
        Raises:
            Refused: the target has a feature that the source lacks, or declares otherwise.
        """
        known = set(source.features)
        lacking = [f.name for f in target.features if f not in known]
        if lacking:
            raise Refused(
                f"features of set {source.fingerprint} do not hold what a model of "
                f"{target.fingerprint} takes: {', '.join(lacking)}"
            )
        self._columns = {
            (level, dtype): _columns_of(source, target, level, dtype)
            for level in Level
            for dtype in ("int64", "float32")
        }

    def users(self, features: UserFeatures) -> UserFeatures:
        """[n] the target's user features."""
        return UserFeatures(
            longs=features.longs[:, self._columns[Level.USER, "int64"]],
            floats=features.floats[:, self._columns[Level.USER, "float32"]],
        )

    def items(self, features: ItemsShown) -> ItemFeatures:
        """[m] the target's item features."""
        return ItemFeatures(
            longs=features.longs[:, self._columns[Level.ITEM, "int64"]],
            floats=features.floats[:, self._columns[Level.ITEM, "float32"]],
        )


def _columns_of(
    source: FeatureSet, target: FeatureSet, level: Level, dtype: str
) -> NDArray[np.int64]:
    places = source.slices(level, dtype)
    found = [np.r_[places[f.name]] for f in target.of(level, dtype)]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _packed(
    columns: tuple[Columns, ...],
    context: UserContext | ItemContext,
    n: int,
    dtype: type[np.int64] | type[np.float32],
) -> Array:
    packed = np.empty((n, sum(one.width for one in columns)), dtype)
    at = 0
    for one in columns if n else ():
        values = np.asarray(one.compute(context)).reshape(n, -1)
        if values.shape[1] != one.width:
            raise ValueError(
                f"{one.names}: {one.width} values a row declared, got {values.shape[1]}"
            )
        packed[:, at : at + one.width] = values
        at += one.width
    return packed
