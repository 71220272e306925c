"""
Calls from many connections, worked on together: while one batch is at work, the next gathers.

A batch takes two steps. The first (read rows, call the model) is one batch's at a time; the second
(make the answers) runs beside the first step of the next batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from inference.batcher import Batcher, BatchPolicy
from ingest.clock import Clock
from schemas.errors import MillstreamError, Overloaded

log = structlog.get_logger(__name__)

T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R")

IDLE_S = 0.5  # how long a thread waits before it looks whether to stop
THREADS = 2  # one for each step
JOIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Generic[T, S, R]):
    """What is done with a batch of n calls."""

    first: Callable[[Sequence[T]], S]
    second: Callable[[S], Sequence[R | MillstreamError]]  # [n] in the order of the calls


class Gatherer(Generic[T, S, R]):
    """
    A bounded queue of calls and the threads that work on them in batches.

    A lone call leaves at once. Calls whose caller has given up are dropped before they cost work.
    """

    def __init__(self, name: str, work: Work[T, S, R], policy: BatchPolicy, clock: Clock) -> None:
        self._name = name
        self._work = work
        self._batcher: Batcher[tuple[T, Future[R]]] = Batcher(policy, clock)
        self._max_pending = policy.max_pending
        self._changed = threading.Condition()
        self._first_step = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{turn}", daemon=True)
            for turn in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, value: T) -> Future[R]:
        """
        The answer to come. Thread-safe.

        Raises:
            Overloaded: as many wait as may.
        """
        future: Future[R] = Future()
        with self._changed:
            if self._closed:
                raise Overloaded(f"{self._name}: this instance is stopping")
            try:
                self._batcher.add([(value, future)])
            except OverflowError:
                raise Overloaded(
                    f"{self._name}: {self._max_pending} calls wait already, come back later"
                ) from None
            self._changed.notify()
        return future

    def close(self) -> None:
        """Take no more calls; return when those that wait are answered. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(JOIN_S)

    def _run(self) -> None:
        taken: list[tuple[T, Future[R]]] | None = []
        while taken is not None:
            try:
                with self._first_step:
                    taken = self._take()
                    if not taken:
                        continue
                    made = self._work.first([value for value, _ in taken])
                self._answer(taken, self._work.second(made))
            except Exception as error:  # noqa: BLE001 - any bug: those who wait must hear of it
                self._tell(taken or (), error)

    def _take(self) -> list[tuple[T, Future[R]]] | None:
        """The next batch, without those that nobody waits for any more. None: there is no more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._batcher) or self._closed, IDLE_S)
            taken = self._batcher.take(force=True)
            if not taken and self._closed:
                return None
        return [(v, future) for v, future in taken if future.set_running_or_notify_cancel()]

    def _answer(
        self, taken: Sequence[tuple[T, Future[R]]], answers: Sequence[R | MillstreamError]
    ) -> None:
        if len(answers) != len(taken):
            raise RuntimeError(f"{len(answers)} answers for {len(taken)} calls")
        for (_, future), answer in zip(taken, answers, strict=True):
            if isinstance(answer, MillstreamError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _tell(self, taken: Sequence[tuple[T, Future[R]]], error: Exception) -> None:
        """The error to all calls of the batch that broke; the next batches go on."""
        log.error("network.batch_failed", batch=self._name, calls=len(taken), exc_info=error)
        for _, future in taken:
            future.set_exception(error)
