"""
One training job, from an order to a verdict: snapshot, check, train, evaluate, gate, publish.

The job's folder belongs to its idempotency key. Its result is written there in one step, last; a
job that crashed is run again from its start, and a version that it had published already is found
by its key: for one order nothing is published twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import audit_record
from features.declare import FeatureSet, declared
from features.disk import place
from features.examples import Examples, take
from inference.model import ModelRef
from inference.registry import FolderRegistry, ModelFacts
from ingest.clock import Clock
from ingest.settings import Settings
from retrain.assessment import (
    Assessment,
    Judges,
    assess_folder,
    assess_popularity,
    assess_version,
    popular,
)
from retrain.gate import DEMO_GATE, Audited, GatePolicy, Refuse, judge
from retrain.holdout import EvaluationPolicy, fair, hold_out
from retrain.order import JobOrder, JobResult, Status
from retrain.publish import JOB_KEY, publish, published_by, write_metrics
from retrain.recipe import DEMO_TRAIN, TrainPolicy
from retrain.report import Integrity
from retrain.roles import history_items
from retrain.snapshot import (
    Replay,
    SanityPolicy,
    Snapshot,
    Span,
    defaulted,
    file_problems,
    problems,
    read,
    take_snapshot,
)
from retrain.split import Split, is_positive, split
from schemas.errors import Misconfigured, ModelFault, Refused
from schemas.events import Attribute, Measure

JOBS = ".jobs"  # below the models' folder; no version can have this name
RESULT = "result.json"
CUT_MS = "cut_ms"  # in a manifest's data: what is older was trained on
_SAMPLE = 1_000  # logged requests that exported and trained model are compared on

Listener = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPolicy:
    """All that a job goes by."""

    train: TrainPolicy = field(default_factory=TrainPolicy)
    evaluation: EvaluationPolicy = field(default_factory=EvaluationPolicy)
    gate: GatePolicy = field(default_factory=GatePolicy)
    sanity: SanityPolicy = field(default_factory=SanityPolicy)


JOB_POLICIES = {
    "production": JobPolicy(),
    "demo": JobPolicy(train=DEMO_TRAIN, gate=DEMO_GATE),
}


def policy_of(profile: str) -> JobPolicy:
    """
    The constants of a profile.

    >>> policy_of("nightly")
    Traceback (most recent call last):
    schemas.errors.Misconfigured: unknown profile 'nightly': one of demo, production
    """
    if profile not in JOB_POLICIES:
        raise Misconfigured(
            f"unknown profile {profile!r}: one of {', '.join(sorted(JOB_POLICIES))}"
        )
    return JOB_POLICIES[profile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """Where a job works, and by what."""

    settings: Settings
    features: FeatureSet
    policy: JobPolicy
    clock: Clock
    tell: Listener = lambda line: None

    @property
    def registry(self) -> FolderRegistry:
        return FolderRegistry(
            self.settings.models_dir, profile=self.settings.profile, clock=self.clock
        )


def job_folder(settings: Settings, key: str) -> Path:
    """Where the job of this idempotency key keeps its result."""
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return settings.models_dir / JOBS / settings.model_name / name


def read_result(settings: Settings, key: str) -> JobResult | None:
    """How the job of this key ended; None while there is no result."""
    path = job_folder(settings, key) / RESULT
    return JobResult.from_json(path.read_text()) if path.exists() else None


def in_work(settings: Settings, key: str) -> bool:
    """Whether some process is at this job now."""
    path = job_folder(settings, key) / "lock"
    if not path.exists():
        return False
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def run(order: JobOrder, shop: Shop) -> JobResult:
    """
    Do the job, unless it is done.

    Raises:
        Refused: another process is at this very job.
        Misconfigured: a person must act before any job can work.
    """
    folder = job_folder(shop.settings, order.key)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, order):
        done = read_result(shop.settings, order.key)
        if done is not None:
            return done
        version = published_by(shop.registry, shop.settings.model_name, order.key)
        if version:
            result = JobResult(key=order.key, status=Status.PUBLISHED, version=version)
        else:
            result = _Job(order, shop, folder).result()
        _write(folder / RESULT, result.to_json())
        return result


class _Job:
    """One run of one order. Each step is a method; the first that cannot go on ends it."""

    def __init__(self, order: JobOrder, shop: Shop, folder: Path) -> None:
        self._order, self._shop, self._folder = order, shop, folder
        self._started = shop.clock.monotonic_s()
        self._snapshot: Snapshot | None = None
        self._measures: list[Measure] = []
        self._cut_ms = 0

    def result(self) -> JobResult:
        """Every end is a value; only what a person must mend is raised."""
        try:
            return self._data()
        except Misconfigured:
            raise
        except (Refused, ModelFault) as error:
            return self._end(Status.REFUSED, str(error))

    def _data(self) -> JobResult:
        shop, order = self._shop, self._order
        shop.tell("taking a snapshot of the archive")
        self._snapshot = take_snapshot(place(shop.settings.archive_dir))
        if found := tuple(file_problems(self._snapshot, shop.features)):
            return self._end(Status.REJECTED_DATA, *found)
        shop.tell(f"reading {self._snapshot.records} examples")
        for name, count in defaulted(self._snapshot, shop.features).items():
            shop.tell(f"{count} of them are older than the feature {name}: they get its default")
        until = order.train_until or shop.clock.now_ms()
        try:
            examples = read(self._snapshot, shop.features, *self._wanted(until))
        except Refused as error:
            return self._end(Status.REJECTED_DATA, str(error))
        if found := tuple(problems(examples, shop.features, shop.policy.sanity, until)):
            return self._end(Status.REJECTED_DATA, *found)
        self._took("read_s")
        return self._trained(examples)

    def _wanted(self, until_ms: int) -> tuple[Span, Replay | None]:
        """What to learn; and, after a change, how much of what came before it again."""
        policy, order, recent = self._shop.policy.train, self._order, self._order.recent_from_ms
        span = Span(from_ms=order.train_from, until_ms=until_ms + 1, most=policy.most_examples)
        if recent is None:
            return span, None
        return span, Replay(recent_from_ms=recent, most=policy.replay_most, seed=policy.seed)

    def _trained(self, examples: Examples) -> JobResult:
        from retrain.export import Sample, export  # noqa: PLC0415 - loads TensorFlow
        from retrain.train import Failed, Progress, train  # noqa: PLC0415

        shop = self._shop
        positive, recent = is_positive(examples.labels), self._order.recent_from_ms
        parts = split(examples.event_time, positive, shop.policy.train, recent)
        self._cut_ms = parts.cut_ms
        if not len(parts.train):
            return self._end(Status.INSUFFICIENT, "nothing is left to train on before the holdout")

        def told(at: Progress) -> None:
            shop.tell(f"epoch {at.epoch} of {at.epochs}: loss {at.loss:.3f}, norm {at.norm:.2f}")

        trained = train(
            examples,
            parts.train,
            shop.features,
            shop.policy.train,
            recent_from_ms=recent,
            listener=told,
        )
        if isinstance(trained, Failed):
            status = Status.INSUFFICIENT if trained.insufficient else Status.FAILED
            return self._end(status, trained.reason)
        self._took("train_s")
        shop.tell("exporting")
        some = take(examples, _sampled(examples, shop.policy.train.seed))
        sample = Sample(
            users=some.users,
            seen=history_items(shop.features, some.users.longs),
            candidates=some.item_hash,
            items=some.items,
        )
        staging = self._folder / "staging"
        shutil.rmtree(staging, ignore_errors=True)  # of a run that crashed
        integrity = export(trained.network, shop.features, sample, staging)
        self._took("export_s")
        return self._assessed(examples, parts, staging, integrity)

    def _assessed(
        self, examples: Examples, parts: Split, staging: Path, integrity: Integrity
    ) -> JobResult:
        shop, settings = self._shop, self._shop.settings
        known = popular(examples, parts.train)
        try:
            holdout = hold_out(
                fair(take(examples, parts.holdout), shop.policy.gate.least_requests),
                shop.features,
                shop.policy.evaluation,
                head=known.head,
            )
        except Refused as error:
            return self._end(Status.INSUFFICIENT, str(error))
        judges = Judges(features=shop.features, policy=shop.policy.evaluation, clock=shop.clock)
        champion = self._champion()
        shop.tell(f"evaluating on {len(holdout)} requests, champion: version {champion or 'none'}")
        fingerprint = shop.features.fingerprint
        ref = ModelRef(name=settings.model_name, version=0, fingerprint=fingerprint)
        found = Assessment(
            candidate=assess_folder(staging, ref, holdout, judges, integrity),
            champion=assess_version(
                shop.registry, settings.model_name, champion, settings.keys_dir, (holdout, judges)
            )
            if champion
            else None,
            popularity=assess_popularity(known, holdout, judges),
        )
        self._took("evaluate_s")
        return self._judged(found, staging, champion)

    def _judged(self, found: Assessment, staging: Path, champion: int) -> JobResult:
        shop, settings = self._shop, self._shop.settings
        verdict = judge(
            found.candidate,
            found.champion,
            found.popularity,
            shop.policy.gate,
            approval=self._order.approval,
            audit=self._audited(),
            seed=shop.policy.evaluation.seed,
        )
        self._measures += verdict.measures
        write_metrics(staging, _metrics(found, self._measures))
        if isinstance(verdict, Refuse):
            shutil.rmtree(staging, ignore_errors=True)
            status = Status.INSUFFICIENT if verdict.insufficient else Status.REFUSED
            return self._end(status, *map(str, verdict.reasons))
        shop.tell("publishing")
        facts = ModelFacts(
            name=settings.model_name,
            fingerprint=shop.features.fingerprint,
            profile=settings.profile,
            created_at=shop.clock.now_ms(),
            parent=champion,
            data=tuple(self._origin()),
            metrics=tuple(self._measures),
            declaration=declared(shop.features),
        )
        version = publish(verdict, staging, facts, shop.registry, settings.keys_dir)
        shutil.rmtree(staging, ignore_errors=True)
        return self._end(Status.PUBLISHED, version=version)

    def _audited(self) -> Audited | None:
        shop = self._shop
        record = audit_record.load(shop.settings.models_dir, shop.features.fingerprint)
        if record is None:
            return None
        return Audited(record=record, age_ms=max(0, shop.clock.now_ms() - record.at_ms))

    def _champion(self) -> int:
        """The version to be compared with; 0: none."""
        if self._order.champion is not None:
            return self._order.champion
        known = self._shop.registry.versions(self._shop.settings.model_name)
        return max((one.version for one in known if not one.quarantined), default=0)

    def _origin(self) -> Iterator[Attribute]:
        """What the version was made from, for its manifest."""
        order, snapshot = self._order, self._snapshot
        approval = order.approval
        named = {
            JOB_KEY: order.key,
            "reason": order.reason,
            "snapshot": snapshot.id if snapshot else "",
            "manifests": " ".join(snapshot.manifests) if snapshot else "",
            "train_from": str(order.train_from),
            "train_until": str(order.train_until),
            CUT_MS: str(self._cut_ms),
            "approved_by": approval.by if approval else "",
        }
        for name, value in named.items():
            if value:
                yield Attribute(name=name, value=value)

    def _end(self, status: Status, *reasons: str, version: int = 0) -> JobResult:
        return JobResult(
            key=self._order.key,
            status=status,
            version=version,
            reasons=reasons,
            measures=tuple(self._measures),
            snapshot=self._snapshot.id if self._snapshot else "",
            profile=self._shop.settings.profile,
        )

    def _took(self, name: str) -> None:
        """Note the seconds since the last note."""
        now = self._shop.clock.monotonic_s()
        self._measures.append(Measure(name=name, value=round(now - self._started, 3)))
        self._started = now


def _sampled(examples: Examples, seed: int) -> NDArray[np.int64]:
    """Some examples, in order, the same for the same data and seed."""
    random = np.random.default_rng(seed)
    n = min(_SAMPLE, len(examples))
    return np.sort(random.choice(len(examples), n, replace=False))


def _metrics(found: Assessment, measures: list[Measure]) -> dict[str, Any]:
    return {
        "candidate": found.candidate.summary(),
        "champion": found.champion.summary() if found.champion else None,
        "popularity": found.popularity.summary(),
        "measures": {m.name: m.value for m in measures},
    }


@contextmanager
def _alone(folder: Path, order: JobOrder) -> Iterator[None]:
    """Hold the job's lock; a process that dies lets go of it."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another process is at the training {order.key!r}") from None
        yield


def _write(path: Path, text: str) -> None:
    """Whole and durable under its name, or not there."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
