"""The loop, on the log in memory and a sink that keeps what it was given."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping

import pytest

from ingest.clock import ManualClock
from ingest.dead_letter import DeadLetterPolicy, DeadLetters, read_dead_letters
from ingest.log import Outgoing, RecordBatch, TopicPartition
from ingest.loop import Loop, LoopParts, LoopPolicy
from ingest.memory import Crash, MemoryLog, MemoryProducer, MemorySource, Pause
from ingest.metrics import MemoryMetrics
from schemas.codec import Codec
from schemas.errors import (
    BrokerUnavailable,
    MillstreamError,
    Misconfigured,
    PositionMoved,
    Reason,
    Rejected,
    StoreUnavailable,
)
from schemas.events import DeadLetter
from schemas.registry import MemoryRegistry

TP = TopicPartition("t", 0)
POLICY = LoopPolicy(name="test", max_records=4, poll_s=0, max_idle_s=0, max_attempts=3)


class Kept:
    """A sink in memory. `faults` are raised by the writes to come, before anything is stored."""

    def __init__(self, *tps: TopicPartition) -> None:
        self.at = dict.fromkeys(tps or (TP,), 0)
        self.values: list[bytes | None] = []
        self.faults: list[MillstreamError | None] = []

    def positions(self) -> Mapping[TopicPartition, int]:
        return dict(self.at)

    def write(
        self, effects: list[bytes | None], tp: TopicPartition, *, expected: int, next_offset: int
    ) -> None:
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        if self.at[tp] != expected:
            raise PositionMoved(f"at {self.at[tp]}, expected {expected}")
        self.values += effects
        self.at[tp] = next_offset


class Copy:
    """The effects of a batch are its values; a value `bad` is rejected."""

    def __init__(self) -> None:
        self.resumed_at: list[dict[TopicPartition, int]] = []

    def resume(self, positions: Mapping[TopicPartition, int]) -> None:
        self.resumed_at.append(dict(positions))

    def handle(self, batch: RecordBatch) -> list[bytes | None]:
        if b"bad" in batch.values:
            raise Rejected(Reason.POISON, "a bad value")
        return list(batch.values)


class Bench:
    """A loop with everything in memory."""

    def __init__(self, items: list[bytes | Crash | Pause]) -> None:
        self.log = MemoryLog()
        self.log.create_topic("t", 1)
        self.log.create_topic("dead", 1)
        self.log.script(TP, [_item(i) for i in items])
        self.sink = Kept()
        self.handler = Copy()
        self.clock = ManualClock()
        self.metrics = MemoryMetrics()
        self.codec = Codec(MemoryRegistry(), DeadLetter, "dead")
        self.letters = DeadLetters(
            MemoryProducer(self.log), self.codec, "dead", self.clock, DeadLetterPolicy()
        )
        self.idled = 0

    def loop(self, policy: LoopPolicy = POLICY) -> Loop[list[bytes | None]]:
        """A new process: nothing survives but log and sink."""
        parts = LoopParts(
            dead_letters=self.letters,
            clock=self.clock,
            metrics=self.metrics,
            chance=random.Random(1),
            idle=self._idle,
        )
        return Loop(MemorySource(self.log), self.handler, self.sink, parts, policy)

    def dead(self) -> list[DeadLetter]:
        return list(
            read_dead_letters(MemorySource(self.log), self.log, self.codec, "dead", patience_s=0)
        )

    def _idle(self) -> None:
        self.idled += 1


def _item(item: bytes | Crash | Pause) -> Outgoing | Crash | Pause:
    return Outgoing(topic="t", key=b"k", value=item) if isinstance(item, bytes) else item


def numbers(n: int) -> list[bytes]:
    return [b"%d" % i for i in range(n)]


def test_everything_is_written_once_and_in_order() -> None:
    bench = Bench([*numbers(10)])
    assert bench.loop().run(threading.Event()) == {TP: 10}
    assert bench.sink.values == numbers(10)
    assert bench.metrics.value("loop.records", loop="test") == 10
    assert bench.metrics.value("loop.position", loop="test", topic="t", partition="0") == 10


def test_a_crash_anywhere_loses_and_doubles_nothing() -> None:
    for at in range(7):
        items: list[bytes | Crash | Pause] = [*numbers(6)]
        items.insert(at, Crash())
        bench = Bench(items)
        with pytest.raises(Crash):
            bench.loop().run(threading.Event())
        bench.loop().run(threading.Event())
        assert bench.sink.values == numbers(6)


def test_a_bad_record_is_found_and_its_neighbours_are_written() -> None:
    bench = Bench([b"0", b"1", b"bad", b"3", b"bad", b"5"])
    assert bench.loop().run(threading.Event()) == {TP: 6}
    assert bench.sink.values == [b"0", b"1", b"3", b"5"]
    assert [(d.offset, d.reason, d.value) for d in bench.dead()] == [
        (2, "poison", b"bad"),
        (4, "poison", b"bad"),
    ]


def test_a_dead_letter_is_on_the_log_before_the_position_moves() -> None:
    bench = Bench([b"bad", b"1"])
    bench.sink.faults = [StoreUnavailable("full")] * 3
    with pytest.raises(StoreUnavailable):
        bench.loop().run(threading.Event())
    assert bench.sink.at == {TP: 0}
    assert [d.offset for d in bench.dead()] == [0]


def test_a_repeated_dead_letter_is_read_once() -> None:
    bench = Bench([b"bad", b"1"])
    bench.sink.faults = [StoreUnavailable("full")]
    bench.loop().run(threading.Event())
    assert bench.log.bounds("dead")[0][1] == 2
    assert [d.offset for d in bench.dead()] == [0]


def test_after_a_moved_position_the_loop_goes_on_where_the_sink_stands() -> None:
    bench = Bench([*numbers(8)])
    stop = threading.Event()
    loop = bench.loop()
    bench.sink.at[TP] = 2
    bench.sink.faults = [None, PositionMoved("another wrote")]
    loop.run(stop)
    assert bench.sink.values == numbers(8)[2:]
    assert bench.handler.resumed_at == [{TP: 2}, {TP: 6}]
    assert bench.metrics.value("loop.moved", loop="test") == 1


def test_what_is_unavailable_is_tried_again_with_growing_waits() -> None:
    bench = Bench([*numbers(3)])
    bench.sink.faults = [StoreUnavailable("gone"), StoreUnavailable("gone")]
    bench.loop().run(threading.Event())
    assert bench.sink.values == numbers(3)
    assert bench.metrics.value("loop.retries", loop="test", error="StoreUnavailable") == 2
    # 0.1 s and 0.2 s, each at least half of it.
    assert 0.15 <= bench.clock.monotonic_s() <= 0.3


def test_after_the_last_attempt_the_error_goes_up_and_nothing_was_written() -> None:
    bench = Bench([*numbers(3)])
    bench.sink.faults = [StoreUnavailable("gone")] * 3
    with pytest.raises(StoreUnavailable):
        bench.loop().run(threading.Event())
    assert bench.sink.values == []


def test_attempts_count_anew_after_a_success() -> None:
    bench = Bench([*numbers(12)])
    gone = StoreUnavailable("gone")
    bench.sink.faults = [gone, gone, None, gone, gone, None, gone, gone, None]
    bench.loop().run(threading.Event())
    assert bench.sink.values == numbers(12)


def test_a_foreign_position_stops_the_loop() -> None:
    bench = Bench([*numbers(3)])
    bench.sink.at[TP] = 99
    with pytest.raises(Misconfigured, match="99"):
        bench.loop().run(threading.Event())


def test_a_set_stop_ends_the_loop_before_it_reads() -> None:
    bench = Bench([*numbers(3)])
    stop = threading.Event()
    stop.set()
    assert bench.loop().run(stop) == {}
    assert bench.sink.values == []


def test_a_bounded_run_ends_when_every_end_is_reached() -> None:
    bench = Bench([*numbers(10)])
    policy = LoopPolicy(name="test", max_records=4, poll_s=0)
    assert bench.loop(policy).run(threading.Event(), until={TP: 8}) == {TP: 8}
    assert bench.loop(policy).run(threading.Event(), until={TP: 10}) == {TP: 10}
    assert bench.sink.values == numbers(10)


def test_a_pause_is_not_the_end_of_a_bounded_run() -> None:
    bench = Bench([b"0", Pause(), b"1"])
    policy = LoopPolicy(name="test", poll_s=0)
    bench.loop(policy).run(threading.Event(), until={TP: 2})
    assert bench.sink.values == [b"0", b"1"]
    assert bench.idled == 1


def test_an_unavailable_source_is_tried_again() -> None:
    bench = Bench([])
    bench.log.delete_topics(["t"])
    with pytest.raises(BrokerUnavailable, match="not there"):
        bench.loop().run(threading.Event())
    assert bench.metrics.value("loop.retries", loop="test", error="BrokerUnavailable") == 3
