"""The batcher on a clock that moves when told."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from inference.batcher import (
    CALM,
    RATE_S,
    Batcher,
    BatchPolicy,
    Cause,
    Dispatch,
    Queue,
    Wait,
    decide,
)
from ingest.clock import ManualClock


@dataclass(frozen=True)
class Line:
    """Costs `fixed_s + per_row_s * rows`."""

    fixed_s: float
    per_row_s: float = 0.0

    def predict(self, rows: int) -> float:
        return self.fixed_s + self.per_row_s * rows


COST = Line(0.005, 0.0001)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def batcher(clock: ManualClock, **policy: float) -> Batcher[int]:
    wanted = BatchPolicy(**{"max_size": 4, "objective_s": 0.025, **policy})
    return Batcher(wanted, clock, COST)


QUEUE = Queue(count=3, deadline_in_s=0.02, per_s=100.0, free_in_s=0.0)


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        (replace(QUEUE, count=70), Dispatch(64, Cause.FULL)),
        (replace(QUEUE, count=64, free_in_s=9.0), Dispatch(64, Cause.FULL)),
        # 1.3 would come until the best time for the next: the three are enough.
        (QUEUE, Dispatch(3, Cause.ENOUGH)),
        # 12.8 would come: they gather as long as the deadline allows.
        (replace(QUEUE, per_s=1000.0), Wait(pytest.approx(0.0147))),
        (replace(QUEUE, count=16, per_s=1000.0), Dispatch(16, Cause.ENOUGH)),
        # Until the rate has fallen so far, if nothing comes, that they are enough.
        (
            replace(QUEUE, per_s=1000.0, deadline_in_s=9.0),
            Wait(pytest.approx(RATE_S * math.log(CALM * 1000 * 0.0053 / 3))),
        ),
        (replace(QUEUE, per_s=1000.0, deadline_in_s=0.005), Dispatch(3, Cause.DEADLINE)),
        # The model is busy, whatever the deadline.
        (replace(QUEUE, free_in_s=0.003), Wait(0.003)),
        (replace(QUEUE, free_in_s=math.inf, deadline_in_s=-1), Wait(math.inf)),
    ],
)
def test_it_is_decided_by_what_waiting_gains(queue, expected):
    assert decide(queue, 64, COST) == expected


def test_a_full_batch_leaves_at_once(clock):
    waiting = batcher(clock)
    waiting.add(range(6))
    assert waiting.due_in_s(free_in_s=1.0) == 0
    assert waiting.take(free_in_s=1.0) == [0, 1, 2, 3]
    assert waiting.cause is Cause.FULL
    assert waiting.take(free_in_s=1.0) == []
    assert len(waiting) == 2


def test_one_request_on_a_quiet_day_does_not_wait(clock):
    waiting = batcher(clock)
    assert waiting.due_in_s() is None
    waiting.add([1])
    assert waiting.take() == [1]
    assert waiting.cause is Cause.ENOUGH


def test_in_a_rush_they_gather_until_the_tightest_deadline(clock):
    waiting = batcher(clock, max_size=64)
    waiting.add(range(40))
    assert len(waiting.take()) == 40  # as many come in 0.1 s: 3 in a call
    clock.advance(0.001)
    waiting.add([1])  # 400 a second: 1.6 in a call
    assert waiting.take() == []
    due_s = clock.monotonic_s() + 0.006
    waiting.add([2], lambda _: due_s)
    waiting.add(range(3, 5), lambda _: due_s + 5)
    clock.advance(0.002)
    assert waiting.take() == [1, 2, 3, 4]


def test_a_deadline_leaves_with_its_request(clock):
    waiting = batcher(clock, max_size=2)
    now_s = clock.monotonic_s()
    waiting.add([1, 2, 3], lambda value: now_s + {1: 9.0, 2: 0.001, 3: 8.0}[value])
    assert waiting.take() == [1, 2]
    assert waiting.due_in_s(free_in_s=0.5) == 0.5
    clock.advance(0.1)  # until the rate has fallen
    assert waiting.take() == [3]
    assert waiting.cause is Cause.ENOUGH


def test_a_forced_batch_does_not_wait(clock):
    waiting = batcher(clock)
    waiting.add([1])
    assert waiting.take(free_in_s=1.0) == []
    assert waiting.take(free_in_s=1.0, force=True) == [1]
    assert waiting.cause is Cause.FORCED
    assert waiting.take(force=True) == []


def test_it_never_holds_more_than_it_may(clock):
    waiting = batcher(clock, max_pending=5)
    waiting.add([1, 2, 3])
    assert waiting.room == 2
    with pytest.raises(OverflowError, match="3 values for room for 2"):
        waiting.add([4, 5, 6])
    assert len(waiting) == 3


@pytest.mark.parametrize(
    "wrong", [{"max_size": 0}, {"objective_s": -1}, {"max_size": 9, "max_pending": 8}]
)
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        BatchPolicy(**wrong)
