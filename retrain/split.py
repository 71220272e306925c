"""Which examples are learned from, how much each counts, and which are held out. By time alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.catalog import TARGETS
from retrain.recipe import TrainPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Rows by time: training, a gap whose labels could overlap, holdout from `cut_ms` on."""

    train: NDArray[np.int64]
    holdout: NDArray[np.int64]
    cut_ms: int


def split(
    event_time: NDArray[np.int64],
    positive: NDArray[np.bool_],
    policy: TrainPolicy,
    recent_from_ms: int | None = None,
) -> Split:
    """
    Cut at the time after which `holdout_share` of the choices lie.

    After a change it is `recent_share` of the choices since then: the holdout must show the new
    behaviour alone, and training must see most of it, however long the history before.

    Args:
        event_time: [n] ms.
        positive: [n] whether the example is a choice.
        recent_from_ms: when the change began; None: there was none.

    >>> time = np.arange(10) * 1000
    >>> policy = TrainPolicy(holdout_share=0.3, embargo_ms=2000)
    >>> found = split(time, np.ones(10, bool), policy)
    >>> found.train.tolist(), found.holdout.tolist(), found.cut_ms
    ([0, 1, 2, 3, 4], [7, 8, 9], 7000)
    >>> split(time, np.ones(10, bool), policy, recent_from_ms=6000).cut_ms
    8000
    """
    times, share = np.sort(event_time[positive]), policy.holdout_share
    if not len(times):
        return Split(train=np.zeros(0, np.int64), holdout=np.zeros(0, np.int64), cut_ms=0)
    recent = times if recent_from_ms is None else times[times >= recent_from_ms]
    if recent_from_ms is not None and len(recent) * policy.recent_share < len(times) * share:
        times, share = recent if len(recent) else times, policy.recent_share
    cut = int(times[min(len(times) - 1, round(len(times) * (1 - share)))])
    return Split(
        train=np.flatnonzero(event_time < cut - policy.embargo_ms),
        holdout=np.flatnonzero(event_time >= cut),
        cut_ms=cut,
    )


def weights_of(
    labels: NDArray[np.int64],
    event_time: NDArray[np.int64],
    policy: TrainPolicy,
    recent_from_ms: int | None,
) -> NDArray[np.float32]:
    """
    Weight of each example, [n]: 0 without a choice, else its heaviest label's, times recency.

    Args:
        recent_from_ms: event time from which examples count `recent_weight` times; None: no change.

    >>> labels = np.zeros((3, 11), np.int64)
    >>> labels[1, 3] = labels[2, 8] = 1  # CLICK, PURCHASE
    >>> weights_of(labels, np.array([0, 0, 9]), TrainPolicy(), 5).tolist()
    [0.0, 1.0, 6.0]
    """
    by_type = np.zeros(labels.shape[1], np.float32)
    by_type[[int(t) for t in TARGETS]] = 1
    for one in policy.label_weights:
        by_type[int(one.event_type)] *= one.weight
    found = np.where(labels > 0, by_type, 0).max(axis=1)
    if recent_from_ms is not None:
        found = found * np.where(event_time >= recent_from_ms, policy.recent_weight, 1)
    return np.asarray(found, np.float32)


def is_positive(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether an example led to anything that counts as a choice, [n].

    Args:
        labels: [n, event types] counts.
    """
    return np.asarray(labels[:, [int(t) for t in TARGETS]].sum(axis=1) > 0)
