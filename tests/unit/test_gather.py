"""Calls gathered into batches: together while others are at work, bounded, each answered once."""

from __future__ import annotations

import threading

import pytest

from inference.batcher import BatchPolicy
from inference.gather import Gatherer, Work
from ingest.clock import SystemClock
from schemas.errors import Overloaded, Reason, Rejected


class Held:
    """A first step that waits until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.at_work = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def first(self, values):
        self.batches.append(list(values))
        self.at_work.release()
        assert self.go.acquire(timeout=20)
        return values

    def second(self, values):
        if 13 in values:
            raise ZeroDivisionError("thirteen")
        return [Rejected(Reason.OUT_OF_RANGE, "odd") if v % 2 else 10 * v for v in values]


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def gatherer(held):
    policy = BatchPolicy(max_size=4, max_wait_s=0, max_pending=6)
    made = Gatherer("test", Work(first=held.first, second=held.second), policy, SystemClock())
    yield made
    for _ in range(50):
        held.go.release()
    made.close()


def test_what_comes_while_a_batch_is_at_work_is_worked_on_together(held, gatherer):
    first = gatherer.submit(0)
    assert held.at_work.acquire(timeout=20)
    others = [gatherer.submit(n) for n in (2, 4, 6, 8, 10)]
    for _ in range(3):
        held.go.release()
    assert [f.result(20) for f in (first, *others)] == [0, 20, 40, 60, 80, 100]
    assert held.batches == [[0], [2, 4, 6, 8], [10]]


def test_an_error_is_told_to_its_own_call_alone(held, gatherer):
    gatherer.submit(0)
    assert held.at_work.acquire(timeout=20)
    good, bad = gatherer.submit(2), gatherer.submit(3)
    held.go.release()
    held.go.release()
    assert good.result(20) == 20
    with pytest.raises(Rejected, match="odd"):
        bad.result(20)


def test_more_than_may_wait_are_refused_and_the_others_are_answered(held, gatherer):
    gatherer.submit(0)
    assert held.at_work.acquire(timeout=20)
    waiting = [gatherer.submit(2) for _ in range(6)]
    with pytest.raises(Overloaded, match="6 calls wait already"):
        gatherer.submit(2)
    for _ in range(3):
        held.go.release()
    assert [f.result(20) for f in waiting] == [20] * 6


def test_a_call_that_nobody_waits_for_costs_no_work(held, gatherer):
    gatherer.submit(0)
    assert held.at_work.acquire(timeout=20)
    gone, kept = gatherer.submit(2), gatherer.submit(4)
    assert gone.cancel()
    held.go.release()
    held.go.release()
    assert kept.result(20) == 40
    assert held.batches == [[0], [4]]


def test_a_step_that_breaks_is_told_and_the_next_batch_is_answered(held, gatherer):
    held.go.release()
    broken = gatherer.submit(13)
    with pytest.raises(ZeroDivisionError):
        broken.result(20)
    held.go.release()
    assert gatherer.submit(2).result(20) == 20


def test_closing_answers_what_waits_and_takes_no_more(held, gatherer):
    futures = [gatherer.submit(2) for _ in range(3)]
    for _ in range(5):
        held.go.release()
    gatherer.close()
    assert [f.result(0) for f in futures] == [20] * 3
    with pytest.raises(Overloaded, match="stopping"):
        gatherer.submit(2)
