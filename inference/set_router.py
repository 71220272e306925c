"""
Each model reads the features that it was trained on: requests go to the service of their set.

While a new feature set is taken up, versions of the old and of the new one serve side by side. A
service works for one set, with its rows, item aggregates and models; here a batch is shared out
among them by the arm that each request falls into, and the answers are put together again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from features.assemble import ItemsShown, UserFeatures
from features.declare import Array, FeatureSet
from features.hashing import hash_ids
from inference.answers import Answered, Answers
from inference.live import Deployment, Live
from inference.model import Model, ModelRef, Scored, TensorModel
from inference.requests import Asked, Bad
from inference.rollout import ARMS, arms
from inference.service import Prepared as Ready
from inference.service import Scored as Done
from inference.service import Service
from inference.tensors import Signature
from schemas.events import Arm, Recommendation, Shadow

if TYPE_CHECKING:
    from features.items import ItemTable

log = structlog.get_logger(__name__)


class OpenedSet(Protocol):
    """A service for one feature set, with what runs beside it."""

    @property
    def service(self) -> Service: ...

    @property
    def beside(self) -> Service: ...

    @property
    def items(self) -> ItemTable: ...

    def wait_items(self, timeout_s: float) -> bool:
        """Whether everything that stood on the item topics is in the table, in time."""

    def close(self) -> None: ...


Pick = Callable[[OpenedSet], Service]


class SetServices:
    """The services by feature set: the own ones for good, others while a model needs them."""

    def __init__(self, own: OpenedSet, open_set: Callable[[FeatureSet], OpenedSet]) -> None:
        self.own = own
        self._fingerprint = own.service.fingerprint
        self._open_set = open_set
        self._opened: dict[str, OpenedSet] = {}
        self._users: dict[str, int] = {}
        self._lock = threading.Lock()

    def serving(self) -> Mapping[str, OpenedSet]:
        """The sets by fingerprint."""
        return {self._fingerprint: self.own, **self._opened}  # which is exchanged as a whole

    def kept_for(self, model: Model, features: FeatureSet) -> Model:
        """
        The model, whose set is served until it is closed.

        Raises:
            Refused: there are no rows of that set.
        """
        fingerprint = features.fingerprint
        if fingerprint == self._fingerprint:
            return model
        with self._lock:
            if fingerprint not in self._opened:
                self._opened = {**self._opened, fingerprint: self._open_set(features)}
                log.info("serve.set_opened", set=fingerprint)
            self._users[fingerprint] = self._users.get(fingerprint, 0) + 1
        return _Kept(model, lambda: self._given_up(fingerprint))

    def of(self, model: Model) -> OpenedSet:
        """What the model's feature set is served by, once it is kept for it."""
        return self.serving()[model.ref.fingerprint]

    def close(self) -> None:
        """Give up all but the own service. Idempotent."""
        with self._lock:
            opened, self._opened = self._opened, {}
            self._users.clear()
        for one in opened.values():
            one.close()

    def _given_up(self, fingerprint: str) -> None:
        with self._lock:
            self._users[fingerprint] = self._users.get(fingerprint, 1) - 1
            if self._users[fingerprint] > 0 or fingerprint not in self._opened:
                return
            left = dict(self._opened)
            one = left.pop(fingerprint)
            self._opened = left
        one.close()
        log.info("serve.set_closed", set=fingerprint)


class _Kept:
    """A model that says when it is closed; it takes tensors if the model does."""

    def __init__(self, model: Model, on_close: Callable[[], None]) -> None:
        self._model = model
        self._on_close: Callable[[], None] | None = on_close

    @property
    def ref(self) -> ModelRef:
        return self._model.ref

    def retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        return self._model.retrieve(users, exclude, k)

    def rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemsShown
    ) -> NDArray[np.float32]:
        return self._model.rank(users, candidates, items)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        return self._tensors().signatures

    def predict(self, signature: str, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        return self._tensors().predict(signature, inputs, rows)

    def _tensors(self) -> TensorModel:
        if not isinstance(self._model, TensorModel):
            # The error that says that this is no TensorModel either.
            raise AttributeError("the model takes no tensors")  # noqa: TRY004
        return self._model

    def close(self) -> None:
        self._model.close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """The part of a batch that one service answers."""

    service: Service
    index: Sequence[int]  # places in the batch
    ready: Ready
    shadow: tuple[Service, Ready] | None = None  # the shadow is of another set: prepared for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """n requests, shared out under a deployment."""

    asked: Sequence[Asked]
    deployment: Deployment
    shares: Sequence[_Share]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedScores:
    """What the models of each share gave."""

    asked: Sequence[Asked]
    done: Sequence[tuple[_Share, Done]]


class SetRouter:
    """Implements the consumer's `Steps` on the services of several feature sets."""

    def __init__(self, sets: SetServices, live: Live, pick: Pick = lambda one: one.service) -> None:
        """`pick`: which of a set's services."""
        self._sets = sets
        self._live = live
        self._pick = pick

    def answer(self, asked: Sequence[Asked]) -> Answers:
        """Exactly one answer for each request."""
        return self.finish(self.score(self.prepare(asked)))

    def prepare(self, asked: Sequence[Asked]) -> Routed:
        """Share the requests out, and let each service read and assemble its own."""
        with self._live.use() as deployment:
            return self._routed(asked, deployment)

    def score(self, routed: Routed) -> RoutedScores:
        """Call the models. A batch that a swap has overtaken is shared out anew."""
        with self._live.use() as deployment:
            if deployment is not routed.deployment and self._moved(routed, deployment):
                routed = self._routed(routed.asked, deployment)
            done = [(share, self._scored(share, deployment)) for share in routed.shares]
        return RoutedScores(asked=routed.asked, done=done)

    def modelled(self, scores: RoutedScores) -> int:
        """How many of the requests a model was asked for."""
        return sum(share.service.modelled(done) for share, done in scores.done)

    def finish(self, scores: RoutedScores) -> Answers:
        """Put the answers together, in the order of the requests."""
        if len(scores.done) == 1 and len(scores.done[0][0].index) == len(scores.asked):
            share, done = scores.done[0]
            return share.service.finish(done)
        closed: dict[int, Recommendation] = {}
        parts: list[tuple[Sequence[int], Answered]] = []
        dead: list[Bad] = []
        for share, done in scores.done:
            found = share.service.finish(done)
            closed |= {share.index[i]: answer for i, answer in found.closed.items()}
            parts += [([share.index[i] for i in at], part) for at, part in found.parts]
            dead += found.dead
        return Answers(n=len(scores.asked), closed=closed, parts=parts, dead=dead)

    def _routed(self, asked: Sequence[Asked], deployment: Deployment) -> Routed:
        shares = []
        for service, index in self._services(asked, deployment):
            part = asked if len(index) == len(asked) else [asked[i] for i in index]
            shares.append(
                _Share(
                    service=service,
                    index=index,
                    ready=service.prepare(part),
                    shadow=self._shadow(service, part, deployment),
                )
            )
        return Routed(asked=asked, deployment=deployment, shares=shares)

    def _services(
        self, asked: Sequence[Asked], deployment: Deployment
    ) -> list[tuple[Service, Sequence[int]]]:
        """Which service answers which requests; those without a model go to the own one."""
        serving = {name: self._pick(one) for name, one in self._sets.serving().items()}
        everything = range(len(asked))
        release = deployment.release
        own, mine = next(iter(serving.items()))
        if len(serving) == 1 or release is None:
            return [(mine, everything)]
        stable = _set_of(deployment, release.stable) or own
        canary = _set_of(deployment, release.canary) or stable
        by_set: dict[str, Sequence[int]] = {stable: everything}
        if canary != stable:
            users = hash_ids([one.request.user_id for one in asked])
            chosen = arms(release, users) == ARMS.index(Arm.CANARY)
            by_set = {
                stable: np.flatnonzero(~chosen).tolist(),
                canary: np.flatnonzero(chosen).tolist(),
            }
        return [(serving.get(name, mine), index) for name, index in by_set.items() if index]

    def _shadow(
        self, service: Service, asked: Sequence[Asked], deployment: Deployment
    ) -> tuple[Service, Ready] | None:
        """The requests as the shadow version reads them, if it reads another set."""
        version = deployment.release.shadow if deployment.release else 0
        wanted = _set_of(deployment, version)
        found = self._sets.serving().get(wanted) if wanted else None
        other = None if found is None else self._pick(found)
        if other is None or other is service:
            return None
        return other, other.prepare(asked)

    def _moved(self, routed: Routed, deployment: Deployment) -> bool:
        """Whether the batch would be shared out otherwise now."""
        now = self._services(routed.asked, deployment)
        before = [(share.service, list(share.index)) for share in routed.shares]
        return [(service, list(index)) for service, index in now] != before

    def _scored(self, share: _Share, deployment: Deployment) -> Done:
        done = share.service.score_by(share.ready, deployment)
        if share.shadow is None or not done.served:
            return done
        other, ready = share.shadow
        found = other.shadows(ready, deployment)
        places = {place: at for at, place in enumerate(done.prepared.index)}
        shadows: dict[int, Shadow] = {
            places[place]: one for place, one in found.items() if place in places
        }
        return replace(done, shadows=shadows)


def _set_of(deployment: Deployment, version: int) -> str | None:
    """The feature set of a version that is in memory."""
    model = deployment.models.get(version)
    return None if model is None else model.ref.fingerprint
