"""What the demo sees of the running system: answers, alerts, releases, and how fresh rows are."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import Any

import numpy as np

from features.store import RowReader
from ingest.clock import Clock
from ingest.log import Delivered, Log, RecordBatch, Source, TopicPartition
from ingest.topics import Topics
from schemas.codec import Decoder
from schemas.events import DriftAlert, Recommendation, Release, ReleaseTransition
from schemas.registry import Registry

POLL_S = 0.1
PROBE_S = 0.002
PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Answered:
    """When an answer was seen, and by which version it was given."""

    at_s: float
    version: int
    surface: str
    status: str
    total_us: int


@dataclass(slots=True)
class Seen:
    """Everything observed so far; written by the observer, read by view and report."""

    answers: list[Answered] = field(default_factory=list)
    shares: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    alerts: list[DriftAlert] = field(default_factory=list)
    releases: list[tuple[int, Release]] = field(default_factory=list)  # wall ms, release
    transitions: list[ReleaseTransition] = field(default_factory=list)
    recent: deque[Answered] = field(default_factory=lambda: deque(maxlen=2_000))
    freshness_s: list[float] = field(default_factory=list)


class Observer(Thread):
    """Follows answers, alerts and releases from where the topics end now."""

    def __init__(
        self,
        log: Log,
        source: Source,
        registry: Registry,
        topics: Topics,
        clock: Clock,
        on_answer: Callable[[Recommendation, float], None],
    ) -> None:
        super().__init__(name="observer", daemon=True)
        self.seen = Seen()
        self.failure: Exception | None = None
        self._source, self._clock, self._on_answer = source, clock, on_answer
        self._stop_asked = Event()
        self._readers: dict[str, tuple[Decoder[Any], Callable[[Any, int], None]]] = {
            topics.recommendations: (Decoder(registry, Recommendation), self._answer),
            topics.drift_alerts: (Decoder(registry, DriftAlert), self._alert),
            topics.model_releases: (Decoder(registry, Release), self._release),
            topics.release_log: (Decoder(registry, ReleaseTransition), self._transition),
        }
        source.assign(
            {
                TopicPartition(topic, partition): end
                for topic in self._readers
                for partition, (_, end) in log.bounds(topic).items()
            }
        )

    def run(self) -> None:
        """Read until stopped; a failure is kept for `check`."""
        try:
            while not self._stop_asked.is_set():
                batch = self._source.poll(1_000, POLL_S)
                if batch is not None:
                    self._read(batch)
        except Exception as error:  # noqa: BLE001 - handed to the main thread by `check`
            self.failure = error

    def check(self) -> None:
        """Raise what ended the thread, if something did."""
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop_asked.set()
        self.join(10.0)

    def _read(self, batch: RecordBatch) -> None:
        decoder, take = self._readers[batch.topic]
        for value, at_ms in zip(batch.values, batch.timestamps_ms.tolist(), strict=True):
            if value is not None:
                take(decoder.decode(value), at_ms)

    def _answer(self, answer: Recommendation, _at_ms: int) -> None:
        at_s = self._clock.monotonic_s()
        stages = answer.latency_us
        one = Answered(
            at_s,
            answer.model_version,
            answer.surface or "",
            str(answer.status),
            stages.queue + stages.read + stages.assemble + stages.score,
        )
        self.seen.answers.append(one)
        self.seen.recent.append(one)
        self.seen.shares[answer.surface or "", answer.model_version, str(answer.arm)] += 1
        self._on_answer(answer, at_s)

    def _alert(self, alert: DriftAlert, _at_ms: int) -> None:
        self.seen.alerts.append(alert)

    def _release(self, release: Release, at_ms: int) -> None:
        self.seen.releases.append((at_ms, release))

    def _transition(self, link: ReleaseTransition, _at_ms: int) -> None:
        self.seen.transitions.append(link)


class Freshness(Thread):
    """Measures how long after its sending an event can be read in its row."""

    def __init__(self, store: RowReader, clock: Clock, seen: Seen) -> None:
        super().__init__(name="freshness", daemon=True)
        self._store, self._clock, self._seen = store, clock, seen
        self._probes: Queue[tuple[Delivered, float]] = Queue(maxsize=1)
        self._stop_asked = Event()

    def probe(self, place: Delivered, sent_s: float) -> None:
        """Measure this event, unless one is being measured."""
        if self._probes.empty():
            self._probes.put((place, sent_s))

    def run(self) -> None:
        """Wait for probes, and for the store to pass each."""
        while not self._stop_asked.is_set():
            try:
                place, sent_s = self._probes.get(timeout=POLL_S)
            except Empty:
                continue
            deadline_s = sent_s + PROBE_TIMEOUT_S
            while self._clock.monotonic_s() < deadline_s:
                position = self._store.positions([place.partition])[place.partition]
                if position is not None and position.next_offset > place.offset:
                    break
                self._clock.sleep(PROBE_S)
            self._seen.freshness_s.append(self._clock.monotonic_s() - sent_s)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop_asked.set()
        self.join(10.0)


class WindowLog:
    """The monitor's verdicts, from the JSON lines that it prints."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self._lock = Lock()
        self.windows: list[dict[str, float | int | str]] = []

    def read(self) -> None:
        """Take in what was printed since the last call."""
        with self._lock:
            if not self._path.exists():
                return
            with self._path.open("rb") as file:
                file.seek(self._at)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._at += len(line)
                    if line.startswith(b'{"window"'):
                        self.windows.append(json.loads(line))


def quantiles(values: list[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest; empty for no values.

    >>> quantiles([1.0, 2.0, 3.0])["p50"]
    2.0
    """
    if not values:
        return {}
    p50, p95, p99 = np.quantile(np.asarray(values), [0.5, 0.95, 0.99]).tolist()
    return {"p50": p50, "p95": p95, "p99": p99, "max": max(values), "count": float(len(values))}
