"""Time-outs of one length for many coroutines, with one timer between them."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, TypeAlias

_Task: TypeAlias = "asyncio.Task[Any]"


class TimeLimit:
    """
    `with limit:` around an await is `asyncio.timeout` of its length, in a quarter of the time: that
    one makes a timer for each. For one event loop; a task may be in it once at a time.

    Raises, from the block, TimeoutError: it took longer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # When each is over, the first first, and how often its task was being cancelled before.
        self._due: dict[_Task, tuple[float, int]] = {}
        self._over: dict[_Task, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task, loop = _current(), asyncio.get_running_loop()
        if task in self._due:
            raise RuntimeError("this task is within this limit already")
        self._due[task] = (loop.time() + self._seconds, task.cancelling())
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task = _current()
        if self._due.pop(task, None) is not None:
            return
        # The cancellation is taken back; was there another one, it stays one.
        alone = task.uncancel() <= self._over.pop(task)
        if alone and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _look(self) -> None:
        """Cancel those whose time is over, and look again when that of the next one is."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        late = []
        for task, (due_s, _) in self._due.items():
            if due_s > now_s:
                break
            late.append(task)
        for task in late:
            self._over[task] = self._due.pop(task)[1]
            task.cancel()
        following = next(iter(self._due.values()), None)
        self._timer = None if following is None else loop.call_at(following[0], self._look)


def _current() -> _Task:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a time limit needs a task to cancel")
    return task
