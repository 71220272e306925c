"""One timer for many time-outs: each is told, in time, and nobody else."""

from __future__ import annotations

import asyncio

import pytest

from inference.time_limit import TimeLimit

SHORT_S, LONG_S = 0.05, 20.0


def test_those_that_take_longer_are_told_and_the_others_go_on() -> None:
    async def work(limit: TimeLimit, seconds: float) -> str:
        try:
            with limit:
                await asyncio.sleep(seconds)
        except TimeoutError:
            return "late"
        return "done"

    async def main() -> list[str]:
        limit = TimeLimit(SHORT_S)
        first = await asyncio.gather(*(work(limit, s) for s in (LONG_S, 0, LONG_S, 0)))
        return first + await asyncio.gather(*(work(limit, s) for s in (0, LONG_S)))

    assert asyncio.run(main()) == ["late", "done", "late", "done", "done", "late"]


def test_it_is_over_so_long_after_it_began() -> None:
    """The second one begins when the first has waited for a while."""
    loop_s: list[float] = []

    async def work(limit: TimeLimit) -> None:
        start_s = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError), limit:
            await asyncio.sleep(LONG_S)
        loop_s.append(asyncio.get_running_loop().time() - start_s)

    async def main() -> None:
        limit = TimeLimit(SHORT_S)
        first = asyncio.create_task(work(limit))
        await asyncio.sleep(SHORT_S / 2)
        await asyncio.gather(first, work(limit))

    asyncio.run(main())
    assert len(loop_s) == 2
    assert min(loop_s) >= SHORT_S


def test_who_is_cancelled_by_another_is_not_told_of_time() -> None:
    async def work(limit: TimeLimit) -> None:
        with limit:
            await asyncio.sleep(LONG_S)

    async def main() -> None:
        task = asyncio.create_task(work(TimeLimit(LONG_S)))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_who_is_late_and_cancelled_by_another_stays_cancelled() -> None:
    async def work(limit: TimeLimit) -> None:
        with limit:
            try:
                await asyncio.sleep(LONG_S)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                raise

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(work(TimeLimit(SHORT_S)))


def test_an_error_within_is_the_error() -> None:
    async def main() -> None:
        with TimeLimit(LONG_S):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_a_task_is_within_once() -> None:
    async def main() -> None:
        limit = TimeLimit(LONG_S)
        with limit, limit:
            pass

    with pytest.raises(RuntimeError, match="within this limit already"):
        asyncio.run(main())
