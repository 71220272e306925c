"""The batcher on a clock that moves when told."""

from __future__ import annotations

import pytest

from inference.batcher import Batcher, BatchPolicy
from ingest.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def batcher(clock: ManualClock, **policy: float) -> Batcher[int]:
    return Batcher(BatchPolicy(**{"max_size": 4, "max_wait_s": 0.01, **policy}), clock)


def test_a_full_batch_leaves_at_once(clock):
    waiting = batcher(clock)
    waiting.add(range(6))
    assert waiting.due_in_s() == 0
    assert waiting.take() == [0, 1, 2, 3]
    assert waiting.cause == "full"
    assert waiting.take() == []
    assert len(waiting) == 2


def test_the_first_in_decides_how_long_the_others_wait(clock):
    waiting = batcher(clock)
    waiting.add([1])
    clock.advance(0.006)
    waiting.add([2])
    assert waiting.due_in_s() == pytest.approx(0.004)
    clock.advance(0.004)
    assert waiting.take() == [1, 2]
    assert waiting.cause == "waited"
    assert waiting.due_in_s() is None


def test_a_forced_batch_does_not_wait(clock):
    waiting = batcher(clock)
    waiting.add([1])
    assert waiting.take(force=True) == [1]
    assert waiting.cause == "forced"
    assert waiting.take(force=True) == []


def test_it_never_holds_more_than_it_may(clock):
    waiting = batcher(clock, max_pending=5)
    waiting.add([1, 2, 3])
    assert waiting.room == 2
    with pytest.raises(OverflowError, match="3 values for room for 2"):
        waiting.add([4, 5, 6])
    assert len(waiting) == 3


@pytest.mark.parametrize(
    "wrong", [{"max_size": 0}, {"max_wait_s": -1}, {"max_size": 9, "max_pending": 8}]
)
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        BatchPolicy(**wrong)
