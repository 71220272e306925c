"""
Scores on traffic: what was recommended against what the user did next, beside popularity.

Popularity is counted from the same prefix of events that the model's features saw, and both leave
out what the user has seen. Hit rate and NDCG with one relevant item (Jarvelin and Kekalainen 2002).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

K = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Means over requests, and over users of the difference to popularity with its interval."""

    requests: int
    hit_rate: float
    ndcg: float
    popularity_hit_rate: float
    popularity_ndcg: float
    users: int
    difference: float  # mean over users of NDCG minus popularity's
    low: float  # 95 % interval of the difference, bootstrap over users
    high: float


def gain(ranked: Sequence[str], wanted: str) -> float:
    """
    NDCG of a list when one item is relevant: 1 / log2(rank + 1), 0 if it is not among the first K.

    >>> gain(["a", "b"], "a"), round(gain(["a", "b"], "b"), 2), gain(["a"], "z")
    (1.0, 0.63, 0.0)
    """
    for rank, item in enumerate(ranked[:K], start=1):
        if item == wanted:
            return 1.0 / math.log2(rank + 1)
    return 0.0


class Popularity:
    """
    Most-interacted items of a growing prefix.

    >>> popular = Popularity()
    >>> popular.add(["a", "b", "b"])
    >>> popular.best(seen={"b"})
    ['a']
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._ranking: list[str] = []
        self._changed = False

    def add(self, items: Iterable[str]) -> None:
        """Count interactions."""
        self._counts.update(items)
        self._changed = True

    def best(self, seen: set[str]) -> list[str]:
        """The K most popular items that are not in `seen`."""
        if self._changed:
            self._ranking = [item for item, _ in self._counts.most_common()]
            self._changed = False
        found: list[str] = []
        for item in self._ranking:
            if item not in seen:
                found.append(item)
                if len(found) == K:
                    break
        return found


@dataclass(frozen=True, slots=True)
class _Gains:
    """Per user: gains of the model and of popularity."""

    model: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    popular: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Scores:
    """Gains by model version. Bounded by the requests of the run."""

    def __init__(self) -> None:
        self._of: dict[int, _Gains] = defaultdict(_Gains)

    def add(self, version: int, user: str, model_gain: float, popularity_gain: float) -> None:
        """One answered request and how well each list held what the user did next."""
        gains = self._of[version]
        gains.model[user].append(model_gain)
        gains.popular[user].append(popularity_gain)

    def versions(self) -> list[int]:
        """Versions that answered scored requests."""
        return sorted(self._of)

    def score(self, version: int) -> Score | None:
        """Scores of one version; None if it answered nothing."""
        gains = self._of.get(version)
        if gains is None or not gains.model:
            return None
        model = np.concatenate([np.asarray(g) for g in gains.model.values()])
        popular = np.concatenate([np.asarray(g) for g in gains.popular.values()])
        by_user = np.array(
            [np.mean(g) - np.mean(gains.popular[u]) for u, g in gains.model.items()], np.float64
        )
        low, high = interval(by_user)
        return Score(
            requests=len(model),
            hit_rate=float((model > 0).mean()),
            ndcg=float(model.mean()),
            popularity_hit_rate=float((popular > 0).mean()),
            popularity_ndcg=float(popular.mean()),
            users=len(by_user),
            difference=float(by_user.mean()),
            low=low,
            high=high,
        )


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of a mean (percentile method, Efron 1979); fixed seed."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(values), (1_000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
