"""
What a model is worth: its rankings against what users then did, on a frozen holdout.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from features.assemble import UserFeatures
from inference.model import Model
from ingest.clock import Clock
from retrain import ranking
from retrain.holdout import EvaluationPolicy, Holdout
from retrain.report import Cost, Report, SliceScores, UserScores

Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]


@dataclass(slots=True)
class _Lists:
    items: Hashes  # [n, k]
    finite: bool = True
    call_ms: list[float] = field(default_factory=list)


def evaluate(
    model: Model,
    holdout: Holdout,
    policy: EvaluationPolicy,
    clock: Clock,
    *,
    size_bytes: int | None = None,
) -> Report:
    """
    Put the holdout's questions to a model.

    Args:
        size_bytes: of the model on disk; None: a baseline, whose cost does not matter.

    Raises:
        ModelFault: the model does not answer.
    """
    found = _asked(model, holdout, policy, clock)
    relevant = ranking.relevance(found.items, holdout.truth_row, holdout.truth_item)
    chosen = np.bincount(holdout.truth_row, minlength=len(holdout))
    values = (
        ranking.hit_rate(relevant),
        ranking.ndcg(relevant, chosen),
        ranking.reciprocal_rank(relevant),
    )
    auc, finite = _auc(model, holdout)
    cost = None
    if size_bytes is not None:
        p50, p99 = np.quantile(found.call_ms, [0.5, 0.99])
        cost = Cost(batch=policy.batch, p50_ms=p50, p99_ms=p99, size_bytes=size_bytes)
    return Report(
        model=model.ref.name,
        version=model.ref.version,
        fingerprint=model.ref.fingerprint,
        k=policy.k,
        holdout=holdout.facts,
        overall=_scores(holdout.user, values, np.ones(len(holdout), bool)),
        slices=tuple(
            SliceScores(name=name, scores=_scores(holdout.user, values, chosen_rows))
            for name, chosen_rows in sorted(holdout.slices.items())
        ),
        coverage=ranking.coverage(found.items, len(np.unique(holdout.truth_item))),
        finite=found.finite and finite,
        auc=auc,
        cost=cost,
    )


def _asked(model: Model, holdout: Holdout, policy: EvaluationPolicy, clock: Clock) -> _Lists:
    """Every request's list, in batches whose time is taken; the first call warms up."""
    found = _Lists(np.zeros((len(holdout), policy.k), np.uint64))
    for at in [0, *range(0, len(holdout), policy.batch)]:
        part = slice(at, at + policy.batch)
        users = _part(holdout.users, part)
        start = clock.monotonic_s()
        scored = model.retrieve(users, holdout.seen[part], policy.k)
        found.call_ms.append((clock.monotonic_s() - start) * 1000)
        found.items[part] = scored.items
        found.finite &= bool(np.isfinite(scored.scores[scored.items != 0]).all())
    found.call_ms.pop(0)
    return found


def _auc(model: Model, holdout: Holdout) -> tuple[float | None, bool]:
    """Mean over the shown lists of the AUC within a list, and whether all scores are finite."""
    shown = holdout.shown
    if shown is None:
        return None, True
    users = UserFeatures(
        longs=holdout.users.longs[shown.row], floats=holdout.users.floats[shown.row]
    )
    scores = model.rank(users, shown.candidates, shown.items)
    real = shown.candidates != 0
    above = (scores[:, :, None] > scores[:, None, :]) + 0.5 * (
        scores[:, :, None] == scores[:, None, :]
    )
    pairs = shown.chosen[:, :, None] & (real & ~shown.chosen)[:, None, :]
    count = pairs.sum(axis=(1, 2))
    judged = count > 0
    if not judged.any():
        return None, bool(np.isfinite(scores[real]).all())
    value = (above * pairs).sum(axis=(1, 2))[judged] / count[judged]
    return float(value.mean()), bool(np.isfinite(scores[real]).all())


def _scores(
    user: Hashes, values: tuple[Floats, Floats, Floats], rows: NDArray[np.bool_]
) -> UserScores:
    """Per-user means of (hit rate, NDCG, reciprocal rank) over some of the requests."""
    (users, hits, count), (_, gains, _), (_, ranks, _) = (
        ranking.user_means(user[rows], value[rows]) for value in values
    )
    return UserScores(users=users, requests=count, hit_rate=hits, ndcg=gains, mrr=ranks)


def _part(users: UserFeatures, part: slice) -> UserFeatures:
    return UserFeatures(longs=users.longs[part], floats=users.floats[part])
