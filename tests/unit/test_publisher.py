"""Events of the network and answers to it on their way to the log, also one that is in trouble."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from inference.encoding import AnswerWriter
from inference.publisher import EventPublisher
from inference.recorder import AnswerRecorder
from ingest.clock import ManualClock
from ingest.log import Delivered
from ingest.memory import MemoryLog, MemoryProducer
from ingest.metrics import MemoryMetrics
from schemas.codec import Codec
from schemas.errors import BrokerUnavailable, Overloaded, Reason, Rejected
from schemas.events import EventType, Recommendation, UserEvent
from schemas.registry import MemoryRegistry
from tests.serving import PARTITIONS, World, place, request

CLOCK = ManualClock()
EVENT = UserEvent(
    event_id="e", user_id="ann", event_type=EventType.CLICK, event_time=CLOCK.now_ms()
)


class Shaky(MemoryProducer):
    """A producer that loses the records of some keys, and says so when flushed, as Kafka's does."""

    def __init__(self, log: MemoryLog, *lost: bytes) -> None:
        super().__init__(log)
        self._lost, self._trouble = lost, False

    def send(self, record, on_delivered=None):
        if record.key in self._lost:
            self._trouble = True
            return
        super().send(record, on_delivered)

    def flush(self, timeout_s: float) -> None:
        if self._trouble:
            self._trouble = False
            raise BrokerUnavailable("1 records were not delivered")


@pytest.fixture
def log() -> MemoryLog:
    made = MemoryLog()
    made.create_topic("events", PARTITIONS)
    made.create_topic("answers", PARTITIONS)
    return made


def published(producer, *events: UserEvent) -> list[Delivered | BaseException]:
    """What each caller hears."""
    publisher = EventPublisher(
        producer,
        Codec(MemoryRegistry(), UserEvent, "events"),
        CLOCK,
        future_ms=300_000,
        timeout_s=1,
    )

    async def run():
        asking = [publisher.publish(event) for event in events]
        return await asyncio.gather(*asking, return_exceptions=True)

    try:
        return asyncio.run(run())
    finally:
        publisher.close()


def test_each_caller_hears_where_its_own_event_landed(log):
    events = [replace(EVENT, user_id=f"user-{n}", event_id=f"e{n}") for n in range(20)]
    found = published(MemoryProducer(log), *events)
    assert [one.partition for one in found] == [place(event.user_id) for event in events]
    assert len({(one.partition, one.offset) for one in found}) == 20


def test_a_lost_event_is_an_error_to_its_caller_alone(log):
    events = [replace(EVENT, user_id=user) for user in ("ann", "bob", "cyd")]
    ann, bob, cyd = published(Shaky(log, b"bob"), *events)
    assert isinstance(ann, Delivered)
    assert isinstance(cyd, Delivered)
    assert isinstance(bob, BrokerUnavailable)
    assert "not delivered" in str(bob)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"event_time": CLOCK.now_ms() + 400_000}, Reason.IN_FUTURE),
        ({"user_id": "x" * 600}, Reason.TOO_LARGE),
        ({"event_id": ""}, Reason.MISSING_FIELD),
        ({"value": float("nan")}, Reason.OUT_OF_RANGE),
        ({"position": 2**40}, Reason.OUT_OF_RANGE),
    ],
)
def test_an_event_that_the_fold_would_refuse_is_refused_here(log, bad, reason):
    good, refused = published(MemoryProducer(log), EVENT, replace(EVENT, **bad))
    assert isinstance(good, Delivered)
    assert isinstance(refused, Rejected)
    assert refused.reason is reason


def answers():
    world = World()
    return world.service.answer(world.asked(request("ann"), request("bob"), request("cyd")))


def recorded(producer) -> MemoryMetrics:
    metrics = MemoryMetrics()
    writer = AnswerWriter(Codec(MemoryRegistry(), Recommendation, "answers"))
    recorder = AnswerRecorder(writer, producer, metrics, timeout_s=1)
    recorder.record(answers())
    recorder.close()
    return metrics


def test_answers_get_to_their_topic(log):
    assert recorded(MemoryProducer(log)).value("network.unrecorded") == 0
    ends = [end for _, end in log.bounds("answers").values()]
    assert sum(ends) == 3


def test_an_answer_that_is_not_recorded_is_counted(log):
    assert recorded(Shaky(log, b"bob")).value("network.unrecorded") == 1


def test_answers_that_come_too_late_are_counted(log):
    metrics = MemoryMetrics()
    writer = AnswerWriter(Codec(MemoryRegistry(), Recommendation, "answers"))
    recorder = AnswerRecorder(writer, MemoryProducer(log), metrics, timeout_s=1)
    recorder.close()
    recorder.record(answers())
    assert metrics.value("network.unrecorded") == 3


def test_after_closing_an_event_is_told_to_come_back(log):
    publisher = EventPublisher(
        MemoryProducer(log),
        Codec(MemoryRegistry(), UserEvent, "events"),
        CLOCK,
        future_ms=1,
        timeout_s=1,
    )
    publisher.close()
    with pytest.raises(Overloaded, match="stopping"):
        asyncio.run(publisher.publish(EVENT))
