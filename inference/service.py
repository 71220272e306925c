"""
The core of serving: decoded requests in, one answer each out.

Soft at every step: without the store a request is scored on default features, without a model it
gets popular items, and the answer says so. A request that breaks its batch is found by bisecting.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from features.assemble import ItemFeatures, assemble_users
from features.declare import FeatureSet, UserContext
from features.hashing import hash_ids
from inference.answers import Built, Served, closed, recommendations, shadowed
from inference.fallback import Popular
from inference.live import Deployment, Live
from inference.lookup import Found, RowLookup
from inference.requests import Asked, Bad, Limits, problem
from inference.rollout import ARMS, arms
from inference.scorer import Assembled, Pick, ScorePolicy, Scorer
from ingest.clock import Clock
from ingest.metrics import Metrics
from schemas.errors import Reason, Rejected
from schemas.events import Arm, Recommendation, Shadow, Status

if TYPE_CHECKING:
    from features.items import ItemTable

log = structlog.get_logger(__name__)

NO_MODEL = "no-model"
MODEL_FAULT = "model-fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePolicy:
    """What serving may and must do."""

    limits: Limits = field(default_factory=Limits)
    score: ScorePolicy = field(default_factory=ScorePolicy)
    exclude_seen: bool = True  # leave out the items of the user's history


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One answer for each request, in order; the poisonous ones are dead letters as well."""

    answers: tuple[Recommendation, ...]
    dead: tuple[Bad, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the service works with."""

    features: FeatureSet
    lookup: RowLookup
    items: ItemTable
    popular: Popular
    live: Live


class Service:
    """Answers batches of requests. One thread at a time."""

    def __init__(
        self, parts: Parts, clock: Clock, metrics: Metrics, policy: ServicePolicy | None = None
    ) -> None:
        self._parts = parts
        self._clock = clock
        self._metrics = metrics
        self._policy = policy or ServicePolicy()
        self._scorer = Scorer(parts.features, parts.items, self._policy.score)

    def answer(self, asked: Sequence[Asked]) -> Answers:
        """Exactly one answer for each request."""
        now_ms = self._clock.now_ms()
        done: dict[int, Recommendation] = {}
        open_: list[int] = []
        for i, one in enumerate(asked):
            refusal = self._refusal(one, now_ms)
            if refusal is None:
                open_.append(i)
            else:
                done[i] = refusal
        dead: list[Bad] = []
        self._answer_all(asked, open_, done, dead)
        answers = tuple(done[i] for i in range(len(asked)))
        self._count(answers)
        return Answers(answers=answers, dead=tuple(dead))

    def _answer_all(
        self,
        asked: Sequence[Asked],
        index: list[int],
        done: dict[int, Recommendation],
        dead: list[Bad],
    ) -> None:
        """Answer `index`; whatever fails unexpectedly is halved until it is alone."""
        if not index:
            return
        part = [asked[i] for i in index]
        try:
            done.update(zip(index, self._answered(part), strict=True))
        except Exception as error:  # noqa: BLE001 - any bug that one request can provoke
            if len(index) > 1:
                middle = len(index) // 2
                self._answer_all(asked, index[:middle], done, dead)
                self._answer_all(asked, index[middle:], done, dead)
                return
            trace = traceback.format_exc(limit=-5)  # where it broke; not the arrays it broke on
            log.error("serve.poison", request_id=part[0].request.request_id, trace=trace)  # noqa: TRY400
            detail = f"{type(error).__name__}: {error!s:.300}"
            rejected = Rejected(Reason.POISON, detail)
            dead.append(Bad(batch=part[0].batch, index=part[0].index, rejected=rejected))
            done[index[0]] = closed(
                part[0], Status.INVALID, f"the request could not be handled: {detail}"
            )

    def _answered(self, asked: Sequence[Asked]) -> list[Recommendation]:
        start_s = self._clock.monotonic_s()
        queue_us = [1000 * max(0, self._clock.now_ms() - one.timestamp_ms) for one in asked]
        found = self._parts.lookup.read(asked)
        read_s = self._clock.monotonic_s()
        batch = self._assembled(asked, found)
        assembled_s = self._clock.monotonic_s()
        with self._parts.live.use() as deployment:
            served, shadows = self._scored(batch, deployment)
        scored_s = self._clock.monotonic_s()
        built = Built(
            batch=batch,
            found=found,
            features=self._parts.features,
            items=self._item_features(batch, served),
            queue_us=queue_us,
            read_us=round(1e6 * (read_s - start_s)),
            assemble_us=round(1e6 * (assembled_s - read_s)),
            score_us=round(1e6 * (scored_s - assembled_s)),
        )
        self._observe(built, found)
        return recommendations(built, served, shadows)

    def _assembled(self, asked: Sequence[Asked], found: Found) -> Assembled:
        requests = [one.request for one in asked]
        context = UserContext(
            rows=found.rows,
            now_ms=np.array([one.now_ms for one in asked], np.int64),
            surface=hash_ids([r.surface for r in requests]),
            device=hash_ids([r.device for r in requests]),
            country=hash_ids([r.country for r in requests]),
        )
        return Assembled(
            asked=asked,
            context=context,
            users=assemble_users(self._parts.features, context),
            exclude=self._excluded(asked, found),
            candidates=[
                tuple(dict.fromkeys(i for i in r.candidates if i not in set(r.exclude)))
                if r.candidates
                else ()
                for r in requests
            ],
        )

    def _excluded(self, asked: Sequence[Asked], found: Found) -> NDArray[np.uint64]:
        """[n, e] hashes that a request must not get: what it excludes, what its user has seen."""
        own = [hash_ids(one.request.exclude) for one in asked]
        splits = found.rows.history_splits if self._policy.exclude_seen else None
        if splits is not None:
            history = found.rows.history_item
            own = [
                np.concatenate([mine, history[start:end]]) if end > start else mine
                for mine, start, end in zip(own, splits[:-1], splits[1:], strict=True)
            ]
        exclude = np.zeros((len(own), max(map(len, own), default=0)), np.uint64)
        for row, hashes in enumerate(own):
            exclude[row, : len(hashes)] = hashes
        return exclude

    def _scored(
        self, batch: Assembled, deployment: Deployment
    ) -> tuple[list[Served], dict[int, Shadow]]:
        """What each request gets, and what the shadow would have given."""
        release, models = deployment.release, deployment.models
        served: dict[int, Served] = {}
        if release is not None:
            users = hash_ids([one.request.user_id for one in batch.asked])
            arm_of = arms(release, users)
            canary = models.get(release.canary)
            if canary is None:  # not loaded (yet): its users stay with the stable version
                arm_of[arm_of == ARMS.index(Arm.CANARY)] = ARMS.index(Arm.STABLE)
            for arm, version in ((Arm.STABLE, release.stable), (Arm.CANARY, release.canary)):
                index = np.flatnonzero(arm_of == ARMS.index(arm))
                model = models.get(version)
                if model is None or not len(index):
                    continue
                self._metrics.observe("serve.batch_rows", len(index))
                picks = self._scorer.picks(model, batch, index)
                if len(picks) < len(index):
                    self._metrics.count("serve.model_faults", version=str(version))
                served |= {
                    i: Served(pick=pick, ref=model.ref, arm=arm, rollout_id=release.rollout_id)
                    for i, pick in picks.items()
                }
        reason = MODEL_FAULT if served or (release and release.stable in models) else NO_MODEL
        shadows = shadowed(self._scorer, batch, deployment, self._clock)
        return self._completed(batch, served, reason), shadows

    def _completed(self, batch: Assembled, served: dict[int, Served], reason: str) -> list[Served]:
        """Popular items for whom no model answered."""
        n = len(batch.asked)
        missing = np.array([i for i in range(n) if i not in served], np.int64)
        if len(missing):
            model = self._parts.popular.model()
            picks = self._scorer.picks(model, batch, missing)
            nothing = Pick(ids=(), hashes=np.zeros(0, np.uint64), scores=np.zeros(0, np.float32))
            for i in missing.tolist():
                pick = picks.get(i, nothing)
                served[i] = Served(
                    pick=pick, ref=model.ref, arm=Arm.NONE, rollout_id="", reason=reason
                )
        return [served[i] for i in range(n)]

    def _item_features(self, batch: Assembled, served: Sequence[Served]) -> ItemFeatures:
        request = np.repeat(np.arange(len(served)), [len(one.pick.ids) for one in served])
        hashes = np.concatenate([one.pick.hashes for one in served])
        return self._scorer.item_features(batch, request, hashes)

    def _refusal(self, one: Asked, now_ms: int) -> Recommendation | None:
        """The answer to a request that is not scored."""
        if message := problem(one.request, self._policy.limits):
            return closed(one, Status.INVALID, message)
        deadline_ms = one.request.deadline_ms
        if deadline_ms is not None and now_ms > one.timestamp_ms + deadline_ms:
            late_ms = now_ms - one.timestamp_ms - deadline_ms
            return closed(one, Status.EXPIRED, f"taken up {late_ms} ms after its deadline")
        return None

    def _observe(self, built: Built, found: Found) -> None:
        for stage, us in (
            ("read", built.read_us),
            ("assemble", built.assemble_us),
            ("score", built.score_us),
        ):
            self._metrics.observe("serve.latency_s", us / 1e6, stage=stage)
        self._metrics.count("serve.rows_missing", float((found.rows.first_seen_ms == 0).sum()))
        self._metrics.count("serve.stale", float(found.stale.sum()))

    def _count(self, answers: Sequence[Recommendation]) -> None:
        for status in {one.status for one in answers}:
            count = sum(one.status is status for one in answers)
            self._metrics.count("serve.requests", count, status=status.value)
        for one in answers:
            if one.fallback_reason is not None:
                self._metrics.count("serve.fallbacks", reason=one.fallback_reason)
