"""
The decision rule: a chi-square test against a tolerance, turned into evidence that accumulates.

A window is compared with its reference by Pearson's two-sample X2. What users are like (clusters)
inflates X2 by a dispersion, measured between the two user halves inside the reference; how far
ordinary windows lie from one another gives the tolerance. The p-value of "the distance is within
the tolerance" is a noncentral chi-square tail; it becomes an e-value (Vovk and Wang 2021), and
e-values accumulate in a Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo 2022): an alarm at
N has an average run length of at least N windows without change, over all streams together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ncx2

from retrain.drift.counts import Counts

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorPolicy:
    """Numbers of the decision rule. Windows per false alarm at most one in `act` (or `warn`)."""

    tolerance: float = 0.05  # the chi-distance nobody cares about
    tolerance_times_rms: float = 4.0
    warn: float = 168.0  # windows
    act: float = 2000.0
    warn_windows: int = 2  # fewest windows whose evidence can add up to a warning
    act_windows: int = 3
    least_effective: float = 200.0  # smaller windows are merged forward, not tested

    def __post_init__(self) -> None:
        if not 0 < self.warn <= self.act:
            raise ValueError(f"0 < warn <= act expected, got {self.warn} and {self.act}")


@dataclass(frozen=True, slots=True)
class Baseline:
    """
    What a frozen reference says of each stream; [stream] float64 but `counts`.

    `stable` is False for a stream whose reference itself wanders beyond its tolerance: it is shown,
    and kept out of the decision.
    """

    counts: Counts
    dispersion: Vector
    tolerance: Vector
    stable: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One window against the baseline; [stream] float64."""

    x2: Vector
    distance: Vector  # unbiased chi-distance, at least 0
    p: Vector
    effective: Vector  # effective sample size


def pearson(a: Counts, b: Counts) -> tuple[Vector, Vector]:
    """
    Two-sample Pearson X2 and its degrees of freedom for each stream.

    Args:
        a: counts [stream, bin]. b: the same.

    >>> x2, freedom = pearson(np.array([[50, 50]]), np.array([[100, 100]]))
    >>> float(x2[0]), float(freedom[0])
    (0.0, 1.0)
    """
    n = a.sum(axis=-1, keepdims=True).astype(np.float64)
    m = b.sum(axis=-1, keepdims=True).astype(np.float64)
    both = (a + b).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (np.sqrt(m / n) * a - np.sqrt(n / m) * b) ** 2 / both
    x2 = np.where(both > 0, terms, 0.0)
    usable = (n > 0) & (m > 0)
    freedom = np.maximum((both > 0).sum(axis=-1) - 1, 0).astype(np.float64)
    return np.where(usable, x2, 0.0).sum(axis=-1), freedom


def baseline(windows: NDArray[np.int64], policy: DetectorPolicy) -> Baseline:
    """
    What ordinary windows look like.

    Args:
        windows: counts [window, stream, half, bin] of the reference, at least 3 windows.

    Raises:
        ValueError: fewer than 3 windows: their scatter cannot be estimated.
    """
    if len(windows) < 3:
        raise ValueError(f"a reference needs at least 3 windows, got {len(windows)}")
    dispersion = _dispersion(windows)
    whole = windows.sum(axis=2)
    total = whole.sum(axis=0)
    squares = np.stack([_squared_distance(w, total - w, dispersion) for w in whole])
    rms = np.sqrt(np.maximum(squares.mean(axis=0), 0.0))
    tolerance = np.maximum(policy.tolerance, policy.tolerance_times_rms * rms)
    middle = len(whole) // 2
    early, late = whole[:middle].sum(axis=0), whole[middle:].sum(axis=0)
    return Baseline(
        total, dispersion, tolerance, _within(early, late, dispersion, tolerance) > 1e-3
    )


def compare(window: Counts, base: Baseline) -> Comparison:
    """One window's counts [stream, half, bin] against the baseline."""
    seen = window.sum(axis=1)
    square = _squared_distance(seen, base.counts, base.dispersion)
    return Comparison(
        x2=pearson(seen, base.counts)[0],
        distance=np.sqrt(np.maximum(square, 0.0)),
        p=_within(seen, base.counts, base.dispersion, base.tolerance),
        effective=_effective(seen, base.counts, base.dispersion),
    )


def e_values(p: Vector, cap: float) -> Vector:
    """
    Evidence against "within tolerance" of each p-value, at most `cap`.

    Calibrator (1 - p + p ln p) / (p ln(p)^2), the mixture of k p^(k - 1) over k in (0, 1): its mean
    is at most 1 for a valid p (Vovk and Wang 2021, equation 2).

    >>> e_values(np.array([0.5, 1e-6]), cap=40.0).round(2).tolist()
    [0.64, 40.0]
    """
    inner = np.clip(p, 1e-300, 1 - 1e-9)
    log = np.log(inner)
    e: Vector = np.minimum((1 - inner + inner * log) / (inner * log**2), cap)
    return e


def cap(streams: int, run_length: float, windows: int) -> float:
    """The cap that keeps fewer than `windows` windows from raising an alarm alone."""
    return float((streams * run_length) ** (1 / windows))


def accumulate(evidence: Vector, e: Vector) -> Vector:
    """One Shiryaev-Roberts step: M <- (M + 1) e."""
    return (evidence + 1) * e


@dataclass(frozen=True, slots=True)
class Dated:
    """
    When each stream's change most likely began: Page's (1954) CUSUM over the logarithm of e.

    The e-detector sums over all times at which a change may have begun, so its value says nothing
    of when. The sum that is started anew whenever it falls to 0 does: its last start is the
    likeliest one.
    """

    level: Vector  # [stream]
    began_ms: NDArray[np.int64]  # [stream] start of the window in which the level last left 0

    @classmethod
    def of(cls, streams: int) -> Dated:
        """Nothing seen yet."""
        return cls(np.zeros(streams), np.zeros(streams, np.int64))

    def after(self, e: Vector, start_ms: int) -> Dated:
        """
        With one more window, of e-values [stream], that began at `start_ms`.

        >>> dated = Dated.of(1).after(np.array([0.7]), 1).after(np.array([9.0]), 2)
        >>> dated.after(np.array([5.0]), 3).began_ms.tolist()
        [2]
        """
        level = np.maximum(0.0, self.level + np.log(np.maximum(e, 1e-300)))
        return Dated(level, np.where(self.level > 0, self.began_ms, start_ms))


def _within(a: Counts, b: Counts, dispersion: Vector, tolerance: Vector) -> Vector:
    """p-value of "the two lie within the tolerance of one another", in [1e-300, 1]."""
    x2, freedom = pearson(a, b)
    effective = _effective(a, b, dispersion)
    tail = ncx2.sf(x2 / dispersion, np.maximum(freedom, 1), effective * tolerance**2)
    return np.clip(np.where((freedom > 0) & (effective > 0), tail, 1.0), 1e-300, 1.0)


def _dispersion(windows: NDArray[np.int64]) -> Vector:
    """Mean X2 over its degrees of freedom between the halves, inside windows; at least 1."""
    x2 = np.zeros(windows.shape[1])
    freedom = np.zeros(windows.shape[1])
    for window in windows:
        x, df = pearson(window[:, 0], window[:, 1])
        x2 += x
        freedom += df
    return np.maximum(1.0, x2 / np.maximum(freedom, 1))


def _effective(a: Counts, b: Counts, dispersion: Vector) -> Vector:
    n, m = a.sum(axis=-1).astype(np.float64), b.sum(axis=-1).astype(np.float64)
    effective: Vector = n * m / np.maximum(n + m, 1) / dispersion
    return effective


def _squared_distance(a: Counts, b: Counts, dispersion: Vector) -> Vector:
    """Unbiased squared chi-distance; may be negative."""
    x2, freedom = pearson(a, b)
    effective = _effective(a, b, dispersion)
    return np.where(effective > 0, (x2 / dispersion - freedom) / np.maximum(effective, 1e-9), 0.0)
