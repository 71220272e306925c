"""Calls gathered into batches: together while others are at work, bounded, each answered once."""

from __future__ import annotations

import asyncio
import threading

import pytest

from inference.gather import Bounds, Gatherer, Work
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
    policy = Bounds(batch=4, waiting=6)
    made = Gatherer("test", Work(first=held.first, second=held.second), policy)
    yield made
    for _ in range(50):
        held.go.release()
    made.close()


class Callers:
    """An event loop in a thread, whose tasks ask."""

    def __init__(self, gatherer) -> None:
        self._gatherer = gatherer
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def ask(self, value: int):
        """Asked by the time it returns."""
        asked = threading.Event()

        async def asking() -> int:
            task = asyncio.ensure_future(self._gatherer.ask(value))
            await asyncio.sleep(0)
            asked.set()
            return await task

        future = asyncio.run_coroutine_threadsafe(asking(), self._loop)
        assert asked.wait(20)
        return future

    def settle(self) -> None:
        """Return when the loop has done what it was told."""
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result(20)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


@pytest.fixture
def callers(gatherer):
    made = Callers(gatherer)
    yield made
    made.close()


def test_what_comes_while_a_batch_is_at_work_is_worked_on_together(held, callers):
    first = callers.ask(0)
    assert held.at_work.acquire(timeout=20)
    others = [callers.ask(n) for n in (2, 4, 6, 8, 10)]
    for _ in range(3):
        held.go.release()
    assert [f.result(20) for f in (first, *others)] == [0, 20, 40, 60, 80, 100]
    assert held.batches == [[0], [2, 4, 6], [8, 10]]


def test_callers_who_ask_again_come_in_two_batches_alike(held, callers):
    """Six of them: at first one is at work and five wait."""
    waiting = [callers.ask(0)]
    assert held.at_work.acquire(timeout=20)
    waiting += [callers.ask(0) for _ in range(5)]
    for _ in range(4):
        held.go.release()
        assert held.at_work.acquire(timeout=20)
        waiting += [callers.ask(0) for _ in held.batches[-2]]  # the next one is at work already
    for _ in range(20):
        held.go.release()
    assert [future.result(20) for future in waiting] == [0] * len(waiting)
    assert [len(batch) for batch in held.batches[:5]] == [1, 3, 3, 3, 3]


def test_an_error_is_told_to_its_own_call_alone(held, callers):
    callers.ask(0)
    assert held.at_work.acquire(timeout=20)
    good, bad = callers.ask(2), callers.ask(3)
    held.go.release()
    held.go.release()
    assert good.result(20) == 20
    with pytest.raises(Rejected, match="odd"):
        bad.result(20)


def test_more_than_may_wait_are_refused_and_the_others_are_answered(held, gatherer, callers):
    callers.ask(0)
    assert held.at_work.acquire(timeout=20)
    waiting = [callers.ask(2) for _ in range(6)]
    with pytest.raises(Overloaded, match="6 calls wait already"):
        callers.ask(2).result(20)
    with pytest.raises(Overloaded, match="6 calls wait already"):
        gatherer.tell(2)
    for _ in range(3):
        held.go.release()
    assert [f.result(20) for f in waiting] == [20] * 6


def test_a_call_that_nobody_waits_for_costs_no_work(held, callers):
    callers.ask(0)
    assert held.at_work.acquire(timeout=20)
    gone, kept = callers.ask(2), callers.ask(4)
    assert gone.cancel()
    callers.settle()
    held.go.release()
    held.go.release()
    assert kept.result(20) == 40
    assert held.batches == [[0], [4]]


def test_what_is_only_told_is_worked_on(held, gatherer):
    gatherer.tell(8)
    held.go.release()
    assert held.at_work.acquire(timeout=20)
    assert held.batches == [[8]]


def test_a_step_that_breaks_is_told_and_the_next_batch_is_answered(held, callers):
    held.go.release()
    broken = callers.ask(13)
    with pytest.raises(ZeroDivisionError):
        broken.result(20)
    held.go.release()
    assert callers.ask(2).result(20) == 20


def test_closing_answers_what_waits_and_takes_no_more(held, gatherer, callers):
    futures = [callers.ask(2) for _ in range(3)]
    for _ in range(5):
        held.go.release()
    gatherer.close()
    assert [f.result(20) for f in futures] == [20] * 3
    with pytest.raises(Overloaded, match="stopping"):
        callers.ask(2).result(20)


def test_a_loop_that_has_ended_holds_nobody_up(held, gatherer):
    """Its callers are gone; those of another loop are answered."""
    ended, going = Callers(gatherer), Callers(gatherer)
    lost = ended.ask(0)
    assert held.at_work.acquire(timeout=20)
    kept = going.ask(2)
    ended.close()
    held.go.release()
    held.go.release()
    assert kept.result(20) == 20
    assert not lost.done()
    going.close()


def test_calls_that_linger_leave_together_when_they_are_enough_or_at_the_end(held):
    policy = Bounds(batch=4, waiting=6, linger_s=60.0)
    lingering = Gatherer("test", Work(first=held.first, second=held.second), policy)
    for _ in range(3):
        held.go.release()
    for value in (2, 4, 6, 8, 10, 12):
        lingering.tell(value)
    assert held.at_work.acquire(timeout=20)
    assert held.batches == [[2, 4, 6, 8]]
    lingering.close()
    assert held.batches == [[2, 4, 6, 8], [10, 12]]
