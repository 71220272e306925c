"""Time as an argument: the one place that reads a clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """
    Wall time, monotonic time and waiting.

    Implementations must pass `tests.contracts.clock.ClockContract`.
    """

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC. May jump."""

    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start. Never goes back; for durations."""

    def sleep(self, seconds: float) -> None:
        """Return after `seconds` have passed on this clock; at once if that is 0 or less."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000  # noqa: TID251 - the one reader

    def monotonic_s(self) -> float:
        return time.monotonic()  # noqa: TID251 - the one reader

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))  # noqa: TID251 - the one sleeper


class ManualClock:
    """
    A clock that moves when told, or when slept on.

    >>> clock = ManualClock(now_ms=1_000)
    >>> clock.advance(0.5)
    >>> clock.now_ms(), clock.monotonic_s()
    (1500, 0.5)
    """

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._start_ms = now_ms
        self._elapsed_s = 0.0

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        if seconds < 0:
            raise ValueError(f"time does not go back: advance({seconds})")
        self._elapsed_s += seconds

    def now_ms(self) -> int:
        return self._start_ms + round(self._elapsed_s * 1000)

    def monotonic_s(self) -> float:
        return self._elapsed_s

    def sleep(self, seconds: float) -> None:
        self.advance(max(0.0, seconds))
