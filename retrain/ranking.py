"""
How good a ranking is: pure metrics on arrays, means per user, and paired bootstrap intervals.

`relevant` is everywhere [n, k] bool: whether the item at each place of a list, best first, is one
that the user then chose; `chosen` [n] counts what the user chose in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CELLS_AT_ONCE = 4_000_000  # of the bootstrap's [rounds, users] indices: 32 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its percentile interval."""

    mean: float
    low: float
    high: float


def relevance(
    lists: NDArray[np.uint64], row: NDArray[np.int64], item: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """
    Whether each recommended item was chosen.

    Args:
        lists: [n, k] item hashes; 0 pads.
        row: [m] which list each choice belongs to.
        item: [m] what was chosen.

    >>> relevance(np.array([[7, 8], [9, 0]], np.uint64), np.array([0, 1]),
    ...           np.array([8, 7], np.uint64)).tolist()
    [[False, True], [False, False]]
    """
    n, k = lists.shape
    ids, code = np.unique(np.concatenate([lists.ravel(), item]), return_inverse=True)
    at = np.concatenate([np.repeat(np.arange(n), k), row]) * len(ids) + code.ravel()
    found = np.isin(at[: n * k], at[n * k :]).reshape(n, k)
    return np.asarray(found & (lists != 0))


def hit_rate(relevant: NDArray[np.bool_]) -> Floats:
    """
    1 where the list holds anything chosen, [n].

    >>> hit_rate(np.array([[False, True], [False, False]])).tolist()
    [1.0, 0.0]
    """
    return np.asarray(relevant.any(axis=1), np.float64)


def ndcg(relevant: NDArray[np.bool_], chosen: NDArray[np.int64]) -> Floats:
    """
    Discounted gain of each list over that of the best possible one, [n].

    >>> ndcg(np.array([[False, True], [True, True]]), np.array([1, 2]))
    array([0.63, 1.  ])
    """
    discount = 1 / np.log2(np.arange(2, relevant.shape[1] + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    best = ideal[np.minimum(chosen, relevant.shape[1])]
    return np.asarray(relevant @ discount / np.where(best == 0, 1, best))


def reciprocal_rank(relevant: NDArray[np.bool_]) -> Floats:
    """
    1 / place of the first chosen item, 0 if none is in the list, [n].

    >>> reciprocal_rank(np.array([[False, True], [False, False]])).tolist()
    [0.5, 0.0]
    """
    return np.where(relevant.any(axis=1), 1 / (relevant.argmax(axis=1) + 1.0), 0.0)


def auc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float | None:
    """
    Chance that a positive scores above a negative, ties counting half. None if a class is absent.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    >>> auc(np.array([0.5]), np.array([True])) is None
    True
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    above = mean_rank[inverse.ravel()][positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def log_loss(probability: Floats, positive: NDArray[np.bool_]) -> float:
    """
    Mean negative log-likelihood of what happened, in nats.

    >>> log_loss(np.array([0.9, 0.2]), np.array([True, False]))
    0.164
    """
    sure = np.clip(probability, 1e-7, 1 - 1e-7)
    return float(-np.where(positive, np.log(sure), np.log1p(-sure)).mean())


def observed_over_expected(probability: Floats, positive: NDArray[np.bool_]) -> float | None:
    """
    Calibration: what happened over what was foretold; 1 is right. None if nothing was foretold.

    >>> observed_over_expected(np.array([0.5, 0.5]), np.array([True, False]))
    1.0
    """
    expected = float(probability.sum())
    return float(positive.sum()) / expected if expected > 0 else None


def coverage(lists: NDArray[np.uint64], catalogue: int) -> float:
    """
    Share of the catalogue that appears in any list.

    >>> coverage(np.array([[1, 2], [2, 0]], np.uint64), 4)
    0.5
    """
    return len(np.unique(lists[lists != 0])) / max(1, catalogue)


def user_means(
    users: NDArray[np.uint64], values: Floats
) -> tuple[NDArray[np.uint64], Floats, NDArray[np.int64]]:
    """
    Mean of `values` for each user: (users ascending, means, counts).

    >>> user_means(np.array([2, 1, 2], np.uint64), np.array([0.0, 1.0, 1.0]))
    (array([1, 2], dtype=uint64), array([1. , 0.5]), array([1, 2]))
    """
    found, inverse, counts = np.unique(users, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse.ravel(), weights=values, minlength=len(found))
    return found, sums / np.maximum(counts, 1), counts


def bootstrap_mean(
    values: Floats,
    random: np.random.Generator,
    *,
    rounds: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """
    Mean over users with its percentile interval when users are drawn again.

    For a paired comparison `values` are the differences of the two models, user by user.

    >>> found = bootstrap_mean(np.full(50, 0.25), np.random.default_rng(1))
    >>> found.mean, found.low, found.high
    (0.25, 0.25, 0.25)
    """
    n = len(values)
    if not n:
        raise ValueError("a bootstrap needs at least one user")
    step = max(1, _CELLS_AT_ONCE // n)
    means = np.concatenate(
        [
            values[random.integers(0, n, (min(step, rounds - at), n))].mean(axis=1)
            for at in range(0, rounds, step)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))
