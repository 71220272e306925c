"""
Calls from many connections, worked on together: while one batch is at work, the next gathers.

A batch takes two steps. The first (read rows, call the model) is one batch's at a time; the second
(make the answers) runs beside the first step of the next batch, which is about as large.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from schemas.errors import Overloaded

log = structlog.get_logger(__name__)

T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R")

IDLE_S = 0.5  # how long a thread waits before it looks whether to stop
THREADS = 2  # one for each step
JOIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of calls: in one batch, and waiting; `linger_s`: how long the first waits for others."""

    batch: int
    waiting: int
    linger_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Generic[T, S, R]):
    """What is done with a batch of n calls."""

    first: Callable[[Sequence[T]], S]
    second: Callable[[S], Sequence[R | Exception]]  # [n] in the order of the calls


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T, R]):
    """A call in the queue. `answer` None: nobody waits, the work is all that is wanted."""

    value: T
    answer: asyncio.Future[R] | None

    @property
    def given_up(self) -> bool:
        """Whether somebody waited, and does no more."""
        return self.answer is not None and self.answer.cancelled()


class Gatherer(Generic[T, S, R]):
    """
    A bounded queue of calls and the threads that work on them in batches.

    A lone call leaves at once, or once it has lingered. Calls whose caller has given up are dropped
    before they cost work.
    """

    def __init__(self, name: str, work: Work[T, S, R], bounds: Bounds) -> None:
        self._name = name
        self._work = work
        self._bounds = bounds
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._changed = threading.Condition()
        self._first_step = threading.Lock()
        self._last = 0  # calls in the last batch
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{turn}", daemon=True)
            for turn in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    async def ask(self, value: T) -> R:
        """
        The answer.

        Raises:
            Overloaded: as many calls wait as may.
            Exception: the work's own answer to this call.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._add(_Waiting(value, answer))
        return await answer

    def tell(self, value: T) -> None:
        """
        Let it be worked on; nobody hears of it. Thread-safe.

        Raises:
            Overloaded: as many calls wait as may.
        """
        self._add(_Waiting(value, None))

    def close(self) -> None:
        """Take no more calls; return when those that wait are answered. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(JOIN_S)

    def _add(self, call: _Waiting[T, R]) -> None:
        with self._changed:
            if self._closed:
                raise Overloaded(f"{self._name}: this instance is stopping")
            if len(self._waiting) >= self._bounds.waiting:
                raise Overloaded(
                    f"{self._name}: {self._bounds.waiting} calls wait already, come back later"
                )
            self._waiting.append(call)
            self._changed.notify()

    def _run(self) -> None:
        taken: list[_Waiting[T, R]] | None = []
        while taken is not None:
            try:
                with self._first_step:
                    taken = self._take()
                    if not taken:
                        continue
                    made = self._work.first([call.value for call in taken])
                answers = self._work.second(made)
                _deliver(list(zip(taken, answers, strict=True)))
            except Exception as error:
                # Any bug: those who wait must hear of it, and the next batches go on.
                log.exception("network.batch_failed", batch=self._name, calls=len(taken or ()))
                _deliver([(call, error) for call in taken or ()])

    def _enough(self) -> bool:
        return self._closed or len(self._waiting) >= self._bounds.batch

    def _count(self) -> int:
        """
        Of the next batch: half of it and the last one together, so that the two are alike.

        Callers with a call under way at a time ask again when they have their answers. If most of
        them are in one batch, the model waits for the callers of that one, and then they for it.
        """
        waiting = len(self._waiting)
        share = -(-(waiting + self._last) // 2)
        # Those that linger shall be many.
        self._last = min(self._bounds.batch, waiting, waiting if self._bounds.linger_s else share)
        return self._last

    def _take(self) -> list[_Waiting[T, R]] | None:
        """The next batch, without those that nobody waits for any more. None: there is no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, IDLE_S)
            if self._waiting and self._bounds.linger_s:
                self._changed.wait_for(self._enough, self._bounds.linger_s)
            count = self._count()
            taken = [self._waiting.popleft() for _ in range(count)]
            if not taken and self._closed:
                return None
        return [call for call in taken if not call.given_up]


def _deliver(answers: Sequence[tuple[_Waiting[T, R], R | Exception]]) -> None:
    """
    Tell the callers, all of one loop at once: waking a loop costs a system call, which gives the
    interpreter's lock away, 0.2 ms each time under load.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[R], R | Exception]]] = {}
    for call, answer in answers:
        if call.answer is not None:
            by_loop.setdefault(call.answer.get_loop(), []).append((call.answer, answer))
    for loop, pairs in by_loop.items():
        with suppress(RuntimeError):  # the loop has ended, and with it all that waited
            loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: Sequence[tuple[asyncio.Future[R], R | Exception]]) -> None:
    for future, answer in pairs:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
