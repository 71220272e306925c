"""
The core of serving: decoded requests in, one answer each out, in three steps.

`prepare` reads and assembles, `score` calls models, `finish` puts the answers together. Several
batches may be under way at once, each in another step.

Soft at every step: without the store a request is scored on default features, without a model it
gets popular items, and the answer says so. A request that breaks its batch is found by bisecting.
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from features.assemble import ItemFeatures, assemble_users
from features.declare import FeatureSet, UserContext
from features.hashing import hash_ids
from inference.answers import Answered, Answers, Served, Times, closed, shadowed
from inference.batcher import Cost
from inference.deadlines import TooLate, expired
from inference.fallback import Popular
from inference.live import Deployment, Live
from inference.lookup import Found, RowLookup
from inference.observed import observe
from inference.requests import Asked, Bad, Limits, problem
from inference.routing import routes, served_by
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
DEADLINE = "deadline"  # the model would not have answered in time


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePolicy:
    """What serving may and must do."""

    limits: Limits = field(default_factory=Limits)
    score: ScorePolicy = field(default_factory=ScorePolicy)
    exclude_seen: bool = True  # leave out the items of the user's history


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the service works with."""

    features: FeatureSet
    lookup: RowLookup
    items: ItemTable
    popular: Popular
    live: Live
    score_cost: Cost | None = None  # until the answer is out; None: nobody is too late for one


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """n requests, and of those that are to be scored what the models take."""

    asked: Sequence[Asked]
    closed: Mapping[int, Recommendation]  # refused already, by place in the batch
    index: Sequence[int]  # places of the others
    ready: Ready | None = None  # None: there are no others, or `error` came instead
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Requests with their rows, read and assembled."""

    batch: Assembled
    found: Found
    times: Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the models gave."""

    prepared: Prepared
    served: Sequence[Served] = ()  # of the prepared `index`
    shadows: Mapping[int, Shadow] = field(default_factory=dict)
    times: Times | None = None
    error: Exception | None = None


class Service:
    """Answers batches of requests. `finish` takes one at a time, the other steps several."""

    def __init__(
        self, parts: Parts, clock: Clock, metrics: Metrics, policy: ServicePolicy | None = None
    ) -> None:
        self._parts = parts
        self._clock = clock
        self._metrics = metrics
        self._policy = policy or ServicePolicy()
        self._scorer = Scorer(parts.features, parts.items, self._policy.score)
        self._late = TooLate(parts.score_cost, clock)
        self._reading = threading.Lock()  # the lookup serves one thread at a time
        self._counting = threading.Lock()

    def answer(self, asked: Sequence[Asked]) -> Answers:
        """Exactly one answer for each request."""
        return self.finish(self.score(self.prepare(asked)))

    def prepare(self, asked: Sequence[Asked]) -> Prepared:
        """Refuse what cannot be scored, read the rows of the others, assemble their features."""
        now_ms = self._clock.now_ms()
        closed = {}
        for i, one in enumerate(asked):
            refusal = self._refusal(one, now_ms)
            if refusal is not None:
                closed[i] = refusal
        index = [i for i in range(len(asked)) if i not in closed]
        prepared = Prepared(asked=asked, closed=closed, index=index)
        if not index:
            return prepared
        try:
            return replace(prepared, ready=self._ready([asked[i] for i in index]))
        except Exception as error:  # noqa: BLE001 - any bug that one request can provoke
            return replace(prepared, error=error)

    def score(self, prepared: Prepared) -> Scored:
        """Call the models. Whose deadline has passed meanwhile is not scored any more."""
        with self._parts.live.use() as deployment:
            return self.score_by(prepared, deployment)

    def score_by(self, prepared: Prepared, deployment: Deployment) -> Scored:
        """As `score`, by this feature set's models of a deployment that is in use."""
        prepared = self._in_time(prepared)
        if prepared.ready is None:
            return Scored(prepared=prepared, error=prepared.error)
        start_s = self._clock.monotonic_s()
        try:
            served, shadows = self._scored(prepared.ready.batch, self._own(deployment))
        except Exception as error:  # noqa: BLE001 - any bug that one request can provoke
            return Scored(prepared=prepared, error=error)
        score_us = round(1e6 * (self._clock.monotonic_s() - start_s))
        times = replace(prepared.ready.times, score=score_us, score_at_s=start_s)
        return Scored(prepared=prepared, served=served, shadows=shadows, times=times)

    def modelled(self, scored: Scored) -> int:
        """How many of the requests a model was asked for."""
        return sum(one.reason != DEADLINE for one in scored.served)

    @property
    def fingerprint(self) -> str:
        """Of the feature set."""
        return self._parts.features.fingerprint

    def shadows(self, prepared: Prepared, deployment: Deployment) -> dict[int, Shadow]:
        """What the shadow version would have answered, by place in the batch."""
        if prepared.ready is None:
            return {}
        found = shadowed(self._scorer, prepared.ready.batch, self._own(deployment), self._clock)
        return {prepared.index[at]: one for at, one in found.items()}

    def finish(self, scored: Scored) -> Answers:
        """Put the answers together; a batch that broke is answered in halves."""
        answers = self._finished(scored)
        self._count(answers)
        return answers

    def _own(self, deployment: Deployment) -> Deployment:
        """What of a deployment is of this feature set."""
        models = deployment.models
        own = {v: m for v, m in models.items() if m.ref.fingerprint == self.fingerprint}
        return deployment if len(own) == len(models) else replace(deployment, models=own)

    def _finished(self, scored: Scored) -> Answers:
        prepared = scored.prepared
        asked, closed, ready = prepared.asked, prepared.closed, prepared.ready
        error = scored.error
        if ready is not None and error is None:
            try:
                part = self._answered(ready, scored)
            except Exception as broke:  # noqa: BLE001 - any bug that one request can provoke
                error = broke
            else:
                return Answers(n=len(asked), closed=closed, parts=[(prepared.index, part)])
        if error is None:
            return Answers(n=len(asked), closed=closed)
        return self._bisected(prepared, error)

    def _bisected(self, prepared: Prepared, error: Exception) -> Answers:
        """Whatever fails unexpectedly is halved until it is alone."""
        asked, index = prepared.asked, prepared.index
        closed = dict(prepared.closed)
        if len(index) == 1:
            one = asked[index[0]]
            closed[index[0]], bad = _poison(one, error)
            return Answers(n=len(asked), closed=closed, dead=[bad])
        parts: list[tuple[Sequence[int], Answered]] = []
        dead: list[Bad] = []
        middle = len(index) // 2
        for half in (index[:middle], index[middle:]):
            found = self._finished(self.score(self.prepare([asked[i] for i in half])))
            closed |= {half[i]: answer for i, answer in found.closed.items()}
            parts += [([half[i] for i in at], part) for at, part in found.parts]
            dead += found.dead
        return Answers(n=len(asked), closed=closed, parts=parts, dead=dead)

    def _ready(self, asked: Sequence[Asked]) -> Ready:
        start_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        queue_us = [1000 * max(0, now_ms - one.timestamp_ms) for one in asked]
        with self._reading:
            found = self._parts.lookup.read(asked)
        read_s = self._clock.monotonic_s()
        batch = self._assembled(asked, found)
        times = Times(
            queue=queue_us,
            read=round(1e6 * (read_s - start_s)),
            assemble=round(1e6 * (self._clock.monotonic_s() - read_s)),
            score=0,
            read_at_s=start_s,
        )
        return Ready(batch=batch, found=found, times=times)

    def _in_time(self, prepared: Prepared) -> Prepared:
        """The same without those whose deadline has passed: they are answered."""
        now_ms = self._clock.now_ms()
        late = {i: expired(prepared.asked[i], now_ms) for i in prepared.index}
        closed = {i: answer for i, answer in late.items() if answer is not None}
        if not closed:
            return prepared
        self._metrics.count("serve.expired_in_queue", len(closed))
        left = [i for i in prepared.index if i not in closed]
        rest = self.prepare([prepared.asked[i] for i in left])
        return replace(
            rest,
            asked=prepared.asked,
            closed={
                **prepared.closed,
                **closed,
                **{left[i]: answer for i, answer in rest.closed.items()},
            },
            index=[left[i] for i in rest.index],
        )

    def _answered(self, ready: Ready, scored: Scored) -> Answered:
        part = Answered(
            batch=ready.batch,
            found=ready.found,
            features=self._parts.features,
            served=scored.served,
            items=self._item_features(ready.batch, scored.served),
            shadows=scored.shadows,
            times=scored.times or ready.times,
        )
        observe(part, self._metrics)
        return part

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
        own = [one.request.exclude for one in asked]
        counts = np.array([len(ids) for ids in own])
        seen = found.rows.history_item[:0]
        lengths = np.zeros(len(asked), np.int64)
        if self._policy.exclude_seen:
            splits = found.rows.history_splits
            lengths, seen = np.diff(splits), found.rows.history_item[splits[0] : splits[-1]]
        exclude = np.zeros((len(asked), int((counts + lengths).max(initial=0))), np.uint64)
        at = np.arange(exclude.shape[1])
        exclude[(at >= counts[:, None]) & (at < (counts + lengths)[:, None])] = seen
        if counts.any():
            exclude[at < counts[:, None]] = hash_ids([i for ids in own for i in ids])
        return exclude

    def _scored(
        self, batch: Assembled, deployment: Deployment
    ) -> tuple[list[Served], dict[int, Shadow]]:
        """What each request gets, and what the shadow would have given."""
        release, models = deployment.release, deployment.models
        served: dict[int, Served] = {}
        late = self._late.among(batch.asked)
        users = hash_ids([one.request.user_id for one in batch.asked])
        for route in routes(deployment, users, late):
            rollout_id = release.rollout_id if release else ""
            served |= served_by(route, batch, rollout_id, self._scorer, self._metrics)
        reason = MODEL_FAULT if served or (release and release.stable in models) else NO_MODEL
        shadows = {} if late.all() else shadowed(self._scorer, batch, deployment, self._clock)
        reasons = [DEADLINE if one else reason for one in late.tolist()]
        return self._completed(batch, served, reasons), shadows

    def _completed(
        self, batch: Assembled, served: dict[int, Served], reasons: Sequence[str]
    ) -> list[Served]:
        """Popular items for whom no model answered."""
        n = len(batch.asked)
        missing = np.array([i for i in range(n) if i not in served], np.int64)
        if len(missing):
            with self._counting:
                model = self._parts.popular.model()
            picks = self._scorer.picks(model, batch, missing)
            nothing = Pick(ids=(), hashes=np.zeros(0, np.uint64), scores=np.zeros(0, np.float32))
            for i in missing.tolist():
                pick = picks.get(i, nothing)
                served[i] = Served(
                    pick=pick, ref=model.ref, arm=Arm.NONE, rollout_id="", reason=reasons[i]
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
        return expired(one, now_ms)

    def _count(self, answers: Answers) -> None:
        statuses = Counter(one.status for one in answers.closed.values())
        reasons = Counter(reason for _, part in answers.parts for reason in part.reasons())
        statuses[Status.OK] += reasons.pop("", 0)
        statuses[Status.FALLBACK] += reasons.total()
        for status, count in (+statuses).items():
            self._metrics.count("serve.requests", count, status=status.value)
        for reason, count in reasons.items():
            self._metrics.count("serve.fallbacks", count, reason=reason)


def _poison(one: Asked, error: Exception) -> tuple[Recommendation, Bad]:
    """The answer to a request that cannot be handled, and what becomes of its record."""
    # Where it broke; not the arrays it broke on.
    trace = "".join(traceback.format_exception(error, limit=-5))
    log.error("serve.poison", **one.names, trace=trace)
    detail = f"{type(error).__name__}: {error!s:.300}"
    answer = closed(one, Status.INVALID, f"the request could not be handled: {detail}")
    rejected = Rejected(Reason.POISON, detail)
    return answer, Bad(batch=one.batch, index=one.index, rejected=rejected)
