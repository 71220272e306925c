"""Batches in lanes: side by side where they are large, in their order when they leave."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from inference.lanes import Lanes
from ingest.clock import SystemClock

LARGE = 8
Eventually = Callable[..., None]


class Lane:
    """Two threads that take batches, each done when the test lets it."""

    def __init__(self, *sizes: int) -> None:
        self.waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for size in (*sizes, None, None):
            self.waiting.put(size)
        self.over = threading.Event()
        self.lanes = Lanes(self.waiting.get, lambda size: size >= LARGE, SystemClock(), self.over)
        self.may_end = [threading.Event() for _ in sizes]
        self.begun: list[int] = []
        self.left: list[int] = []
        self._threads = ThreadPoolExecutor(2)
        self.running: list[Future[None]] = [self._threads.submit(self._run) for _ in range(2)]

    def _run(self) -> None:
        while (turn := self.lanes.begin()) is not None:
            self.begun.append(turn.number)
            self.may_end[turn.number].wait(10)
            if not self.lanes.done(turn):
                return
            self.left.append(turn.number)
            self.lanes.leave()

    def end(self) -> None:
        for one in self.running:
            one.result(10)
        self._threads.shutdown()


def test_large_batches_are_side_by_side_and_leave_in_order(eventually: Eventually) -> None:
    lane = Lane(8, 9, 8)
    eventually(lambda: sorted(lane.begun) == [0, 1])
    lane.may_end[1].set()
    assert (lane.left, len(lane.lanes.begun_s())) == ([], 2)
    lane.may_end[0].set()
    lane.may_end[2].set()
    lane.end()
    assert lane.left == [0, 1, 2]
    assert lane.lanes.begun_s() == []


@pytest.mark.parametrize("beside", [7, 8])
def test_a_small_batch_begins_when_those_before_it_have_left(
    eventually: Eventually, beside: int
) -> None:
    lane = Lane(beside, 3)
    eventually(lambda: lane.begun == [0])
    SystemClock().sleep(0.1)  # enough for the other thread to begin, if it did
    assert lane.begun == [0]
    assert len(lane.lanes.begun_s()) == 1
    lane.may_end[0].set()
    eventually(lambda: lane.begun == [0, 1])
    assert lane.left == [0]
    lane.may_end[1].set()
    lane.end()


def test_a_large_batch_may_begin_beside_a_small_one(eventually: Eventually) -> None:
    lane = Lane(3, 8)
    eventually(lambda: sorted(lane.begun) == [0, 1])
    for may_end in lane.may_end:
        may_end.set()
    lane.end()
    assert lane.left == [0, 1]


@pytest.mark.parametrize("sizes", [(8, 8), (8, 3)])
def test_nobody_waits_when_it_is_over(eventually: Eventually, sizes: tuple[int, int]) -> None:
    lane = Lane(*sizes)
    eventually(lambda: 0 in lane.begun)
    lane.may_end[1].set()  # the second waits for the first, to leave or to begin
    lane.over.set()
    eventually(lambda: any(one.done() for one in lane.running))
    assert lane.left == []
    lane.may_end[0].set()
    lane.end()
