"""Timing, quantiles, and a short profile for what misses its aim."""

from __future__ import annotations

import cProfile
import platform
import pstats
import resource
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import ArrayLike

from deploy import kafka, valkey
from ingest.clock import SystemClock

CLOCK = SystemClock()


class TooSlow(Exception):
    """A wait that has a deadline met it."""


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start_s = CLOCK.monotonic_s()
    work()
    return CLOCK.monotonic_s() - start_s


def rate(n: int, work: Callable[[], object], *, least_s: float = 1.0, passes: int = 3) -> float:
    """
    Units a second: the median over at least `passes` passes of `n` units, and `least_s` in all.
    """
    taken: list[float] = []
    while len(taken) < passes or sum(taken) < least_s:
        taken.append(seconds(work))
    return n / float(np.median(taken))


def quantiles_ms(latencies_s: ArrayLike) -> dict[str, float]:
    """p50, p90, p99 and the largest, in milliseconds."""
    values = np.asarray(latencies_s, np.float64) * 1000
    found = {f"p{q}_ms": round(float(np.percentile(values, q)), 2) for q in (50, 90, 99)}
    return {**found, "max_ms": round(float(values.max()), 2), "n": len(values)}


def wait_until(done: Callable[[], bool], *, timeout_s: float, what: str, every_s: float) -> float:
    """
    When it is done, on the clock of `CLOCK.monotonic_s`.

    Raises:
        TooSlow: it is not after `timeout_s`.
    """
    end_s = CLOCK.monotonic_s() + timeout_s
    while not done():
        if CLOCK.monotonic_s() > end_s:
            raise TooSlow(f"{what} was not so within {timeout_s:g} s")
        CLOCK.sleep(every_s)
    return CLOCK.monotonic_s()


def profiled(work: Callable[[], object], *, top: int = 8) -> list[str]:
    """The functions in which one call spends its time: own share, cumulative share, name."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        work()
    finally:
        profile.disable()
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(row[2] for row in stats.values()) or 1.0
    worst = sorted(stats.items(), key=lambda pair: -pair[1][2])[:top]
    return [
        f"own {own / total:.0%}, with callees {cumulative / total:.0%}, {calls} calls: {_name(key)}"
        for key, (_, calls, own, cumulative, _) in worst
    ]


def shares(stages_s: dict[str, float]) -> dict[str, str]:
    """
    Each stage's part of the whole.

    >>> shares({"read": 1.0, "fold": 3.0})
    {'read': '25%', 'fold': '75%'}
    """
    total = sum(stages_s.values()) or 1.0
    return {name: f"{taken / total:.0%}" for name, taken in stages_s.items()}


def machine() -> str:
    """What it ran on: a line beside every figure."""
    memory = psutil.virtual_memory().total / 2**30
    load = psutil.getloadavg()[0]
    server = ".".join(map(str, valkey.version(valkey.binary())))
    libraries = ", ".join(
        f"{name} {version(name)}"
        for name in ("confluent-kafka", "polars", "numpy", "redis", "apache-beam", "tensorflow")
    )
    return (
        f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, Kafka {kafka.VERSION}, Valkey {server}, {libraries}; "
        f"load {load:.1f} at the start"
    )


def own_cpu_s() -> float:
    """Processor seconds of this process, all threads: little moved by what else runs."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Processor:
    """How much of the machine others took since the start: what disturbs a figure."""

    def __init__(self) -> None:
        self._start_s = CLOCK.monotonic_s()
        self._busy_s = _busy_s() - _family_s()

    def others(self) -> float:
        """Their share of all processors, 0 to 1."""
        whole_s = (CLOCK.monotonic_s() - self._start_s) * (psutil.cpu_count() or 1)
        return min(1.0, max(0.0, (_busy_s() - _family_s() - self._busy_s) / whole_s))


class Cores:
    """How many processors each process keeps busy, from the start to `used`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._start_s = CLOCK.monotonic_s()
        self._before = self._spent()

    def used(self) -> dict[str, float]:
        """Processors by name of the process."""
        wall_s = CLOCK.monotonic_s() - self._start_s
        spent = self._spent()
        return {n: round((spent[n] - self._before[n]) / wall_s, 2) for n in spent}

    def _spent(self) -> dict[str, float]:
        return {n: sum(psutil.Process(pid).cpu_times()[:2]) for n, pid in self._pids.items()}


def _busy_s() -> float:
    """Processor seconds that the machine has spent on anything."""
    times = psutil.cpu_times()
    idle_s: float = times.idle + getattr(times, "iowait", 0.0)
    return sum(times[:8]) - idle_s


def _family_s() -> float:
    """Processor seconds of this process and all below it, those that ended included."""
    me = psutil.Process()
    total = sum(me.cpu_times()[:4])
    for child in me.children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def chunks(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """
    Parts of `size`, the last may be shorter.

    >>> chunks([1, 2, 3], 2)
    [[1, 2], [3]]
    """
    return [values[at : at + size] for at in range(0, len(values), size)]


def _name(key: tuple[str, int, str]) -> str:
    file, line, function = key
    return function if file == "~" else f"{Path(file).name}:{line} {function}"
