"""The monitor at work over an in-memory log: what it counts, what it publishes, and how often."""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Event

import pytest

from features.declare import Drift, Feature, FeatureSet, Level
from ingest.clock import Clock, ManualClock
from ingest.log import Outgoing
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.placement import partition_of
from ingest.reading import until_end
from ingest.topics import Topics, topic_specs
from retrain.drift.alerts import ACT, Origin
from retrain.drift.detector import DetectorPolicy
from retrain.drift.monitor import MonitorPolicy, Phase, WindowVerdict
from retrain.watch import Watch, Wiring
from schemas.codec import Codec
from schemas.events import (
    Arm,
    DriftAlert,
    EventType,
    Recommendation,
    ScoredItem,
    Status,
    UserEvent,
)
from schemas.registry import MemoryRegistry

TOPICS = Topics("")
PARTITIONS = 2
NOW = 1_700_000_000_000
WINDOW_MS = 1_000
REFERENCE = 6
POLICY = MonitorPolicy(
    window_ms=WINDOW_MS,
    maturity_ms=WINDOW_MS,
    lateness_ms=WINDOW_MS,
    settle_windows=0,
    reference_windows=REFERENCE,
    detector=DetectorPolicy(warn=20, act=50),
)


def mood(context: object) -> object:
    """Never computed: answers bring the features that they were served with."""
    raise NotImplementedError(context)


FEATURES = FeatureSet(
    features=(
        Feature(
            name="mood",
            level=Level.USER,
            dtype="float32",
            compute=mood,
            doc="test",
            drift=Drift.NUMERIC,
        ),
    )
)
USERS = [f"user-{i}" for i in range(80)]
ASIDE = {p: next(u for u in USERS if partition_of(u.encode(), PARTITIONS) == p) for p in (0, 1)}


class World:
    """A log of answers and reactions, window by window."""

    def __init__(self) -> None:
        self.log, self.registry = MemoryLog(), MemoryRegistry()
        self.log.create_topics(topic_specs("", PARTITIONS, replay=True))
        self.chance = random.Random(3)
        self.answers = Codec(self.registry, Recommendation, TOPICS.recommendations)
        self.events = Codec(self.registry, UserEvent, TOPICS.user_events)
        self.alerts = Codec(self.registry, DriftAlert, TOPICS.drift_alerts)
        self.requests = 0

    def window(
        self,
        number: int,
        *,
        click_rate: float = 0.4,
        version: int = 1,
        surface: str = "home",
        astray: bool = False,
    ) -> None:
        """160 answers, each with an impression, `click_rate` of them with a click."""
        for i in range(160):
            self.requests += 1
            request_id, user = f"r{self.requests}", USERS[i % len(USERS)]
            at_ms = NOW + number * WINDOW_MS + 5 * i
            self.answer(request_id, user, at_ms, version=version, surface=surface, astray=astray)
            self.react(request_id, user, EventType.IMPRESSION, at_ms + 1, astray=astray)
            if self.chance.random() < click_rate:
                self.react(request_id, user, EventType.CLICK, at_ms + 2, astray=astray)

    def answer(
        self,
        request_id: str,
        user: str,
        at_ms: int,
        *,
        version: int = 1,
        surface: str = "home",
        astray: bool = False,
    ) -> None:
        answer = Recommendation(
            request_id=request_id,
            user_id=user,
            event_time=at_ms,
            status=Status.OK,
            items=(ScoredItem(item_id="film", score=self.chance.random()),),
            model_version=version,
            arm=Arm.STABLE,
            fingerprint=FEATURES.fingerprint,
            row_age_ms=1,
            user_floats=(self.chance.gauss(0, 1),),
            surface=surface,
        )
        self.put(TOPICS.recommendations, user, self.answers.encode(answer), astray=astray)

    def react(
        self, request_id: str, user: str, kind: EventType, at_ms: int, *, astray: bool = False
    ) -> None:
        event = UserEvent(
            event_id=f"{request_id}-{kind}",
            user_id=user,
            item_id="film",
            event_type=kind,
            event_time=at_ms,
            request_id=request_id,
        )
        self.put(TOPICS.user_events, user, self.events.encode(event), astray=astray)

    def put(self, topic: str, user: str, value: bytes, *, astray: bool = False) -> None:
        """Append a record; `astray`: in another partition than its key's."""
        home = partition_of(user.encode(), PARTITIONS)
        self.log.append(
            Outgoing(
                topic=topic,
                key=user.encode(),
                value=value,
                partition=(home + 1) % PARTITIONS if astray else home,
            )
        )

    def finish(self, number: int, surface: str = "home") -> None:
        """Time goes on in every partition until windows before this one are decided."""
        at_ms = NOW + number * WINDOW_MS + POLICY.maturity_ms + POLICY.lateness_ms
        for user in ASIDE.values():
            self.answer("last", user, at_ms, surface=surface)
            self.react("last", user, EventType.IMPRESSION, at_ms)

    def watch(
        self, windows: int, surface: str = "", clock: Clock | None = None
    ) -> list[WindowVerdict]:
        """A new watch of the whole log, until it has decided so many windows."""
        wiring = Wiring(
            log=self.log,
            source=MemorySource(self.log),
            alerts=MemorySource(self.log),
            producer=MemoryProducer(self.log),
            registry=self.registry,
            topics=TOPICS,
            clock=clock or ManualClock(),
        )
        origin = Origin(
            model_name="m", surface=surface, profile="demo", fingerprint=FEATURES.fingerprint
        )
        found, stop = list[WindowVerdict](), Event()

        def on_window(verdict: WindowVerdict) -> None:
            found.append(verdict)
            if len(found) >= windows:
                stop.set()

        Watch(wiring, FEATURES, (EventType.CLICK,), POLICY, origin).run(stop, on_window)
        return found

    def published(self) -> list[DriftAlert]:
        batches = until_end(self.log, MemorySource(self.log), [TOPICS.drift_alerts])
        return [self.alerts.decode(value) for batch in batches for value in batch.values]


@pytest.fixture
def world() -> World:
    return World()


def play(world: World, change: Callable[[int], None], windows: int = 14) -> None:
    """Ordinary windows, and what `change` adds to each."""
    for number in range(windows):
        change(number)
    world.finish(windows)


def clicks_stop(world: World) -> Callable[[int], None]:
    return lambda number: world.window(number, click_rate=0.4 if number < 9 else 0.02)


def test_alerts_are_published_once_although_the_watch_is_started_twice(world: World) -> None:
    play(world, clicks_stop(world))
    first = world.watch(14)
    assert first[-1].phase == Phase.ALARMED
    alerts = world.published()
    assert [a.severity for a in alerts].count(ACT) == 1
    assert {a.subject for a in alerts if a.severity == ACT} == {"label_click"}
    second = world.watch(14)
    assert [(v.start_ms, v.size, v.evidence) for v in second] == [
        (v.start_ms, v.size, v.evidence) for v in first
    ]
    assert world.published() == alerts
    assert len({a.alert_id for a in alerts}) == len(alerts)


def test_a_watch_that_starts_after_another_publishes_the_rest(world: World) -> None:
    for number in range(10):
        clicks_stop(world)(number)
    assert world.watch(6)[-1].phase == Phase.WATCHING
    assert world.published() == []
    for number in range(10, 14):
        clicks_stop(world)(number)
    world.finish(14)
    world.watch(14)
    assert ACT in [a.severity for a in world.published()]


def test_only_answers_on_the_watched_surface_count(world: World) -> None:
    def both(number: int) -> None:
        world.window(number, surface="shop")
        clicks_stop(world)(number)  # at home

    play(world, both)
    world.finish(14, "shop")
    shop = world.watch(14, surface="shop")
    assert {v.size for v in shop} == {160}
    assert shop[-1].phase == Phase.WATCHING
    assert world.published() == []
    home = world.watch(14, surface="home")
    assert home[-1].phase == Phase.ALARMED
    assert {a.surface for a in world.published()} == {"home"}
    assert {v.size for v in world.watch(14)} == {320}


def test_another_stable_version_starts_warming_anew(world: World) -> None:
    play(world, lambda number: world.window(number, version=1 if number < 8 else 2))
    verdicts = world.watch(14)
    warming = [v.phase == Phase.WARMING for v in verdicts]
    assert warming == [n < REFERENCE - 1 or 8 <= n < 8 + REFERENCE - 1 for n in range(14)]
    assert [v.version for v in verdicts] == [1] * 8 + [2] * 6
    assert world.published() == []


def test_misplaced_and_unreadable_records_are_ignored(world: World) -> None:
    def disturbed(number: int) -> None:
        world.window(number)
        world.window(number, click_rate=0.0 if number > 8 else 0.4, astray=True)
        for topic in (TOPICS.recommendations, TOPICS.user_events):
            world.put(topic, ASIDE[0], b"rubbish")

    play(world, disturbed)
    verdicts = world.watch(14)
    assert {v.size for v in verdicts} == {160}
    assert verdicts[-1].phase == Phase.WATCHING
    assert all(0.2 < v.click_rate < 0.6 for v in verdicts)
    assert world.published() == []


class QuickClock(ManualClock):
    """A second passes between any two looks at it."""

    def monotonic_s(self) -> float:
        self.advance(1.0)
        return super().monotonic_s()


class BusyClock(QuickClock):
    """Whenever somebody looks at it, another answer is given on another surface."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def monotonic_s(self) -> float:
        self._world.answer("other", ASIDE[1], NOW, surface="shop")
        return super().monotonic_s()


def test_a_partition_with_other_traffic_alone_is_not_waited_for(world: World) -> None:
    for number in range(3):
        world.answer(f"home-{number}", ASIDE[0], NOW + number * WINDOW_MS, surface="home")
    at_ms = NOW + 3 * WINDOW_MS + POLICY.maturity_ms + POLICY.lateness_ms
    world.answer("last", ASIDE[0], at_ms, surface="home")
    verdicts = world.watch(3, surface="home", clock=BusyClock(world))
    assert [v.size for v in verdicts] == [1, 1, 1]


def test_a_partition_that_is_read_last_is_waited_for(world: World) -> None:
    play(world, clicks_stop(world))
    hurried = world.watch(14, clock=QuickClock())
    assert [(v.start_ms, v.size) for v in hurried] == [
        (v.start_ms, v.size) for v in world.watch(14)
    ]
