"""
What the network can ask for, whatever the protocol: recommendations, calls of a model's own
signatures, events, and what serves. Checks come first, work goes through bounded queues.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from features.declare import Array
from inference.consumer import Steps
from inference.gather import Bounds, Gatherer, Work
from inference.live import Deployment, Live
from inference.model import TensorModel
from inference.publisher import EventPublisher
from inference.recorder import AnswerRecorder
from inference.requests import Asked, Limits, problem
from inference.tensors import (
    Signature,
    TensorCall,
    TensorLimits,
    Unread,
    checked,
    divided,
    grouped,
    merged,
    signature_of,
)
from inference.told import RecommendAnswer, told
from inference.trail import Trail
from ingest.clock import Clock
from ingest.log import Delivered, RecordBatch
from ingest.metrics import Metrics
from ingest.tracing import Trace
from schemas.errors import MillstreamError, NotServed, Reason, Rejected
from schemas.events import RecommendationRequest, UserEvent

LABELS = ("stable", "canary", "shadow", "previous")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """Which version is meant: by number, by label, or the stable one."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What a version gave."""

    version: int
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStatus:
    """One version of the release."""

    version: int
    loaded: bool
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The signatures of a version."""

    name: str
    version: int
    signatures: Mapping[str, Signature]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiPolicy:
    """Bounds of what is taken and of what waits."""

    limits: Limits = field(default_factory=Limits)
    tensors: TensorLimits = field(default_factory=TensorLimits)
    recommend: Bounds = field(default_factory=lambda: Bounds(batch=256, waiting=1024))
    # Each may hold megabytes: fewer wait.
    predict: Bounds = field(default_factory=lambda: Bounds(batch=64, waiting=128))


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiParts:
    """What the API works with; living longer than it."""

    model_name: str
    steps: Steps
    live: Live
    publisher: EventPublisher
    recorder: AnswerRecorder
    started: threading.Event  # items are read, and the released model is there, or is refused
    trail: Trail | None = None  # None: metrics are told, and nothing is traced


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request, and when it came."""

    request: RecommendationRequest
    came_ms: int
    trace: Trace | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """Requests, and what the steps hand from one to the next."""

    asked: Sequence[Asked]
    made: Any


class Api:
    """The calls. Those that are `async` may be made from one event loop."""

    def __init__(
        self, parts: ApiParts, clock: Clock, metrics: Metrics, policy: ApiPolicy | None = None
    ) -> None:
        self._parts = parts
        self._clock = clock
        self._metrics = metrics
        self._policy = policy or ApiPolicy()
        self._trail = parts.trail or Trail(clock, metrics)
        recommending: Work[_Wanted, _Scored, RecommendAnswer] = Work(
            first=self._score, second=self._finish
        )
        predicting: Work[TensorCall, list[Predicted | MillstreamError], Predicted] = Work(
            first=self._call, second=lambda made: made
        )
        self._recommend = Gatherer("recommend", recommending, self._policy.recommend)
        self._predict = Gatherer("predict", predicting, self._policy.predict)

    def close(self) -> None:
        """Answer what waits, take no more."""
        self._recommend.close()
        self._predict.close()

    async def recommend(
        self, request: RecommendationRequest, trace: Trace | None = None
    ) -> RecommendAnswer:
        """
        The answer, recorded on the topic of recommendations as those to requests of the log are.

        Raises:
            Rejected: the request asks for something that is not served; it says what.
            Overloaded: too many wait.
            TimeoutError: its deadline passed before it was scored.
        """
        if wrong := problem(request, self._policy.limits):
            raise Rejected(Reason.OUT_OF_RANGE, wrong)
        return await self._recommend.ask(_Wanted(request, self._clock.now_ms(), trace))

    async def predict(
        self,
        choice: ModelChoice,
        signature: str,
        inputs: Mapping[str, Array] | Unread,
        trace: Trace | None = None,
    ) -> Predicted:
        """
        The outputs of one signature of one version.

        Args:
            inputs: those that are not read yet are read and checked with those of other calls.

        Raises:
            NotServed: no such model, version, label or signature.
            Rejected: the inputs do not fit.
            Overloaded: too many wait.
        """
        version, model = self.model(choice)
        spec = signature_of(model.signatures, signature)
        taken, rows = inputs, len(inputs)
        if isinstance(inputs, Mapping):
            taken, rows = checked(inputs, spec, self._policy.tensors)
        call = TensorCall(version=version, signature=signature, spec=spec, inputs=taken, rows=rows)
        since_s = self._clock.monotonic_s()
        found = await self._predict.ask(call)
        if trace is not None and trace.sampled:
            line = trace.on(self._clock)
            trace.child(
                "predict",
                (line.ns(since_s), line.ns(self._clock.monotonic_s())),
                {
                    "millstream.model.name": choice.name,
                    "millstream.model.version": version,
                    "millstream.signature": signature,
                    "millstream.rows": rows,
                },
            )
        return found

    async def publish(self, event: UserEvent) -> Delivered:
        """
        Where the event landed.

        Raises:
            Rejected: it would not be folded; it says why.
            Retryable: the broker or the registry did not answer, or too many events wait.
        """
        return await self._parts.publisher.publish(event)

    def ready(self) -> bool:
        """Whether callers should come: from then on they get the best answers there are."""
        return self._parts.started.is_set()

    def has_model(self) -> bool:
        """Whether a model is in memory; without one, recommendations are popular items."""
        return bool(self._parts.live.deployment.models)

    def statuses(self, choice: ModelChoice) -> list[VersionStatus]:
        """
        The versions of the release, newest first; only the chosen one, if one is.

        Raises:
            NotServed: no such model, version or label.
        """
        self._check_name(choice.name)
        deployment = self._parts.live.deployment
        labels = _labels(deployment)
        wanted = sorted({*deployment.models, *labels.values()}, reverse=True)
        if choice.version is not None or choice.label is not None:
            wanted = [_version(choice, deployment)]
        return [
            VersionStatus(
                version=version,
                loaded=version in deployment.models,
                labels=tuple(label for label, of in labels.items() if of == version),
            )
            for version in wanted
        ]

    def metadata(self, choice: ModelChoice) -> Metadata:
        """
        The signatures of the chosen version.

        Raises:
            NotServed: no such model, version or label.
        """
        version, model = self.model(choice)
        return Metadata(name=choice.name, version=version, signatures=model.signatures)

    def model(self, choice: ModelChoice) -> tuple[int, TensorModel]:
        """
        The chosen version and its model, whose signatures may be read.

        Raises:
            NotServed: no such model, version or label, or it is not in memory.
        """
        self._check_name(choice.name)
        deployment = self._parts.live.deployment
        version = _version(choice, deployment)
        return version, _model(deployment, version)

    def _check_name(self, name: str) -> None:
        if name != self._parts.model_name:
            raise NotServed(f"no model {name[:100]!r}: {self._parts.model_name!r} serves")

    def _score(self, wanted: Sequence[_Wanted]) -> _Scored:
        steps, asked = self._parts.steps, _asked(wanted)
        return _Scored(asked=asked, made=steps.score(steps.prepare(asked)))

    def _finish(self, scored: _Scored) -> Sequence[RecommendAnswer | Exception]:
        answers = self._parts.steps.finish(scored.made)
        headers = self._trail.answered(scored.asked, answers)
        since_s = self._clock.monotonic_s()
        self._parts.recorder.record(
            answers, headers, lambda: self._trail.recorded(scored.asked, since_s)
        )
        found = told(answers)
        for bad in answers.dead:
            found[bad.index] = bad.rejected
        return found

    def _call(self, calls: Sequence[TensorCall]) -> list[Predicted | MillstreamError]:
        """Each call's outputs, or its error."""
        found: dict[int, Predicted | MillstreamError] = {}
        with self._parts.live.use() as deployment:
            for group in grouped(calls, self._policy.tensors.max_rows):
                found |= self._called(deployment, {at: calls[at] for at in group})
        return [found[at] for at in range(len(calls))]

    def _called(
        self, deployment: Deployment, calls: Mapping[int, TensorCall]
    ) -> dict[int, Predicted | MillstreamError]:
        """One model call; where it fails, each half, until those that fail alone are left."""
        first, *others = calls.values()
        rows = [call.rows for call in calls.values()]
        try:
            model = _model(deployment, first.version)
            outputs = model.predict(
                first.signature, merged([first, *others], self._policy.tensors), sum(rows)
            )
        except MillstreamError as error:
            if not others:
                return dict.fromkeys(calls, error)
            every, middle = list(calls.items()), len(calls) // 2
            parts = (dict(every[:middle]), dict(every[middle:]))
            return {at: one for p in parts for at, one in self._called(deployment, p).items()}
        self._metrics.observe("network.tensor_rows", sum(rows))
        return {
            at: Predicted(version=first.version, outputs=part)
            for at, part in zip(calls, divided(outputs, rows), strict=True)
        }


def _labels(deployment: Deployment) -> dict[str, int]:
    """The versions that the release names."""
    release = deployment.release
    if release is None:
        return {}
    named = {label: int(getattr(release, label)) for label in LABELS}
    return {label: version for label, version in named.items() if version}


def _version(choice: ModelChoice, deployment: Deployment) -> int:
    if choice.version is None:
        return _labelled(choice.label or "stable", deployment)
    if choice.version not in {*deployment.models, *_labels(deployment).values()}:
        known = ", ".join(map(str, sorted(deployment.models))) or "none"
        raise NotServed(f"no version {choice.version}: in memory are {known}")
    return choice.version


def _labelled(label: str, deployment: Deployment) -> int:
    release = deployment.release
    version = int(getattr(release, label)) if release is not None and label in LABELS else 0
    if not version:
        known = ", ".join(_labels(deployment)) or "none"
        raise NotServed(f"no version with label {label[:100]!r}: labels are {known}")
    return version


def _model(deployment: Deployment, version: int) -> TensorModel:
    model = deployment.models.get(version)
    if model is None:
        raise NotServed(f"version {version} is not in memory")
    # At every call: a check against the protocol would look at each of its members.
    if not hasattr(model, "signatures"):
        raise NotServed(f"version {version} takes no tensors")
    return cast("TensorModel", model)


def _asked(wanted: Sequence[_Wanted]) -> list[Asked]:
    """The requests as if they stood on a log: what serves those of the log serves them."""
    n = len(wanted)
    batch = RecordBatch(
        topic="",
        partition=0,
        start_offset=0,
        next_offset=n,
        offsets=np.arange(n),
        timestamps_ms=np.array([one.came_ms for one in wanted], np.int64),
        keys=[one.request.user_id.encode() for one in wanted],
        values=[None] * n,
        headers={},
    )
    return [
        Asked(batch=batch, index=i, request=one.request, trace=one.trace)
        for i, one in enumerate(wanted)
    ]
