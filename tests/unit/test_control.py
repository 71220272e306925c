"""The controller over an in-memory log: what it writes appears together, and restarts go on."""

from threading import Event
from typing import Any

import pytest

from inference.release import Why, first, signed, verify_chain
from inference.signature import SigningKey
from ingest.clock import ManualClock
from ingest.log import Outgoing, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer, MemorySource, MemoryTransactionalProducer
from ingest.topics import Topics, topic_specs
from retrain.campaign import Accepted, Action, Outcome, State
from retrain.canary import RolloutPolicy
from retrain.control import Controller, Wiring
from retrain.drift.alerts import ACT
from retrain.steps import Campaign
from retrain.trigger import TriggerPolicy
from schemas.codec import Codec
from schemas.errors import PositionMoved, Refused
from schemas.events import (
    Arm,
    DriftAlert,
    EventType,
    Measure,
    Recommendation,
    Release,
    ReleaseTransition,
    RetrainTrigger,
    Shadow,
    Status,
    UserEvent,
)
from schemas.registry import MemoryRegistry

TOPICS = Topics("")
NOW = 1_700_000_000_000
UNSEEN = Shadow(version=2, item_ids=(), scores=(), latency_us=1)


class ScriptedTrainer:
    """Ends every training with the same outcome."""

    def __init__(self, outcome: Outcome | None) -> None:
        self.result = outcome
        self.started: list[RetrainTrigger] = []
        self.quarantined: list[int] = []

    def start(self, trigger: RetrainTrigger, champion: int) -> None:
        assert champion == 1, "the version that serves"
        self.started.append(trigger)

    def outcome(self, key: str) -> Outcome | None:
        return self.result

    def quarantine(self, version: int, reason: str) -> None:
        self.quarantined.append(version)


class World:
    """A log with a first release, and what is needed to act on it."""

    def __init__(self) -> None:
        self.clock = ManualClock(NOW)
        self.log = MemoryLog()
        self.log.create_topics(topic_specs("", 2, replay=False))
        self.registry = MemoryRegistry()
        self.key = SigningKey.generate()
        self.trainer = ScriptedTrainer(Accepted(version=2))
        self.producer = MemoryProducer(self.log)
        release = first("m", 1, Why(at_ms=NOW, reason="first"))
        self.put(TOPICS.model_releases, Release, "m", signed(release, self.key))

    def put(self, topic: str, kind: type, key: str, *values: object) -> None:
        codec = Codec(self.registry, kind, topic)
        for value in values:
            self.producer.send(
                Outgoing(
                    topic=topic,
                    key=key.encode(),
                    value=codec.encode(value),
                    timestamp_ms=self.clock.now_ms(),
                )
            )

    def read(self, topic: str, kind: type) -> list[Any]:
        codec, source = Codec(self.registry, kind, topic), MemorySource(self.log)
        source.assign({TopicPartition(topic, p): 0 for p in range(self.log.partitions(topic))})
        found: list[Any] = []
        while (batch := source.poll(1_000, 0.0)) is not None:
            found += [codec.decode(v) for v in batch.values if v is not None]
        return found

    def controller(self) -> Controller:
        wiring = Wiring(
            log=self.log,
            source=MemorySource(self.log),
            producer=MemoryTransactionalProducer(self.log, "control-m"),
            registry=self.registry,
            topics=TOPICS,
            clock=self.clock,
            key=self.key,
            trainer=self.trainer,
        )
        campaign = Campaign(
            model_name="m",
            profile="demo",
            surface="",
            targets=(EventType.CLICK,),
            trigger=TriggerPolicy(cooldown_ms=0, least_lists=5, least_positives=2),
            rollout=RolloutPolicy(
                shadow_answers=10, step_answers=5, least_step_ms=0, shares=(2_500,)
            ),
        )
        return Controller(wiring, campaign)

    def run(self, until: State, controller: Controller | None = None) -> list[Action]:
        """Run until a state is entered."""
        stop, actions = Event(), []
        running = controller or self.controller()

        def on_action(action: Action) -> None:
            actions.append(action)
            if running.situation.state == until:
                stop.set()

        running.run(stop, on_action)
        return actions

    def alert(self) -> None:
        alert = DriftAlert(
            alert_id="a1",
            model_name="m",
            severity=ACT,
            stream="features and labels",
            subject="label_click",
            window_start=NOW,
            window_end=NOW,
            detected_at=NOW,
            profile="demo",
            fingerprint="f",
            model_version=1,
            surface="",
            measures=(Measure(name="changed_at_ms", value=float(NOW)),),
            message="drift",
        )
        self.put(TOPICS.drift_alerts, DriftAlert, "m", alert)

    def traffic(self, lists: int, clicks: int, **changes: Any) -> None:
        ordinary: dict[str, Any] = {
            "event_time": NOW + 1_000,
            "status": Status.OK,
            "model_version": 1,
            "arm": Arm.STABLE,
        }
        answers = [
            Recommendation(request_id=f"r{i}", user_id=f"u{i}", **(ordinary | changes))
            for i in range(lists)
        ]
        events = [
            UserEvent(
                event_id=f"e{i}",
                user_id=f"u{i}",
                event_type=EventType.CLICK,
                event_time=NOW + 2_000,
                request_id=f"r{i}",
            )
            for i in range(clicks)
        ]
        self.put(TOPICS.recommendations, Recommendation, "u", *answers)
        self.put(TOPICS.user_events, UserEvent, "u", *events)


@pytest.fixture
def world() -> World:
    return World()


def to_shadow(world: World) -> None:
    world.alert()
    world.traffic(lists=5, clicks=2)
    world.run(State.SHADOW)
    world.clock.advance(1)


def test_an_alarm_with_data_trains_and_shadows_a_signed_release(world: World) -> None:
    to_shadow(world)
    [trigger] = world.trainer.started
    assert trigger.idempotency_key == "drift:a1#0"
    assert [r.shadow for r in world.read(TOPICS.model_releases, Release)] == [0, 2]
    links = world.read(TOPICS.release_log, ReleaseTransition)
    assert [x.to_state for x in links][-3:] == ["TRAINING", "GATED", "SHADOW"]
    verify_chain(links)


def test_a_restart_in_every_state_goes_on_to_stable(world: World) -> None:
    to_shadow(world)
    world.traffic(lists=10, clicks=0, shadow=UNSEEN)
    world.run(State.CANARY)
    world.clock.advance(1)
    world.traffic(lists=5, clicks=0, model_version=2, arm=Arm.CANARY)
    world.run(State.STABLE)
    release = world.read(TOPICS.model_releases, Release)[-1]
    assert (release.stable, release.previous, release.canary) == (2, 1, 0)
    assert len(world.trainer.started) == 1, "a restart does not train again"


def test_a_faulty_canary_is_rolled_back_and_quarantined(world: World) -> None:
    to_shadow(world)
    world.traffic(lists=10, clicks=0, shadow=UNSEEN)
    world.run(State.CANARY)
    world.clock.advance(1)
    world.traffic(lists=8, clicks=0, model_version=2, arm=Arm.CANARY, status=Status.FALLBACK)
    world.run(State.IDLE)
    release = world.read(TOPICS.model_releases, Release)[-1]
    assert (release.stable, release.canary, release.shadow) == (1, 0, 0)
    assert world.trainer.quarantined == [2]


def test_a_training_cut_short_is_taken_up_with_its_own_order(world: World) -> None:
    world.trainer.result = None
    world.alert()
    world.traffic(lists=5, clicks=2)
    world.run(State.TRAINING)
    world.trainer = ScriptedTrainer(Accepted(version=2))
    world.run(State.GATED)
    [again] = world.trainer.started
    assert again.idempotency_key == "drift:a1#0"
    assert again.alert_ids == ("a1",)


def test_a_second_controller_fences_the_first(world: World) -> None:
    world.alert()
    older = world.controller()
    world.run(State.CONFIRMED, world.controller())
    world.traffic(lists=5, clicks=2)
    with pytest.raises(PositionMoved):
        world.run(State.SHADOW, older)


def test_an_altered_release_log_is_refused(world: World) -> None:
    link = ReleaseTransition(
        model_name="m",
        sequence=1,
        from_state="IDLE",
        to_state="STABLE",
        version=9,
        generation=9,
        at=0,
        reason="forged",
        previous_hash=b"x",
        hash=b"y",
    )
    world.put(TOPICS.release_log, ReleaseTransition, "m", link)
    with pytest.raises(Refused, match="link 1 does not follow"):
        world.run(State.STABLE)
