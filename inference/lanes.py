"""Batches that are scored side by side, and leave in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ingest.clock import Clock

T = TypeVar("T")
LOOK_S: Final = 0.1  # how long a lane waits before it looks whether all is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Generic[T]):
    """A batch in a lane."""

    number: int
    value: T
    since_s: float  # when it began, on the monotonic clock


class Lanes(Generic[T]):
    """
    Shared by as many threads as there are lanes.

    A large batch may begin while those before it are under way: while one computes outside of the
    interpreter, the Python of another gets done. Any other begins when it is the only one: side by
    side it would take longer, and nobody waits for what that gains.
    """

    def __init__(
        self,
        take: Callable[[], T | None],
        large: Callable[[T], bool],
        clock: Clock,
        over: threading.Event,
    ) -> None:
        """
        Args:
            take: waits for the next batch; None: there is no more work.
            large: whether a batch may begin beside others.
            over: set when nothing is to be waited for any more.
        """
        self._take, self._large = take, large
        self._clock = clock
        self._over = over
        self._taking = threading.Lock()  # what is taken first is numbered first
        self._moved = threading.Condition()
        self._taken, self._left = 0, 0
        self._begun_s: deque[float] = deque()

    def begin(self) -> Turn[T] | None:
        """The next batch; None when there is no more work."""
        with self._taking:
            value = self._take()
            if value is None:
                return None
            number, self._taken = self._taken, self._taken + 1
            if not self._large(value) and not self._first(number):
                return None
            now_s = self._clock.monotonic_s()
            with self._moved:
                self._begun_s.append(now_s)
            return Turn(number=number, value=value, since_s=now_s)

    def done(self, turn: Turn[T]) -> bool:
        """Wait until all before it have left; False: it is over."""
        if not self._first(turn.number):
            return False
        with self._moved:
            self._begun_s.popleft()
        return True

    def leave(self) -> None:
        """Let the next one go, once this one is handed on."""
        with self._moved:
            self._left += 1
            self._moved.notify_all()

    def begun_s(self) -> list[float]:
        """When each that is not done began, in order."""
        with self._moved:
            return list(self._begun_s)

    def _first(self, number: int) -> bool:
        with self._moved:
            while self._left != number and not self._over.is_set():
                self._moved.wait(LOOK_S)
        return not self._over.is_set()
