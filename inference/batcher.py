"""
When to score: requests gather until the batch is full or the first of them has waited long enough.

Pure but for the clock it is given: nothing here waits or starts a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from ingest.clock import Clock

T = TypeVar("T")
Cause = Literal["full", "waited", "forced", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """Size and patience."""

    max_size: int = 128
    max_wait_s: float = 0.005
    max_pending: int = 4096  # the batcher takes no more than this; its owner stops fetching

    def __post_init__(self) -> None:
        if self.max_size < 1:
            raise ValueError(f"max_size must be at least 1, got {self.max_size}")
        if self.max_wait_s < 0:
            raise ValueError(f"max_wait_s must not be negative, got {self.max_wait_s}")
        if self.max_pending < self.max_size:
            raise ValueError(
                f"max_pending must be at least max_size ({self.max_size}), got {self.max_pending}"
            )


class Batcher(Generic[T]):
    """
    First in, first out: so what came in order from one partition leaves in that order.

    >>> from ingest.clock import ManualClock
    >>> clock = ManualClock()
    >>> batcher = Batcher(BatchPolicy(max_size=2, max_wait_s=0.01), clock)
    >>> batcher.add(["a"]); batcher.take()
    []
    >>> clock.advance(0.01); batcher.take()
    ['a']
    """

    def __init__(self, policy: BatchPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._waiting: deque[tuple[float, T]] = deque()
        self.cause: Cause = "none"  # why the last batch left

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more may be added."""
        return self._policy.max_pending - len(self._waiting)

    def add(self, values: Iterable[T]) -> None:
        """
        Let these wait.

        Raises:
            OverflowError: there is no room; ask `room` first. Nothing was added.
        """
        since = self._clock.monotonic_s()
        added = [(since, value) for value in values]
        if len(added) > self.room:
            raise OverflowError(f"{len(added)} values for room for {self.room}")
        self._waiting.extend(added)

    def due_in_s(self) -> float | None:
        """Seconds until `take` gives something; 0: now; None: nothing waits."""
        if not self._waiting:
            return None
        if len(self._waiting) >= self._policy.max_size:
            return 0.0
        waited = self._clock.monotonic_s() - self._waiting[0][0]
        return max(0.0, self._policy.max_wait_s - waited)

    def take(self, *, force: bool = False) -> list[T]:
        """The next batch, at most `max_size`; empty while none is due (unless forced)."""
        due = self.due_in_s()
        if due is None or (due > 0 and not force):
            self.cause = "none"
            return []
        size = min(self._policy.max_size, len(self._waiting))
        full = len(self._waiting) >= self._policy.max_size
        self.cause = "full" if full else "waited" if due == 0 else "forced"
        return [self._waiting.popleft()[1] for _ in range(size)]
