"""
The batcher beside one of fixed size and time-out, on arrivals of a simulated day.

Both decide on the same clock, for a model whose calls take what the SavedModel took in this run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.batcher import Batcher, BatchPolicy
from inference.cost_model import CostModel
from ingest.clock import ManualClock
from tests.bench.figures import Figure, figure
from tests.bench.serving import ready
from tests.bench.world import World

AIM = 1.5
FIXED = (32, 0.010)  # rows, seconds: what many servers are shipped with
DAY_S = 20.0
P99_S = 0.1  # the throughputs are compared where both stay below
LOADS = tuple(round(0.05 * step, 2) for step in range(2, 21))  # of what the largest batch allows
HALVED = 4  # times, between two of them
NOISE = 0.1
BURST, CALM_S, BURST_S = 3.0, 0.4, 0.1  # times the mean rate; mean lengths


Arrivals = Callable[[float, np.random.Generator], NDArray[np.float64]]  # requests/s -> times
Told = Callable[[int, float], None]  # rows and seconds of a call


class Waiting(Protocol):
    """A batcher: one of the two."""

    def add(self, now_s: float, count: int) -> None: ...

    def take(self, now_s: float, free_in_s: float) -> int: ...

    def due_in_s(self, now_s: float, free_in_s: float) -> float | None: ...


class Ours:
    """The product's, on a clock of its own; it learns what calls take while it serves."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._clock = ManualClock()
        self.cost = CostModel(sizes)
        policy = BatchPolicy(max_size=sizes[-1], objective_s=P99_S / 2, max_pending=1_000_000)
        self._batcher: Batcher[None] = Batcher(policy, self._clock, self.cost)

    def add(self, now_s: float, count: int) -> None:
        self._at(now_s)
        self._batcher.add([None] * count)

    def take(self, now_s: float, free_in_s: float) -> int:
        self._at(now_s)
        return len(self._batcher.take(free_in_s))

    def due_in_s(self, now_s: float, free_in_s: float) -> float | None:
        self._at(now_s)
        return self._batcher.due_in_s(free_in_s)

    def _at(self, now_s: float) -> None:
        self._clock.advance(max(0.0, now_s - self._clock.monotonic_s()))


class Fixed:
    """Full, or the first has waited long enough."""

    def __init__(self, size: int, wait_s: float) -> None:
        self._size, self._wait_s = size, wait_s
        self._since: deque[float] = deque()

    def add(self, now_s: float, count: int) -> None:
        self._since.extend([now_s] * count)

    def take(self, now_s: float, free_in_s: float) -> int:
        due_s = self.due_in_s(now_s, free_in_s)
        if due_s is None or due_s > 1e-9 or free_in_s > 0:
            return 0
        size = min(self._size, len(self._since))
        for _ in range(size):
            self._since.popleft()
        return size

    def due_in_s(self, now_s: float, free_in_s: float) -> float | None:
        if not self._since:
            return None
        waited_s = now_s - self._since[0]
        left_s = 0.0 if len(self._since) >= self._size else self._wait_s - waited_s
        return max(0.0, left_s, free_in_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one day: whether the model kept up is in the latency."""

    per_s: float
    p50_s: float
    p99_s: float
    busy: float  # share of the time that the model computed


def run(world: World) -> Iterator[Figure]:
    """The highest load that each bears with the same p99, on Poisson and on bursty arrivals."""
    _, alone = ready(world)
    calls_s = {size: size / per_s for size, per_s in sorted(alone.items())}
    most = max(alone.values())
    for kind, arrivals in (("Poisson", poisson), ("bursty", bursty)):
        both = {
            name: partial(_outcome, waiting, arrivals, calls_s)
            for name, waiting in BATCHERS.items()
        }
        found = {name: [at(load) for load in LOADS] for name, at in both.items()}
        for name, outcomes in found.items():
            world.curves[f"batcher-{kind.lower()}-{name}"] = {
                round(one.per_s): 1000 * one.p99_s for one in outcomes
            }
        best = {name: borne(outcomes, both[name]) for name, outcomes in found.items()}
        low = {name: outcomes[2] for name, outcomes in found.items()}
        yield figure(
            f"batcher on {kind} arrivals, load at p99 of {1000 * P99_S:g} ms, simulated",
            best["ours"],
            "requests/s",
            aim=AIM * best["fixed"] if kind == "bursty" else None,
            peer=(f"fixed, {FIXED[0]} or {1000 * FIXED[1]:g} ms", best["fixed"]),
            limits={"the model at its largest batch": most},
            at_fifth_of_load={
                name: f"p50 {1000 * one.p50_s:.1f} ms, p99 {1000 * one.p99_s:.1f} ms, model busy "
                f"{one.busy:.0%}"
                for name, one in low.items()
            },
            calls_ms={size: round(1000 * s, 2) for size, s in calls_s.items()},
        )


def _outcome(
    batcher: Callable[[Sequence[int]], tuple[Waiting, Told]],
    arrivals: Arrivals,
    calls_s: dict[int, float],
    load: float,
) -> Outcome:
    """Of a day at a load, a share of what the largest batch allows."""
    most = max(size / call_s for size, call_s in calls_s.items())
    waiting, told = batcher(tuple(calls_s))
    return day(waiting, arrivals(load * most, np.random.default_rng(7)), calls_s, told)


def _ours(sizes: Sequence[int]) -> tuple[Waiting, Told]:
    waiting = Ours(sizes)
    return waiting, waiting.cost.observe


def _fixed(_: Sequence[int]) -> tuple[Waiting, Told]:
    return Fixed(*FIXED), lambda *_: None


BATCHERS = {"ours": _ours, "fixed": _fixed}


def borne(outcomes: Sequence[Outcome], at: Callable[[float], Outcome]) -> float:
    """
    The highest load whose p99 is low enough, as that of all below is.

    Args:
        outcomes: of `LOADS`.
        at: the outcome at any load; the edge lies between two of `LOADS`, and is halved towards.
    """
    best, low, high = 0.0, 0.0, LOADS[-1]
    for load, one in zip(LOADS, outcomes, strict=True):
        if one.p99_s > P99_S:
            high = load
            break
        best, low = one.per_s, load
    for _ in range(HALVED if low < high else 0):
        one = at(middle := (low + high) / 2)
        if one.p99_s > P99_S:
            high = middle
        else:
            best, low = one.per_s, middle
    return best


def poisson(per_s: float, chance: np.random.Generator) -> NDArray[np.float64]:
    """Arrival times of a day."""
    return np.sort(chance.uniform(0, DAY_S, chance.poisson(per_s * DAY_S)))


def bursty(per_s: float, chance: np.random.Generator) -> NDArray[np.float64]:
    """A Markov-modulated Poisson process: calm, and bursts of BURST times the mean rate."""
    calm = (1 - BURST * BURST_S / (CALM_S + BURST_S)) * (CALM_S + BURST_S) / CALM_S
    phases = np.random.default_rng(5)  # the same at every load
    at_s, parts = 0.0, []
    while at_s < DAY_S:
        for share, length_s in ((calm, CALM_S), (BURST, BURST_S)):
            lasts_s = phases.exponential(length_s)
            count = chance.poisson(share * per_s * lasts_s)
            parts.append(at_s + np.sort(chance.uniform(0, lasts_s, count)))
            at_s += lasts_s
    times = np.concatenate(parts)
    return times[times < DAY_S]


def day(
    waiting: Waiting,
    times: NDArray[np.float64],
    calls_s: dict[int, float],
    told: Told,
) -> Outcome:
    """One model that takes one batch at a time."""
    sizes = sorted(calls_s)
    chance = np.random.default_rng(11)
    came: deque[float] = deque()
    latencies: list[float] = []
    at_s = free_s = busy_s = 0.0
    following = 0
    while following < len(times) or came:
        if not came:
            at_s = max(at_s, float(times[following]))
        last = int(np.searchsorted(times, at_s, side="right"))
        if last > following:
            came.extend(times[following:last].tolist())
            waiting.add(at_s, last - following)
            following = last
        size = waiting.take(at_s, max(0.0, free_s - at_s))
        if size:
            padded = sizes[int(np.searchsorted(sizes, size))]
            call_s = calls_s[padded] * (1 + NOISE * abs(float(chance.standard_normal())))
            free_s = max(free_s, at_s) + call_s
            busy_s += call_s
            told(size, call_s)
            latencies += [free_s - came.popleft() for _ in range(size)]
            continue
        due_s = waiting.due_in_s(at_s, max(0.0, free_s - at_s))
        wake_s = at_s + max(1e-6, due_s if due_s is not None else DAY_S)
        if following < len(times):
            wake_s = min(wake_s, max(at_s + 1e-9, float(times[following])))
        at_s = wake_s
    p50_s, p99_s = np.percentile(latencies, [50, 99])
    lasted_s = max(DAY_S, free_s)
    return Outcome(len(times) / lasted_s, float(p50_s), float(p99_s), busy_s / lasted_s)
