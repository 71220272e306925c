"""
The controller at work: from alerts to trainings to releases, one model at a time.

All it knows is folded from topics: the release log (situation), model-releases (what serves),
drift-alerts (alarms), answers and events (evidence). A release and its transition are written in
one Kafka transaction, whose id fences an older controller; so exactly one of old and new stands,
and a restart goes on where the log says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Protocol

import structlog

from inference.release import appended, signed
from inference.signature import SigningKey
from ingest.clock import Clock
from ingest.log import Log, Outgoing, RecordBatch, Source, TopicPartition, TransactionalProducer
from ingest.reading import until_end
from ingest.topics import Topics
from retrain.campaign import (
    Action,
    Facts,
    Outcome,
    Rejected,
    Rest,
    Situation,
    State,
    TakeOut,
    folded,
    plan,
)
from retrain.drift.alerts import ACT, CHANGED_AT_MS, CLEAR, DATA_QUALITY, LABELS_UNTRUSTED, WARN
from retrain.evidence import ANSWER_COLUMNS, EVENT_COLUMNS, Arms, Progress, positives_of
from retrain.steps import Campaign, Standing, writes
from retrain.trigger import Alarm, Seen
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.errors import Refused
from schemas.events import (
    DriftAlert,
    Recommendation,
    Release,
    ReleaseTransition,
    RetrainTrigger,
    UserEvent,
)
from schemas.registry import Registry

logger = structlog.get_logger()

POLL_S = 0.1
PACE_S = 0.05  # between batches: one of many records costs little more than one of a few
BATCH_RECORDS = 5_000


class Trainer(Protocol):
    """Runs one training at a time. Starting the same key again must not double its effect."""

    def start(self, trigger: RetrainTrigger, champion: int) -> None:
        """Begin, or take up again after a crash; `champion` is the version to beat."""

    def outcome(self, key: str) -> Outcome | None:
        """How the training of this key ended; None while it runs."""

    def quarantine(self, version: int, reason: str) -> None:
        """Mark a published version as never to be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What the controller reads from and writes to."""

    log: Log
    source: Source
    producer: TransactionalProducer
    registry: Registry
    topics: Topics
    clock: Clock
    key: SigningKey
    trainer: Trainer


class Alarms:
    """The alarms and incidents that stand: a fold of drift-alerts."""

    def __init__(self) -> None:
        self.warned = False
        self.alarm: Alarm | None = None
        self.incident = ""

    def add(self, alert: DriftAlert) -> None:
        """Take in one alert."""
        match alert.severity:
            case severity if severity == WARN:
                self.warned = True
            case severity if severity == ACT:
                changed = {m.name: m.value for m in alert.measures}.get(CHANGED_AT_MS)
                at = alert.window_start if changed is None else int(changed)
                self.alarm = Alarm(
                    alert_ids=(alert.alert_id,), changed_at_ms=at, version=alert.model_version
                )
            case severity if severity in (DATA_QUALITY, LABELS_UNTRUSTED):
                self.incident = alert.message
            case severity if severity == CLEAR and alert.stream == "quality":
                self.incident = ""
            case severity if severity == CLEAR:
                self.warned, self.alarm = False, None


class Controller:
    """Folds, plans, acts. One running instance a model; a second one fences the first."""

    def __init__(self, wiring: Wiring, campaign: Campaign) -> None:
        self._wiring, self._campaign = wiring, campaign
        topics, registry = wiring.topics, wiring.registry
        self._alerts = Codec(registry, DriftAlert, topics.drift_alerts)
        self._triggers = Codec(registry, RetrainTrigger, topics.retrain_triggers)
        self._releases = Codec(registry, Release, topics.model_releases)
        self._transitions = Codec(registry, ReleaseTransition, topics.release_log)
        self._answers = ColumnReader(registry, Recommendation)
        self._events = ColumnReader(registry, UserEvent)
        self._situation = Situation()
        self._last: ReleaseTransition | None = None
        self._release: Release | None = None
        self._alarms = Alarms()
        self._progress = Progress()
        self._arms = Arms(campaign.rollout.slow_factor)
        self._order: RetrainTrigger | None = None
        self._started = ""
        self._readers: dict[str, Callable[[RecordBatch], None]] = {
            topics.release_log: self._read_state,
            topics.model_releases: self._read_state,
            topics.retrain_triggers: self._read_state,
            topics.drift_alerts: self._read_alerts,
            topics.recommendations: self._read_answers,
            topics.user_events: self._read_events,
        }

    @property
    def situation(self) -> Situation:
        """Where the model stands."""
        return self._situation

    def run(self, stop: Event, on_action: Callable[[Action], None]) -> None:
        """
        Control until `stop` is set.

        Raises:
            PositionMoved: a newer controller took over.
            Refused: the release log was altered.
        """
        self._take_up()
        while not stop.is_set():
            batch = self._wiring.source.poll(BATCH_RECORDS, POLL_S)
            if batch is not None:
                self._read(batch)
                if len(batch) < BATCH_RECORDS // 10:
                    self._wiring.clock.sleep(PACE_S)
            action = plan(
                self._situation, self._facts(), self._campaign.trigger, self._campaign.rollout
            )
            if not isinstance(action, Rest):
                self._act(action)
                on_action(action)

    def _take_up(self) -> None:
        """Fold what stands, then read on from there; evidence and alarms from their start."""
        topics, log = self._wiring.topics, self._wiring.log
        state = (topics.release_log, topics.model_releases, topics.retrain_triggers)
        positions = {}
        for batch in until_end(log, self._wiring.source, state):
            self._read(batch)
            positions[TopicPartition(batch.topic, batch.partition)] = batch.next_offset
        for topic in (*state, topics.drift_alerts, topics.recommendations, topics.user_events):
            for p, (start, _) in log.bounds(topic).items():
                positions.setdefault(TopicPartition(topic, p), start)
        self._wiring.source.assign(positions)

    def _read(self, batch: RecordBatch) -> None:
        self._readers[batch.topic](batch)

    def _read_state(self, batch: RecordBatch) -> None:
        topics = self._wiring.topics
        for value in batch.values:
            if value is None:
                continue
            if batch.topic == topics.release_log:
                self._fold(self._transitions.decode(value))
            elif batch.topic == topics.model_releases:
                self._serving(self._releases.decode(value))
            else:
                self._ordered(self._triggers.decode(value))

    def _read_alerts(self, batch: RecordBatch) -> None:
        for value in batch.values:
            if value is not None:
                alert = self._alerts.decode(value)
                if alert.model_name == self._campaign.model_name:
                    self._alarms.add(alert)

    def _read_answers(self, batch: RecordBatch) -> None:
        read = self._answers.read(batch.values, ANSWER_COLUMNS)
        self._arms.answers(read.frame, batch.timestamps_ms[read.index])
        watched = self._on_surface(read.frame["surface"].to_list())
        self._progress.lists(read.frame["event_time"].to_numpy()[watched])

    def _read_events(self, batch: RecordBatch) -> None:
        frame = self._events.read(batch.values, EVENT_COLUMNS).frame
        self._progress.positives(
            positives_of(frame, self._campaign.targets, self._campaign.surface)
        )

    def _on_surface(self, surfaces: list[str | None]) -> list[bool]:
        wanted = self._campaign.surface
        return [not wanted or surface == wanted for surface in surfaces]

    def _fold(self, link: ReleaseTransition) -> None:
        known = self._last.sequence if self._last else 0
        if link.model_name != self._campaign.model_name or link.sequence <= known:
            return
        if link.previous_hash != (self._last.hash if self._last else b""):
            raise Refused(f"release log of {link.model_name}: link {link.sequence} does not follow")
        self._situation, self._last = folded(self._situation, link), link
        self._arms.begin(link.version, link.at)

    def _serving(self, release: Release) -> None:
        mine = release.model_name == self._campaign.model_name
        if mine and (self._release is None or release.generation > self._release.generation):
            self._release = release

    def _ordered(self, trigger: RetrainTrigger) -> None:
        if trigger.model_name == self._campaign.model_name:
            self._order = trigger

    def _facts(self) -> Facts:
        alarm = self._alarms.alarm
        if alarm and self._release and alarm.version != self._release.stable:
            alarm = None  # about a model that no longer serves
        lists, positives = self._progress.since(alarm.changed_at_ms) if alarm else (0, 0)
        training = self._situation.state == State.TRAINING
        return Facts(
            seen=Seen(
                now_ms=self._wiring.clock.now_ms(),
                alarm=alarm,
                incident=self._alarms.incident,
                lists_since_change=lists,
                positives_since_change=positives,
                trained_at_ms=self._situation.trained_at_ms,
                rejected_in_row=self._situation.rejected_in_row,
            ),
            warned=self._alarms.warned,
            outcome=self._outcome() if training else None,
            serving=self._release,
            challenger=self._arms.challenger,
            champion=self._arms.champion,
        )

    def _outcome(self) -> Outcome | None:
        """How the training ordered last ended. A restarted controller takes it up by its key."""
        if self._order is None or self._order.idempotency_key != self._situation.key:
            return Rejected(reasons=("the order of this training is not on the log",))
        if self._started != self._order.idempotency_key:
            self._started = self._order.idempotency_key
            self._wiring.trainer.start(self._order, self._release.stable if self._release else 0)
        return self._wiring.trainer.outcome(self._order.idempotency_key)

    def _act(self, action: Action) -> None:
        """Write what the action asks for in one transaction, then take it in."""
        standing = Standing(
            situation=self._situation,
            release=self._release,
            alert_ids=self._alarms.alarm.alert_ids if self._alarms.alarm else (),
            now_ms=self._wiring.clock.now_ms(),
        )
        written = writes(action, standing, self._campaign)
        if written is None:
            return
        link = appended(self._last, written.step)
        release = signed(written.release, self._wiring.key) if written.release else None
        topics = self._wiring.topics
        self._commit(
            {
                topics.release_log: self._transitions.encode(link),
                topics.model_releases: self._releases.encode(release) if release else None,
                topics.retrain_triggers: self._triggers.encode(written.trigger)
                if written.trigger
                else None,
            }
        )
        logger.info("release.step", to=link.to_state, version=link.version, reason=link.reason)
        self._fold(link)
        if release is not None:
            self._serving(release)
        if written.trigger is not None:
            self._ordered(written.trigger)
        if isinstance(action, TakeOut) and action.faulty:
            self._wiring.trainer.quarantine(action.version, action.reason)

    def _commit(self, values: dict[str, bytes | None]) -> None:
        producer, key = self._wiring.producer, self._campaign.model_name.encode()
        producer.begin()
        for topic, value in values.items():
            if value is not None:
                producer.send(Outgoing(topic=topic, key=key, value=value))
        producer.commit({}, None)
