"""
Which versions are in memory and which of them serve: decided purely, carried out beside the
live models.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import structlog

from inference.experiments import compared
from inference.live import Deployment, Live
from inference.model import Model
from inference.release import accepted
from inference.signature import Keyring
from ingest.clock import Clock
from ingest.log import Log, Source, TopicPartition
from ingest.metrics import Metrics
from schemas.codec import Codec
from schemas.errors import ModelFault, Refused, Rejected, Retryable
from schemas.events import Release

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Load:
    """Bring this version into memory, verified and warmed."""

    version: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Let this release serve, with these versions."""

    release: Release
    versions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Unload:
    """Nobody needs this version any more."""

    version: int


Action: TypeAlias = Load | Swap | Unload


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What serves now."""

    release: Release | None = None
    versions: frozenset[int] = frozenset()


def actions(
    release: Release | None,
    serving: Serving,
    resident: Collection[int],
    failed: Collection[int],
) -> tuple[Action, ...]:
    """
    What to do next, in order; loads come last, since they take seconds.

    A release serves when its stable version is in memory and its canary, its shadow and those of
    its experiments are there or have failed. Until then what serves goes on. `previous` stays in
    memory for a rollback.

    >>> new = Release(model_name="m", generation=2, stable=2, previous=1)
    >>> old = Serving(versions=frozenset({1}))
    >>> actions(new, old, resident={1}, failed=())
    (Load(version=2),)
    """
    if release is None:
        return ()
    wanted = [v for v in dict.fromkeys(_needed(release)) if v]
    done: list[Action] = []
    have = frozenset(v for v in wanted if v in resident)
    others = (release.canary, release.shadow, *compared(release))
    settled = all(v in resident or v in failed for v in others if v)
    first = serving.release is None  # serve at once: the others join later
    swap = (
        release.stable in resident
        and (release, have) != (serving.release, serving.versions)
        and (settled or first or release == serving.release)
    )
    if swap:
        done.append(Swap(release, have))
    kept = {*wanted, *(() if swap else serving.versions)}
    done += [Unload(v) for v in sorted(resident) if v not in kept]
    done += [Load(v) for v in wanted if v not in resident and v not in failed]
    return tuple(done)


def _needed(release: Release) -> tuple[int, ...]:
    return (
        *(release.stable, release.canary, release.shadow),
        *(*compared(release), release.previous),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """How long a version that failed is left alone: doubling from the first to the longest."""

    first_s: float = 1.0
    longest_s: float = 300.0

    def pause_s(self, failures: int) -> float:
        """Pause after so many failures in a row, at least 1."""
        doublings = min(failures - 1, 30)
        return float(min(self.longest_s, self.first_s * 2**doublings))


class ReleaseFeed:
    """The newest valid release of one model, read from model-releases."""

    def __init__(
        self,
        source: Source,
        codec: Codec[Release],
        model_name: str,
        keys: Keyring,
        clock: Clock,
    ) -> None:
        self._source = source
        self._codec = codec
        self._model_name = model_name
        self._keys = keys
        self._clock = clock
        self.current: Release | None = None
        self._ends: dict[int, int] = {}  # of partitions whose end at `open` is not reached yet

    @property
    def caught_up(self) -> bool:
        """Whether all that stood on the topic at `open` is read."""
        return not self._ends

    def open(self, known: Log) -> None:
        """Read the topic from its start."""
        topic = self._codec.topic
        bounds = known.bounds(topic)
        self._ends = {p: end for p, (first, end) in bounds.items() if end > first}
        self._source.assign({TopicPartition(topic, p): first for p, (first, _) in bounds.items()})

    def poll(self, timeout_s: float) -> bool:
        """Take in what came. True if there is a newer release."""
        batch = self._source.poll(100, timeout_s)
        before = self.current
        name = self._model_name.encode()
        for key, value in zip(batch.keys, batch.values, strict=True) if batch else ():
            if key == name and value is not None:
                self._take(value)
        if batch and batch.next_offset >= self._ends.get(batch.partition, 0):
            self._ends.pop(batch.partition, None)
        return self.current != before

    def _take(self, value: bytes) -> None:
        try:
            release = self._codec.decode(value)
            now_ms = self._clock.now_ms()
            self.current = accepted(self.current, release, self._keys, now_ms)
        except (Refused, Rejected) as error:
            log.error(  # noqa: TRY400 - the message is the point
                "release.refused", model=self._model_name, error=str(error)
            )


class Loader(Protocol):
    """Where versions come from."""

    def load(self, version: int) -> Model:
        """
        A verified and warmed model.

        Raises:
            Refused, ModelFault: this version must not serve; the message says why.
        """


@dataclass(slots=True)
class _Failure:
    count: int
    retry_at_s: float


class Reloader:
    """Carries the decisions out. One thread at a time: the one of `run`."""

    def __init__(
        self,
        feed: ReleaseFeed,
        loader: Loader,
        live: Live,
        clock: Clock,
        metrics: Metrics,
        back_off: BackOff | None = None,
    ) -> None:
        self._feed = feed
        self._loader = loader
        self._live = live
        self._clock = clock
        self._metrics = metrics
        self._back_off = back_off or BackOff()
        self._resident: dict[int, Model] = {}
        self._failures: dict[int, _Failure] = {}

    @property
    def resident(self) -> Mapping[int, Model]:
        """Versions in memory."""
        return self._resident

    def settled(self) -> bool:
        """Whether the newest release's stable version serves, or was refused, or there is none."""
        if not self._feed.caught_up:
            return False
        release, served = self._feed.current, self._live.deployment.release
        return release is None or served is not None or release.stable in self._failures

    def run(self, stop: threading.Event) -> None:
        """Follow the releases until told to stop; then give all models back."""
        while not stop.is_set():
            try:
                self.step(timeout_s=0.2)
            except Retryable as error:
                log.warning("release.unreachable", error=str(error))
                self._clock.sleep(0.5)
        self._live.exchange(Deployment())
        for version in list(self._resident):
            self._resident.pop(version).close()

    def step(self, timeout_s: float = 0.0) -> bool:
        """
        Read, decide, and act up to the first load. True if anything was done.

        Raises:
            Retryable: the releases or the registry could not be read.
        """
        if self._feed.poll(timeout_s):
            self._failures.clear()  # a new release is a new chance, at once
        done = False
        for action in self._next():
            done = True
            match action:
                case Swap(release, versions):
                    self._swap(release, versions)
                case Unload(version):
                    self._resident.pop(version).close()
                    log.info("model.unloaded", version=version)
                case Load(version):
                    self._load(version)
                    break  # seconds have passed: read and decide again
        return done

    def _next(self) -> tuple[Action, ...]:
        now_s = self._clock.monotonic_s()
        held_back = {v for v, failure in self._failures.items() if now_s < failure.retry_at_s}
        deployment = self._live.deployment
        serving = Serving(release=deployment.release, versions=frozenset(deployment.models))
        return actions(self._feed.current, serving, self._resident, held_back)

    def _swap(self, release: Release, versions: frozenset[int]) -> None:
        start_s = self._clock.monotonic_s()
        models = {v: self._resident[v] for v in versions}
        drained = self._live.exchange(Deployment(release=release, models=models))
        self._metrics.observe("serve.swap_stall_s", self._clock.monotonic_s() - start_s)
        self._metrics.gauge("serve.model_version", release.stable, arm="stable")
        self._metrics.gauge("serve.model_version", release.canary, arm="canary")
        log.info(
            "release.serving",
            generation=release.generation,
            stable=release.stable,
            canary=release.canary,
            share=release.canary_share,
            shadow=release.shadow,
            drained=drained,
        )

    def _load(self, version: int) -> None:
        start_s = self._clock.monotonic_s()
        try:
            self._resident[version] = self._loader.load(version)
        except Retryable:
            raise  # it is the registry's fault, not the version's
        except Exception as error:
            # Whatever it is: what serves goes on, and later releases and rollbacks are heard.
            if not isinstance(error, Refused | ModelFault):
                log.exception("model.load_broke", version=version)
            failures = self._failures.setdefault(version, _Failure(0, 0.0))
            failures.count += 1
            pause_s = self._back_off.pause_s(failures.count)
            failures.retry_at_s = self._clock.monotonic_s() + pause_s
            self._metrics.count("serve.versions_refused")
            log.error(  # noqa: TRY400 - the message is the point
                "model.refused", version=version, error=str(error), again_in_s=pause_s
            )
        else:
            self._failures.pop(version, None)
            took_s = round(self._clock.monotonic_s() - start_s, 3)
            log.info("model.loaded", version=version, took_s=took_s)
