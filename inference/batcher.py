"""
When to score: requests gather while that gains something and no deadline is near.

A call takes `a + b * rows` (`inference.cost_model`), so large batches serve more and small ones
sooner. While the model is busy, requests gather. While it is idle, they gather until as many wait
as come while a batch is worked on, and some more (a control limit: Deb and Serfozo, "Optimal
control of batch service queues", 1973): batches that follow each other without a pause leave no
room for an unlucky one.

The decision is pure; nothing here waits or starts a thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from ingest.clock import Clock

T = TypeVar("T")
RATE_S: Final = 0.1  # over how long arrivals are counted, each less the longer ago
# Best time between batches, in times of what one takes. With a batch of s every T, whoever comes
# waits T / 2 until it leaves, and about s / (1 - s / T) until it is done: least at (1 + sqrt 2) s.
CALM: Final = 1 + math.sqrt(2)


class Cause(StrEnum):
    """Why a batch was dispatched."""

    FULL = "full"
    DEADLINE = "deadline"  # waiting longer would miss the first deadline
    ENOUGH = "enough"  # as many wait as come in the best time between batches
    FORCED = "forced"  # the owner gives up its partitions, or ends


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Score the first `size` now."""

    size: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for so long, unless something comes or the model is free sooner."""

    seconds: float


Decision: TypeAlias = Dispatch | Wait


class Cost(Protocol):
    """Seconds that something takes for so many requests. `CostModel`, or a constant in a test."""

    def predict(self, rows: int) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """Size and patience."""

    max_size: int = 256
    objective_s: float = 0.025  # in which what is added without a deadline is to be answered
    max_pending: int = 4096  # the batcher takes no more than this; its owner stops fetching

    def __post_init__(self) -> None:
        if self.max_size < 1:
            raise ValueError(f"max_size must be at least 1, got {self.max_size}")
        if self.objective_s < 0:
            raise ValueError(f"objective_s must not be negative, got {self.objective_s}")
        if self.max_pending < self.max_size:
            raise ValueError(
                f"max_pending must be at least max_size ({self.max_size}), got {self.max_pending}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What waits, and when it could be scored."""

    count: int  # at least 1
    deadline_in_s: float  # of whoever must be answered first
    per_s: float  # arrivals; falls by the factor e every `RATE_S` in which none comes
    free_in_s: float  # until the model is free; 0: it is


def decide(queue: Queue, max_size: int, cost: Cost) -> Decision:
    """
    Whether to dispatch, and why.

    >>> from types import SimpleNamespace
    >>> cost = SimpleNamespace(predict=lambda rows: 0.005)
    >>> few = Queue(count=3, deadline_in_s=0.02, per_s=100.0, free_in_s=0.0)
    >>> decide(few, 64, cost)
    Dispatch(size=3, cause=<Cause.ENOUGH: 'enough'>)
    >>> busy = Queue(count=3, deadline_in_s=0.02, per_s=100.0, free_in_s=0.003)
    >>> decide(busy, 64, cost)
    Wait(seconds=0.003)
    """
    if queue.count >= max_size:
        return Dispatch(max_size, Cause.FULL)
    if queue.free_in_s > 0:  # closed now, it would only stop growing
        return Wait(queue.free_in_s)
    batch_s = cost.predict(queue.count)
    slack_s = queue.deadline_in_s - batch_s
    if slack_s <= 0:
        return Dispatch(queue.count, Cause.DEADLINE)
    enough = CALM * queue.per_s * batch_s
    if queue.count >= enough:
        return Dispatch(queue.count, Cause.ENOUGH)
    # If nothing else comes, the rate falls until those that wait are enough.
    return Wait(min(slack_s, RATE_S * math.log(enough / queue.count)))


class Batcher(Generic[T]):
    """
    First in, first out: so what came in order from one partition leaves in that order.

    >>> from ingest.clock import ManualClock
    >>> from types import SimpleNamespace
    >>> cost = SimpleNamespace(predict=lambda rows: 0.001)
    >>> batcher = Batcher(BatchPolicy(max_size=2), ManualClock(), cost)
    >>> batcher.add(["a"]); batcher.take(free_in_s=0.5)
    []
    >>> batcher.add(["b", "c"]); batcher.take(free_in_s=0.5), batcher.cause
    (['a', 'b'], <Cause.FULL: 'full'>)
    """

    def __init__(self, policy: BatchPolicy, clock: Clock, cost: Cost) -> None:
        """`cost`: from dispatch to the answers of so many."""
        self._policy = policy
        self._clock = clock
        self._cost = cost
        self._waiting: deque[T] = deque()
        self._first = 0  # number of the first that waits, counted from the beginning
        # (deadline, number), both ascending: the first is the tightest of all that wait.
        self._tightest: deque[tuple[float, int]] = deque()
        self._rate = 0.0  # arrivals/s as of `_rated_s`
        self._rated_s = clock.monotonic_s()
        self.cause: Cause | None = None  # why the last batch left

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more may be added."""
        return self._policy.max_pending - len(self._waiting)

    def add(
        self, values: Iterable[T], deadline_s: Callable[[T], float | None] = lambda _: None
    ) -> None:
        """
        Let these wait.

        Args:
            deadline_s: on the monotonic clock, by when a value must be answered; None: by the
                service's objective.

        Raises:
            OverflowError: there is no room; ask `room` first. Nothing was added.
        """
        now_s = self._clock.monotonic_s()
        added = list(values)
        if len(added) > self.room:
            raise OverflowError(f"{len(added)} values for room for {self.room}")
        for number, value in enumerate(added, self._first + len(self._waiting)):
            given = deadline_s(value)
            due_s = now_s + self._policy.objective_s if given is None else given
            while self._tightest and self._tightest[-1][0] >= due_s:
                self._tightest.pop()
            self._tightest.append((due_s, number))
        self._waiting.extend(added)
        self._rate = self._per_s(now_s) + len(added) / RATE_S
        self._rated_s = now_s

    def due_in_s(self, free_in_s: float = 0.0) -> float | None:
        """Seconds until `take` gives something, if nothing comes; 0: now; None: nothing waits."""
        match self._decision(free_in_s):
            case None:
                return None
            case Wait(seconds):
                return seconds
            case Dispatch():
                return 0.0

    def take(self, free_in_s: float = 0.0, *, force: bool = False) -> list[T]:
        """The next batch, at most `max_size`; empty while none is due (unless forced)."""
        decision = self._decision(free_in_s)
        if decision is None or (isinstance(decision, Wait) and not force):
            return []
        if isinstance(decision, Wait):
            decision = Dispatch(min(len(self._waiting), self._policy.max_size), Cause.FORCED)
        self.cause = decision.cause
        self._first += decision.size
        while self._tightest and self._tightest[0][1] < self._first:
            self._tightest.popleft()
        return [self._waiting.popleft() for _ in range(decision.size)]

    def _decision(self, free_in_s: float) -> Decision | None:
        if not self._waiting:
            return None
        now_s = self._clock.monotonic_s()
        queue = Queue(
            count=len(self._waiting),
            deadline_in_s=self._tightest[0][0] - now_s,
            per_s=self._per_s(now_s),
            free_in_s=free_in_s,
        )
        return decide(queue, self._policy.max_size, self._cost)

    def _per_s(self, now_s: float) -> float:
        return self._rate * math.exp((self._rated_s - now_s) / RATE_S)
