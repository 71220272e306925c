"""
The monitor at work: reads answers and events, decides windows, publishes alerts.

It keeps no state of its own: at every start it folds the topics again from their first offset and
raises the same alerts with the same ids; those already published are not published twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event

import numpy as np
import structlog

from features.declare import FeatureSet
from ingest.clock import Clock
from ingest.log import Log, Outgoing, Producer, RecordBatch, Source, TopicPartition
from ingest.placement import partitions_of
from ingest.reading import until_end
from ingest.topics import Topics, check_partitions
from retrain.drift.alerts import Origin, alerts_of
from retrain.drift.cohorts import Answers, Cohorts, Reactions
from retrain.drift.monitor import Monitor, MonitorPolicy, WindowVerdict
from retrain.drift.streams import (
    ANSWER_COLUMNS,
    REACTION_COLUMNS,
    answers_of,
    reactions_of,
    streams_of,
)
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.events import DriftAlert, EventType, Recommendation, UserEvent
from schemas.registry import Registry

logger = structlog.get_logger()

POLL_S = 0.1
PACE_S = 0.05  # between batches: one of many records costs little more than one of a few
BATCH_RECORDS = 5_000
IDLE_S = 2.0  # a source read to its end, and quiet for this long, is not waited for
FLUSH_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What the watch reads from and writes to."""

    log: Log
    source: Source
    alerts: Source  # reads what has been published already
    producer: Producer
    registry: Registry
    topics: Topics
    clock: Clock


class Watch:
    """Folds the log into verdicts and publishes alerts. One instance a model and surface."""

    def __init__(
        self,
        wiring: Wiring,
        features: FeatureSet,
        targets: tuple[EventType, ...],
        policy: MonitorPolicy,
        origin: Origin,
    ) -> None:
        self._wiring, self._features, self._targets = wiring, features, targets
        self._origin = origin
        topics = wiring.topics
        self._partitions = check_partitions(wiring.log, topics)
        self._sources = [
            TopicPartition(topic, p)
            for topic in (topics.user_events, topics.recommendations)
            for p in range(self._partitions)
        ]
        self._cohorts = Cohorts(policy, self._sources)
        self._monitor = Monitor(streams_of(features), policy)
        self._answers = ColumnReader(wiring.registry, Recommendation)
        self._events = ColumnReader(wiring.registry, UserEvent)
        self._codec = Codec(wiring.registry, DriftAlert, topics.drift_alerts)
        self._published: set[str] = set()
        self._before: WindowVerdict | None = None
        self._heard_s = dict.fromkeys(self._sources, wiring.clock.monotonic_s())
        self._behind: dict[TopicPartition, int] = {}  # source -> end of what was there at the start

    @property
    def windows_to_go(self) -> int:
        """Windows until the reference freezes."""
        return self._monitor.windows_to_go

    def run(self, stop: Event, on_window: Callable[[WindowVerdict], None]) -> None:
        """Watch until `stop` is set. Retryable errors propagate: a restart folds again."""
        self._published = set(self._already_published())
        bounds = {
            topic: self._wiring.log.bounds(topic)
            for topic in {source.topic for source in self._sources}
        }
        starts = {s: bounds[s.topic][s.partition][0] for s in self._sources}
        ends = {s: bounds[s.topic][s.partition][1] for s in self._sources}
        self._behind = {s: end for s, end in ends.items() if end > starts[s]}
        self._wiring.source.assign(starts)
        while not stop.is_set():
            batch = self._wiring.source.poll(BATCH_RECORDS, POLL_S)
            if batch is not None:
                self._read(batch)
                if len(batch) < BATCH_RECORDS // 10:
                    self._wiring.clock.sleep(PACE_S)
            self._mark_idle()
            for start_ms, seen in self._cohorts.ripe():
                verdict = self._monitor.window(start_ms, seen)
                self._publish(verdict)
                on_window(verdict)

    def _read(self, batch: RecordBatch) -> None:
        source = TopicPartition(batch.topic, batch.partition)
        values = self._placed(batch)
        found: Answers | Reactions
        if batch.topic == self._wiring.topics.recommendations:
            frame = self._answers.read(values, ANSWER_COLUMNS).frame
            surface = self._origin.surface or None
            found = answers_of(frame, self._features, surface)
            self._cohorts.answers(source, found)
        else:
            frame = self._events.read(values, REACTION_COLUMNS).frame
            found = reactions_of(frame, self._targets)
            self._cohorts.reactions(source, found)
        # What is not watched moves no source's time: then nobody must wait for it either.
        if len(found.request_ids):
            self._heard_s[source] = self._wiring.clock.monotonic_s()
        if batch.next_offset >= self._behind.get(source, 0):
            self._behind.pop(source, None)

    def _placed(self, batch: RecordBatch) -> list[bytes | None]:
        """Values, without records that lie in another partition than their key's."""
        keys = [key or b"" for key in batch.keys]
        here = partitions_of(keys, self._partitions) == batch.partition if keys else np.zeros(0)
        return [value if ok else None for value, ok in zip(batch.values, here, strict=True)]

    def _mark_idle(self) -> None:
        now = self._wiring.clock.monotonic_s()
        quiet = {s for s, heard in self._heard_s.items() if now - heard > IDLE_S}
        self._cohorts.idle(quiet - self._behind.keys())

    def _publish(self, verdict: WindowVerdict) -> None:
        now = self._wiring.clock.now_ms()
        fresh = [
            alert
            for alert in alerts_of(self._before, verdict, self._origin, now)
            if alert.alert_id not in self._published
        ]
        self._before = verdict
        for alert in fresh:
            logger.warning("drift.alert", severity=alert.severity, message=alert.message)
            self._wiring.producer.send(
                Outgoing(
                    topic=self._wiring.topics.drift_alerts,
                    key=alert.model_name.encode(),
                    value=self._codec.encode(alert),
                )
            )
            self._published.add(alert.alert_id)
        if fresh:
            self._wiring.producer.flush(FLUSH_S)

    def _already_published(self) -> Iterator[str]:
        topic = self._wiring.topics.drift_alerts
        for batch in until_end(self._wiring.log, self._wiring.alerts, [topic]):
            for value in batch.values:
                if value is not None:
                    yield self._codec.decode(value).alert_id
