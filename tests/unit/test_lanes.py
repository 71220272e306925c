"""Batches in lanes: side by side where they are large, in their order when they leave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference import lanes
from inference.batcher import BatchPolicy, Cause
from inference.lanes import Lanes
from ingest.clock import SystemClock

FULL, LARGE = 8, 3  # 3 are more than a third of 8
CALL_S = 0.2
Eventually = Callable[..., None]


class Always:
    """Takes as long, whatever it is."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def predict(self, rows: int) -> float:
        return self._seconds


class Street:
    """Two threads that take batches, each done when the test lets it."""

    def __init__(self, call_s: float = 10.0, objective_s: float = 0.0) -> None:
        self.over = threading.Event()
        policy = BatchPolicy(max_size=FULL, objective_s=objective_s)
        self.lanes = Lanes[int](policy, Always(call_s), SystemClock(), self.over)
        self.may_end = [threading.Event() for _ in range(9)]
        self.begun: list[tuple[int, int, Cause | None]] = []
        self.left: list[int] = []
        self._values = 0
        self._threads = ThreadPoolExecutor(2)
        self.running = [self._threads.submit(self._run) for _ in range(2)]

    def come(self, count: int) -> None:
        """So many more."""
        values = range(self._values, self._values + count)
        self._values += count
        self.lanes.add(values, lambda _: None)

    def sizes(self) -> list[int]:
        """Of the batches that were begun."""
        return [size for _, size, _ in sorted(self.begun)]

    def end(self, *numbers: int) -> None:
        """Let these be done."""
        for number in numbers:
            self.may_end[number].set()

    def close(self) -> None:
        self.over.set()
        self.end(*range(len(self.may_end)))
        for asleep in (self.lanes._watch, self.lanes._sleep, self.lanes._gone):
            with asleep:
                asleep.notify_all()
        for one in self.running:
            one.result(10)
        self._threads.shutdown()

    def _run(self) -> None:
        while (turn := self.lanes.begin()) is not None:
            self.begun.append((turn.number, len(turn.values), turn.cause))
            self.may_end[turn.number].wait(10)
            if not self.lanes.done(turn):
                return
            self.left += turn.values
            self.lanes.leave()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes that look for themselves so seldom that they have to be woken."""
    monkeypatch.setattr(lanes, "LOOK_S", 300.0)


@pytest.fixture
def street() -> Iterator[Street]:
    found = Street()
    yield found
    found.close()


@pytest.mark.usefixtures("patient")
def test_full_batches_are_side_by_side_and_leave_in_order(
    street: Street, eventually: Eventually
) -> None:
    street.come(3 * FULL)
    eventually(lambda: street.sizes() == [FULL, FULL])
    street.end(1)
    SystemClock().sleep(0.05)  # enough for the second to leave, if it did
    assert street.left == []
    street.end(0, 2)
    eventually(lambda: street.left == list(range(3 * FULL)))
    assert {cause for _, _, cause in street.begun} == {Cause.FULL}


@pytest.mark.parametrize("first", [1, FULL])
def test_a_small_batch_gathers_until_those_before_it_have_left(
    street: Street, eventually: Eventually, first: int
) -> None:
    street.come(first)
    eventually(lambda: street.sizes() == [first])
    street.come(1)
    SystemClock().sleep(0.15)  # longer than an idle lane sleeps
    assert street.sizes() == [first]
    street.come(1)
    street.end(0, 1)
    eventually(lambda: street.left == list(range(first + 2)))
    assert street.sizes() == [first, 2]


@pytest.mark.usefixtures("patient")
def test_a_large_batch_begins_when_the_one_before_is_half_done(eventually: Eventually) -> None:
    street, clock = Street(CALL_S), SystemClock()
    try:
        since_s = clock.monotonic_s()
        street.come(1)
        eventually(lambda: street.sizes() == [1])
        street.come(LARGE)
        eventually(lambda: street.sizes() == [1, LARGE])
        assert clock.monotonic_s() - since_s >= CALL_S / 2
        street.end(0, 1)
        eventually(lambda: street.left == [0, 1, 2, 3])
    finally:
        street.close()


@pytest.mark.usefixtures("patient")
def test_one_that_becomes_full_while_it_waits_begins_at_once(
    street: Street, eventually: Eventually
) -> None:
    street.come(1)
    eventually(lambda: street.sizes() == [1])
    street.come(LARGE)
    SystemClock().sleep(0.02)  # a lane watches now, for five seconds
    street.come(FULL - LARGE)
    eventually(lambda: street.sizes() == [1, FULL], timeout_s=2)


@pytest.mark.usefixtures("patient")
def test_what_comes_makes_an_idle_lane_begin_sooner(eventually: Eventually) -> None:
    street = Street(call_s=4.0, objective_s=9.0)
    try:
        street.come(1)
        eventually(lambda: street.sizes() == [1])  # once nothing else has come for a while
        street.end(0)
        eventually(lambda: street.left == [0])
        for _ in range(3):
            street.come(2)
        SystemClock().sleep(0.02)
        street.come(2)
        eventually(lambda: street.sizes() == [1, FULL], timeout_s=2)
    finally:
        street.close()


@pytest.mark.usefixtures("patient")
def test_all_that_waits_is_taken_when_it_is_forced(street: Street, eventually: Eventually) -> None:
    street.come(1)
    eventually(lambda: street.sizes() == [1])
    street.come(1)
    street.lanes.force(True)
    eventually(lambda: street.sizes() == [1, 1])
    assert sorted(street.begun)[1][2] is Cause.FORCED
    street.end(0, 1)
    eventually(lambda: street.left == [0, 1])


def test_it_tells_when_a_lane_will_be_free(street: Street, eventually: Eventually) -> None:
    assert street.lanes.free_in_s() == 0
    street.come(1)
    eventually(lambda: street.sizes() == [1])
    assert 0 < street.lanes.free_in_s() <= 10
    street.end(0)
    eventually(lambda: street.left == [0])
    eventually(lambda: street.lanes.free_in_s() == 0)


def test_a_lane_that_takes_longer_than_it_should_is_free_at_any_time(
    eventually: Eventually,
) -> None:
    street = Street(call_s=0.0)
    try:
        street.come(1)
        eventually(lambda: street.sizes() == [1])
        assert street.lanes.free_in_s() == 0
    finally:
        street.close()


@pytest.mark.parametrize("then", [FULL, 1])
def test_nobody_waits_when_it_is_over(street: Street, eventually: Eventually, then: int) -> None:
    street.come(FULL)
    eventually(lambda: street.sizes() == [FULL])
    street.come(then)
    street.end(1)  # the second waits for the first, to leave or to begin
    street.over.set()
    eventually(lambda: any(one.done() for one in street.running))
    assert street.left == []
