"""Versions change under load: what a request sees of it, and what stays in memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from inference import operator
from ingest.settings import Settings
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, TooSlow, quantiles_ms
from tests.bench.serve_log import SPOKEN, ServeLog
from tests.bench.serving import Client, Took, export_version, ready
from tests.bench.world import World
from tests.published import publish

VERSIONS = 3  # one more than are kept in memory, so each swap loads one and gives one back
EVERY_S = 2.0
P99_AIM, FIRST_AIM, GROWTH_AIM = 1.2, 1.5, 0.01
SETTLED = 20  # swaps after which memory is to stay as it is
SAMPLE = 5  # swaps whose median is compared
LIGHT_PER_S = 50.0  # load while memory is watched
PART_S = 3.0
SERVES_S = 60.0
POLL_S = 0.02


@dataclass(slots=True)
class Swapped:
    """One swap."""

    version: int
    promoted_s: float
    serving_s: float
    resident: int  # bytes, of the serving process


@dataclass(slots=True, kw_only=True)
class Swapper:
    """Promotes the versions in turn, in a thread; the next one once the last one serves."""

    settings: Settings
    versions: Sequence[int]
    log: ServeLog
    process: psutil.Process
    done: list[Swapped] = field(default_factory=list)
    error: BaseException | None = None
    _turn: int = 0  # of the version that serves

    def started(self, count: int, every_s: float) -> threading.Thread:
        """So many swaps, `every_s` apart at least."""
        self.done = []
        thread = threading.Thread(target=self._run, args=(count, every_s), daemon=True)
        thread.start()
        return thread

    def _run(self, count: int, every_s: float) -> None:
        try:
            for _ in range(count):
                self._swap()
                CLOCK.sleep(max(0.0, self.done[-1].promoted_s + every_s - CLOCK.monotonic_s()))
        except Exception as error:  # noqa: BLE001 - raised by who waits for the thread
            self.error = error

    def _swap(self) -> None:
        self._turn += 1
        version = self.versions[self._turn % len(self.versions)]
        promoted_s = CLOCK.monotonic_s()
        release = operator.promote(self.settings, version, "to be measured")
        while not any(
            line.event == "release.serving" and line.fields["generation"] == release.generation
            for line in self.log.lines()
        ):
            if CLOCK.monotonic_s() > promoted_s + SERVES_S:
                raise TooSlow(f"version {version} did not serve within {SERVES_S:g} s")
            CLOCK.sleep(POLL_S)
        resident = self.process.memory_info().rss
        self.done.append(Swapped(version, promoted_s, CLOCK.monotonic_s(), resident))


def run(world: World) -> Iterator[Figure]:
    """Steady load without swaps and with them, then many swaps under a light one."""
    settings, _ = ready(world)
    state = operator.state(settings)
    assert state.release is not None
    stable = state.release.stable
    versions = [stable, *(_published(world, settings, seed) for seed in range(2, VERSIONS + 1))]
    with world.command(settings, "serve", environment=SPOKEN) as path:
        (child,) = (c for c in world.supervisor.children() if c.name == "serve")
        swapper = Swapper(
            settings=settings,
            versions=versions,
            log=ServeLog(path, _size(path)),
            process=psutil.Process(child.pid),
        )
        client = Client(world, settings)
        client.warm()
        per_s = world.sizes.serve_requests / client.burst(world.sizes.serve_requests) / 2
        client.settle(per_s)
        quiet = _modelled(client.steady(per_s, world.sizes.paced_s))
        swaps = max(2, int(world.sizes.paced_s / EVERY_S))
        under = _through(swapper, client, per_s, swaps, EVERY_S)
        changes = swapper.done
        _through(swapper, client, LIGHT_PER_S, world.sizes.swaps, 0.0)
        many = swapper.done
        client.close()
    _restore(settings, stable)
    yield from _latencies(quiet, under, changes, per_s)
    yield _memory(many)


def _published(world: World, settings: Settings, seed: int) -> int:
    """One more version, trained on something else."""
    staging = world.directory / f"staging-{seed}"
    export_version(world, staging, settings, seed)
    return publish(settings, staging)


def _through(
    swapper: Swapper, client: Client, per_s: float, count: int, every_s: float
) -> list[Took]:
    """What a steady load got while so many swaps took place."""
    thread = swapper.started(count, every_s)
    found: list[Took] = []
    while thread.is_alive():
        found += client.steady(per_s, PART_S)
    thread.join()
    if swapper.error is not None:
        raise swapper.error
    return _modelled(found)


def _modelled(took: list[Took]) -> list[Took]:
    """
    Raises:
        RuntimeError: somebody was not answered by a model.
    """
    if reasons := [one.reason for one in took if one.reason is not None]:
        raise RuntimeError(f"{len(reasons)} of {len(took)} answered without a model: {reasons[:3]}")
    return took


def _latencies(
    quiet: list[Took], under: list[Took], changes: list[Swapped], per_s: float
) -> Iterator[Figure]:
    still, moved = (quantiles_ms([t.latency_s for t in took]) for took in (quiet, under))
    apart = [b.promoted_s - a.promoted_s for a, b in itertools.pairwise(changes)]
    yield figure(
        f"p99 while versions change every {EVERY_S:g} s, beside none",
        moved["p99_ms"] / still["p99_ms"],
        "times",
        aim=P99_AIM,
        smaller_is_better=True,
        without_swaps=still,
        with_swaps=moved,
        swaps=len(changes),
        seconds_apart=round(float(np.median(apart)), 1) if apart else None,
        promoted_to_serving_s=[round(one.serving_s - one.promoted_s, 2) for one in changes],
        requests_per_s=round(per_s),
        note="every request got one answer, by a model; each swap loads a version of full size, "
        "whose graph is that of the others as after a retraining, and gives one back; the next one "
        f"waits until the last one serves, {EVERY_S:g} s at least",
    )
    firsts = [first for one in changes if (first := _first(under, one)) is not None]
    if not firsts:
        raise RuntimeError("no version that was promoted has answered")
    first_ms = 1000 * float(np.median([one.latency_s for one in firsts]))
    yield figure(
        "first answer of a new version, beside the usual one",
        first_ms / still["p50_ms"],
        "times",
        aim=FIRST_AIM,
        smaller_is_better=True,
        first_ms=[round(1000 * one.latency_s, 1) for one in firsts],
        usual_p50_ms=still["p50_ms"],
        note="medians; from sending the request to reading its answer",
    )


def _first(took: list[Took], swap: Swapped) -> Took | None:
    """The first answer of a version after its promotion; it did not serve at that time."""
    later = [t for t in took if t.version == swap.version and t.received_s > swap.promoted_s]
    return min(later, key=lambda one: one.received_s, default=None)


def _memory(many: list[Swapped]) -> Figure:
    """
    Growth from after the first swaps to the last ones.

    Raises:
        ValueError: there were too few swaps to compare any.
    """
    if len(many) < SETTLED + 2 * SAMPLE:
        raise ValueError(f"{len(many)} swaps, expected at least {SETTLED + 2 * SAMPLE}")
    before = float(np.median([one.resident for one in many[SETTLED : SETTLED + SAMPLE]]))
    after = float(np.median([one.resident for one in many[-SAMPLE:]]))
    return figure(
        f"growth of the resident set after the first {SETTLED} of {len(many)} swaps",
        after / before - 1,
        "of it",
        aim=GROWTH_AIM,
        smaller_is_better=True,
        mib_by_tenth_swap=[round(one.resident / 2**20) for one in many[::10]],
        mib_at_the_end=round(after / 2**20),
        swap_s=round(float(np.median([one.serving_s - one.promoted_s for one in many])), 2),
        requests_per_s=LIGHT_PER_S,
    )


def _restore(settings: Settings, version: int) -> None:
    """Leave the release as the other parts expect it."""
    release = operator.state(settings).release
    if release is not None and release.stable != version:
        operator.promote(settings, version, "measured")


def _size(path: Path) -> int:
    return path.stat().st_size
