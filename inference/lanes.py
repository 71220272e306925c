"""
Requests that wait, and the threads that take them by batches and answer them in order.

A thread takes a batch when it is free to begin, so a batch gathers until that moment, and it takes
every step of it: handing a batch from thread to thread costs more than it gains, since the threads
of an interpreter wait for each other.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from inference.batcher import Batcher, BatchPolicy, Cause, Cost
from ingest.clock import Clock

T = TypeVar("T")
LOOK_S: Final = 0.1  # how long a lane waits before it looks whether all is over
# A batch that may begin beside another: a share of the largest. Less is mostly what any call takes.
LARGE: Final = 1 / 6
# It begins when the one before is half done, so that two that follow each other do not end at once.
APART: Final = 1 / 2
NOBODY: Final = math.inf  # watches


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Generic[T]):
    """A batch in a lane."""

    number: int
    values: Sequence[T]
    cause: Cause | None  # why it was dispatched
    since_s: float  # when it began, on the monotonic clock


class Lanes(Generic[T]):
    """
    Shared by the thread that adds and as many threads as there are lanes.

    A full batch begins as soon as a lane is free: while one computes outside of the interpreter,
    the Python of another gets done. A large one begins when the last one is half done. Any other
    begins when it is the only one: side by side they would take longer, and be smaller.
    """

    def __init__(
        self, policy: BatchPolicy, cost: Cost, clock: Clock, over: threading.Event
    ) -> None:
        """
        Args:
            cost: seconds that a lane is busy with so many.
            over: set when nothing is to be waited for any more.
        """
        self._waiting: Batcher[T] = Batcher(policy, clock, cost)
        self._large = LARGE * policy.max_size
        self._cost = cost
        self._clock = clock
        self._over = over
        self._lock = threading.Lock()  # owns all below, and what waits
        self._taken, self._left = 0, 0
        self._begun: deque[tuple[int, float]] = deque()  # sizes, and since when
        self._forced = False
        # One idle lane watches for what is due, the others sleep: a thread that wakes for nothing
        # takes the interpreter from those that work.
        self._watch, self._sleep = threading.Condition(self._lock), threading.Condition(self._lock)
        self._watched_until_s = NOBODY
        self._gone = threading.Condition(self._lock)

    @property
    def room(self) -> int:
        """How many more may be added."""
        return self._waiting.room

    def add(self, values: Iterable[T], deadline_s: Callable[[T], float | None]) -> None:
        """Let these wait, as `Batcher.add`."""
        with self._lock:
            self._waiting.add(values, deadline_s)
            self._wake()

    def force(self, forced: bool) -> None:
        """Whether all that waits is to be taken, however little it is."""
        with self._lock:
            self._forced = forced
            self._watch.notify()
            self._sleep.notify_all()

    def free_in_s(self) -> float:
        """Until a lane that is at work will be done, as far as is known; 0: none is."""
        with self._lock:
            begun = list(self._begun)
        now_s = self._clock.monotonic_s()
        left_s = (self._cost.predict(size) - (now_s - since_s) for size, since_s in begun)
        return max(0.0, min(left_s, default=0.0))

    def begin(self) -> Turn[T] | None:
        """Wait for the next batch that is due; None when there is no more work."""
        with self._lock:
            while not self._over.is_set():
                if values := self._waiting.take(self._begin_in_s(), force=self._forced):
                    turn = self._turn(values)
                    self._wake()
                    return turn
                self._wait()
        return None

    def done(self, turn: Turn[T]) -> bool:
        """Wait until all before it have left; False: it is over."""
        with self._lock:
            while self._left != turn.number and not self._over.is_set():
                self._gone.wait(LOOK_S)
        return not self._over.is_set()

    def leave(self) -> None:
        """Let the next one go, once this one is handed on. The lane begins its next batch."""
        with self._lock:
            self._left += 1
            self._begun.popleft()
            self._gone.notify_all()

    def _wait(self) -> None:
        """Until something may be due for this lane."""
        due_in_s = self._due_in_s()
        if self._watched_until_s < NOBODY or (due_in_s == math.inf and self._begun):
            self._wake()  # the one that watches knows less than this one
            self._sleep.wait(LOOK_S)
            return
        wait_s = min(due_in_s, LOOK_S)
        self._watched_until_s = self._clock.monotonic_s() + wait_s
        self._watch.wait(wait_s)
        self._watched_until_s = NOBODY

    def _wake(self) -> None:
        """Wake a lane if there is something to do sooner than it would look."""
        due_in_s = self._due_in_s()
        if due_in_s == math.inf:
            return
        if self._watched_until_s == NOBODY:
            self._sleep.notify()
        elif self._clock.monotonic_s() + due_in_s < self._watched_until_s:
            self._watch.notify()

    def _due_in_s(self) -> float:
        due_in_s = self._waiting.due_in_s(self._begin_in_s())
        return math.inf if due_in_s is None else due_in_s

    def _turn(self, values: Sequence[T]) -> Turn[T]:
        now_s = self._clock.monotonic_s()
        number, self._taken = self._taken, self._taken + 1
        self._begun.append((len(values), now_s))
        return Turn(number=number, values=values, cause=self._waiting.cause, since_s=now_s)

    def _begin_in_s(self) -> float:
        """Until what waits may begin."""
        if not self._begun:
            return 0.0
        if len(self._waiting) < self._large:
            return math.inf  # until the other one leaves
        size, since_s = self._begun[-1]
        half_s = APART * self._cost.predict(size)
        return max(0.0, half_s - (self._clock.monotonic_s() - since_s))
