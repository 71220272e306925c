"""
What the monitor counts: 32 frozen bins and one for the non-finite, a feature, in two user halves.

Counts are integers and additive: the counts of two parts of a window are those of the whole, in
any order, so a restart or another number of partitions gives the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.declare import Drift
from features.hashing import salted

BINS = 32
NON_FINITE = BINS  # the bin of NaN and infinity
HALVES_SALT = "drift-halves"

Counts = NDArray[np.int64]  # [stream, half, BINS + 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One watched column: a feature's newest value, the score, ..."""

    name: str
    kind: Drift


@dataclass(frozen=True, slots=True)
class Binning:
    """
    How one stream's values fall into bins; frozen with the reference.

    numeric: `edges` are the inner edges of equi-probable bins (float64, ascending, distinct).
    categorical: `top` are up to 31 values, the bin after the last is OTHER. hashed: neither.
    """

    kind: Drift
    edges: tuple[float, ...] = ()
    top: tuple[int, ...] = ()

    def bins_of(self, values: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Bin of each value, [n]."""
        match self.kind:
            case Drift.NUMERIC:
                number = values.astype(np.float64)
                found = np.searchsorted(np.asarray(self.edges), number, side="right")
                return np.where(np.isfinite(number), found, NON_FINITE).astype(np.int64)
            case Drift.CATEGORICAL:
                known = np.sort(np.asarray(self.top, np.int64))
                at = np.searchsorted(known, values)
                hit = at < len(known)
                hit[hit] = known[at[hit]] == values[hit]
                return np.where(hit, at, len(known)).astype(np.int64)
            case _:
                mixed = salted(values.astype(np.int64).view(np.uint64), "drift-bins")
                return (mixed % np.uint64(BINS)).astype(np.int64)


def choose_binning(kind: Drift, sample: NDArray[np.float64] | NDArray[np.int64]) -> Binning:
    """
    Bins for a stream from a sample of its values.

    >>> choose_binning(Drift.NUMERIC, np.array([0.0, 0.0, 0.0, 1.0])).edges
    (0.5,)
    """
    if kind == Drift.NUMERIC:
        finite = sample[np.isfinite(sample.astype(np.float64))].astype(np.float64)
        if len(finite) == 0:
            return Binning(kind)
        quantiles = np.quantile(finite, np.arange(1, BINS) / BINS, method="inverted_cdf")
        # An edge halfway to the next value keeps a value with much mass in a bin of its own.
        distinct = np.unique(finite)
        at = np.unique(np.searchsorted(distinct, quantiles))
        at = at[at < len(distinct) - 1]
        return Binning(kind, edges=tuple(((distinct[at] + distinct[at + 1]) / 2).tolist()))
    if kind == Drift.CATEGORICAL:
        values, counts = np.unique(sample, return_counts=True)
        order = np.lexsort((values, -counts))[: BINS - 1]
        return Binning(kind, top=tuple(int(v) for v in values[order]))
    return Binning(kind)


def halves(users: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Which half (0 or 1) each user hash belongs to, [n]."""
    return (salted(users, HALVES_SALT) >> np.uint64(63)).astype(np.int64)


def count(
    binnings: tuple[Binning, ...],
    columns: tuple[NDArray[np.float64] | NDArray[np.int64], ...],
    half: NDArray[np.int64],
) -> Counts:
    """Counts of n observations, [stream, half, bin]; `columns` holds [n] values a stream."""
    found = np.zeros((len(binnings), 2, BINS + 1), np.int64)
    for k, (binning, values) in enumerate(zip(binnings, columns, strict=True)):
        place = half * (BINS + 1) + binning.bins_of(values)
        found[k] = np.bincount(place, minlength=2 * (BINS + 1)).reshape(2, BINS + 1)
    return found
