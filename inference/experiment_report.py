"""
What an experiment says: who was shown what, who chose of it, and whether to believe it.

Pure: tables of lists and choices in, numbers out. Users are what was assigned, so users are what
is counted: a rate's error is that of a ratio of sums over users (the delta method; Deng, Knoblich
and Lu, "Applying the delta method in metric analytics", KDD 2018), however many lists one has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from inference.experiments import INTERLEAVED
from schemas.events import Experiment

# Of the users' split over the arms, if it were by the weights: so small that it is a fault, not
# luck, though it is looked at every day (Fabijan et al., "Diagnosing sample ratio mismatch in
# online controlled experiments", KDD 2019).
MISMATCH_P: Final = 0.0005
CONFIDENCE: Final = 0.95
_Z: Final = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm. Rates are choices a list: lists of which something was chosen."""

    name: str
    version: int
    users: int
    lists: int
    chosen: int
    rate: float
    difference: float = 0.0  # to the first arm's rate
    low: float = 0.0  # of the difference, 95 %
    high: float = 0.0
    p: float = 1.0  # of a difference so large if there were none


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Which team of interleaved lists users chose from; each user is one vote."""

    first: int  # users who chose more of the first arm's items
    second: int
    ties: int  # who chose as much of both
    share: float  # of the votes for the second arm, ties halved
    low: float  # of the share, 95 %
    high: float
    p: float  # of so clear a preference if there were none (sign test)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An experiment's outcome so far."""

    experiment: Experiment
    arms: tuple[ArmResult, ...]  # of an interleaved one: none
    preference: Preference | None
    mismatch_p: float  # of the users' split, if it were by the weights

    @property
    def trusted(self) -> bool:
        """Whether users were split as they should have been."""
        return self.mismatch_p >= MISMATCH_P


def report(experiment: Experiment, lists: pl.DataFrame, choices: pl.DataFrame) -> Report:
    """
    Compare the arms.

    Args:
        lists: what was shown: user, arm (as recorded: name, or teams), items (list), time (ms).
        choices: what users chose: user, item, time (ms), within the attribution window of the
            newest list before it that showed the item: list (index into `lists`), place in it.
    """
    if experiment.interleaved:
        return Report(
            experiment=experiment,
            arms=(),
            preference=preferred(lists, choices),
            mismatch_p=1.0,
        )
    hit = np.zeros(len(lists), np.bool_)
    hit[choices["list"].to_numpy()] = True
    table = lists.select("user", "arm").with_columns(pl.Series("hit", hit))
    table = table.group_by("user", "arm").agg(pl.len().alias("lists"), pl.col("hit").sum())
    first, results = None, []
    for arm in experiment.arms:
        own = table.filter(pl.col("arm") == arm.name)
        sums = _Sums.of(own["lists"].to_numpy(), own["hit"].to_numpy())
        first = first or sums
        difference = sums.rate - first.rate
        error = float(np.hypot(sums.error, first.error)) if sums is not first else 0.0
        results.append(
            ArmResult(
                name=arm.name,
                version=arm.version,
                users=len(own),
                lists=sums.lists,
                chosen=sums.chosen,
                rate=sums.rate,
                difference=difference,
                low=difference - _Z * error,
                high=difference + _Z * error,
                p=float(2 * stats.norm.sf(abs(difference) / error)) if error else 1.0,
            )
        )
    return Report(
        experiment=experiment,
        arms=tuple(results),
        preference=None,
        mismatch_p=mismatch_p([one.users for one in results], [a.weight for a in experiment.arms]),
    )


def attributed(lists: pl.DataFrame, events: pl.DataFrame, window_ms: int) -> pl.DataFrame:
    """
    The events that choose something that was shown: each goes to the user's newest list before it
    that showed the item, if that is not older than the window.

    Args:
        lists: user, items, time, arm; row i is list i.
        events: user, item, time.
    """
    shown = (
        lists.with_row_index("list")
        .select("list", "user", pl.col("items").alias("item"), pl.col("time").alias("shown"))
        .with_columns(pl.int_ranges(pl.col("item").list.len()).alias("place"))
        .explode("item", "place")
        .drop_nulls("item")
        .sort("shown")
    )
    found = events.sort("time").join_asof(
        shown,
        left_on="time",
        right_on="shown",
        by=["user", "item"],
        strategy="backward",
        tolerance=window_ms,
    )
    return found.drop_nulls("list")


def mismatch_p(users: list[int], weights: list[int]) -> float:
    """
    Chi-square test of the users' split over the arms.

    >>> round(mismatch_p([500, 500], [1, 1]), 3)
    1.0
    >>> mismatch_p([1_000, 1_200], [1, 1]) < MISMATCH_P
    True
    """
    total = sum(users)
    if not total:
        return 1.0
    expected = np.array(weights) * total / sum(weights)
    return float(stats.chisquare(users, expected).pvalue)


def preferred(lists: pl.DataFrame, choices: pl.DataFrame) -> Preference:
    """
    Users' votes over interleaved lists (ties halved: Chapelle et al., "Large-scale validation and
    analysis of interleaved search evaluation", TOIS 2012).
    """
    teams = lists["arm"].to_list()
    credit: dict[str, list[int]] = {}
    for user, at, place in choices.select("user", "list", "place").iter_rows():
        team = teams[at].removeprefix(INTERLEAVED)[place : place + 1]
        if team:
            credit.setdefault(user, [0, 0])[int(team)] += 1
    first = sum(a > b for a, b in credit.values())
    second = sum(b > a for a, b in credit.values())
    ties, n = len(credit) - first - second, len(credit)
    votes = np.array([np.sign(b - a) for a, b in credit.values()]) / 2
    share = 0.5 + float(votes.mean()) if n else 0.5
    error = float(votes.std(ddof=1) / n**0.5) if n > 1 else 0.5
    decided = first + second
    return Preference(
        first=first,
        second=second,
        ties=ties,
        share=share,
        low=max(0.0, share - _Z * error),
        high=min(1.0, share + _Z * error),
        p=float(stats.binomtest(second, decided).pvalue) if decided else 1.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """A rate over users, and its standard error."""

    lists: int
    chosen: int
    rate: float
    error: float

    @classmethod
    def of(cls, lists: NDArray[np.int64], chosen: NDArray[np.int64]) -> _Sums:
        """Both [users]."""
        n, users = int(lists.sum()), len(lists)
        if not n:
            return cls(lists=0, chosen=0, rate=0.0, error=0.0)
        rate = float(chosen.sum() / n)
        left = chosen.astype(np.float64) - rate * lists
        spread = float((left**2).sum()) * users / max(1, users - 1)
        return cls(lists=n, chosen=int(chosen.sum()), rate=rate, error=spread**0.5 / n)
