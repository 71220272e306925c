"""
Who answers whom: the requests of a batch, shared out to the versions of a deployment.

Whose deadline leaves no time for a model gets none. Canary users are in no experiment; of the
others, each takes part in the first experiment of the release that wants them, and who takes part
in none gets the stable version. A version that is not in memory (yet) leaves its users with the
stable one, and out of the experiment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.hashing import hash_ids
from inference.answers import Served
from inference.experiments import INTERLEAVED, NOT_IN_IT, assign, coins, drafted
from inference.live import Deployment
from inference.model import Model, ModelRef
from inference.rollout import ARMS, arms
from inference.scorer import Assembled, Pick, Scorer
from ingest.metrics import Metrics
from schemas.events import Arm, Attribute, Experiment, Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Requests that are answered alike."""

    index: NDArray[np.int64]  # ascending places in the batch
    models: tuple[Model, ...]  # two: their lists are interleaved
    arm: Arm = Arm.NONE
    experiment: Experiment | None = None
    arm_name: str = ""  # of the experiment; empty where it is interleaved


def routes(
    deployment: Deployment, users: NDArray[np.uint64], late: NDArray[np.bool_]
) -> Iterator[Route]:
    """
    Routes of all requests that a model answers.

    Args:
        users: [n] hashes of the users.
        late: [n] who is to get no model.
    """
    release, models = deployment.release, deployment.models
    if release is None:
        return
    arm_of = arms(release, users)
    arm_of[late] = ARMS.index(Arm.NONE)
    if release.canary not in models:
        arm_of[arm_of == ARMS.index(Arm.CANARY)] = ARMS.index(Arm.STABLE)
    free = arm_of == ARMS.index(Arm.STABLE)
    for experiment in release.experiments:
        yield from _compared(experiment, release, models, users, free)
    for arm, version, mine in (
        (Arm.STABLE, release.stable, free),
        (Arm.CANARY, release.canary, arm_of == ARMS.index(Arm.CANARY)),
    ):
        model, index = models.get(version), np.flatnonzero(mine)
        if model is not None and len(index):
            yield Route(index=index, models=(model,), arm=arm)


def _compared(
    experiment: Experiment,
    release: Release,
    models: Mapping[int, Model],
    users: NDArray[np.uint64],
    free: NDArray[np.bool_],
) -> Iterator[Route]:
    """The routes of one experiment. Takes its users out of `free`, [n] bool."""
    if not free.any() or any(arm.version not in models for arm in experiment.arms):
        return
    chosen = np.where(free, assign(experiment, users), NOT_IN_IT)
    free &= chosen == NOT_IN_IT
    if experiment.interleaved:
        index = np.flatnonzero(chosen != NOT_IN_IT)
        if len(index):
            both = tuple(models[arm.version] for arm in experiment.arms)
            yield Route(index=index, models=both, experiment=experiment)
        return
    for at, arm in enumerate(experiment.arms):
        index = np.flatnonzero(chosen == at)
        if len(index):
            yield Route(
                index=index,
                models=(models[arm.version],),
                arm=Arm.STABLE if arm.version == release.stable else Arm.NONE,
                experiment=experiment,
                arm_name=arm.name,
            )


def served_by(
    route: Route, batch: Assembled, rollout_id: str, scorer: Scorer, metrics: Metrics
) -> dict[int, Served]:
    """What the route's requests get, by place in the batch; nothing where its model fails."""
    picks = [_picks(model, batch, route, scorer, metrics) for model in route.models]
    ref, experiment = route.models[0].ref, route.experiment
    if experiment is None:
        return {
            i: Served(pick=pick, ref=ref, arm=route.arm, rollout_id=rollout_id)
            for i, pick in picks[0].items()
        }
    metrics.count(
        "serve.experiment_requests",
        len(route.index),
        experiment=experiment.name,
        arm=route.arm_name or INTERLEAVED,
    )
    if len(picks) == 2:
        return _interleaved(experiment, batch, picks[0], picks[1], ref.name)
    told = (Attribute(name=experiment.name, value=route.arm_name),)
    return {
        i: Served(pick=pick, ref=ref, arm=route.arm, rollout_id=rollout_id, experiments=told)
        for i, pick in picks[0].items()
    }


def _picks(
    model: Model, batch: Assembled, route: Route, scorer: Scorer, metrics: Metrics
) -> dict[int, Pick]:
    metrics.observe("serve.batch_rows", len(route.index))
    found = scorer.picks(model, batch, route.index)
    if len(found) < len(route.index):
        metrics.count("serve.model_faults", version=str(model.ref.version))
    return found


def _interleaved(
    experiment: Experiment, batch: Assembled, a: dict[int, Pick], b: dict[int, Pick], name: str
) -> dict[int, Served]:
    """Lists of both; a list of which one model made nothing is no comparison, and not served."""
    both = sorted(a.keys() & b.keys())
    if not both:
        return {}
    requests = [batch.asked[i].request for i in both]
    rounds = max(one.k for one in requests)
    first = coins(experiment, hash_ids([one.request_id for one in requests]), rounds)
    served = {}
    for row, (i, request) in enumerate(zip(both, requests, strict=True)):
        pick, teams = drafted(a[i], b[i], request.k, first[row])
        served[i] = Served(
            pick=pick,
            # Of no single version: its scores are not to be taken for one's.
            ref=ModelRef(name=name, version=0, fingerprint=""),
            arm=Arm.NONE,
            rollout_id="",
            experiments=(Attribute(name=experiment.name, value=INTERLEAVED + teams),),
        )
    return served
