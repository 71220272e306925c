"""Exactly once beside at least once: what transactions cost, and all that is not the model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import psutil
from numpy.typing import NDArray

from features.assemble import UserFeatures
from features.catalog import CATALOG
from features.items import ItemTable
from inference.early import limit_blas
from inference.model import ModelRef
from inference.server import Options
from ingest.metrics import MemoryMetrics
from schemas.events import Item
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, TooSlow, quantiles_ms
from tests.bench.serving import (
    BATCHES,
    LIMIT_S,
    QUIET,
    SETTLE_S,
    Client,
    K,
    Took,
    features,
    ready,
)
from tests.bench.world import World

SHARE_AIM = 0.9  # of the SavedModel called in a loop
OVERHEAD_US = 60.0
SOON_MS, BUSY_MS = 25.0, 60.0
LIKE_AIM, MORE_MS = 0.8, 50.0  # exactly once: of the throughput of at least once; p99 beyond it
HALF, MOST = "half of peak load", "nine tenths of peak load"  # see `peak_load`
HALF_BURST = "half of a burst's rate"
AIMS_MS = {HALF: SOON_MS, MOST: BUSY_MS, HALF_BURST: SOON_MS}  # p99, at least once
TRY_S, TRIES = 6.0, 5  # a rate that is tried, and how many are: to a 32nd of the burst's rate
KEPT_S = 0.2  # waiting that an overload of a thirtieth makes in that time


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one way of delivery gave."""

    per_s: float  # of a burst
    cpu_us: float  # of the serving process, a request
    rates: Mapping[str, float]  # requests/s by load
    latencies_s: Mapping[str, Sequence[float]]  # by load

    def p99_ms(self, load: str) -> float:
        return quantiles_ms(self.latencies_s[load])["p99_ms"]


def run(world: World) -> Iterator[Figure]:
    """The same requests, delivered both ways in turn."""
    _, alone = ready(world)
    best = max(alone.values())
    least = _served(world, "at-least-once")
    halves = {load: least.rates[load] for load in (HALF, HALF_BURST)}
    exactly = _served(world, "exactly-once", halves)
    limits = {"the SavedModel alone, its best batch": best}
    yield figure(
        "recommendations through Kafka, at least once",
        least.per_s,
        "recommendations/s",
        aim=SHARE_AIM * best,
        limits=limits,
        requests=world.sizes.serve_requests,
        note="best of some bursts; broker, store and client share the processors with the model",
    )
    yield figure(
        "recommendations through Kafka, exactly once",
        exactly.per_s,
        "recommendations/s",
        aim=LIKE_AIM * least.per_s,
        limits=limits,
        peer=("at least once", least.per_s),
    )
    model_us = _model_us(world)
    yield figure(
        "processor time of a request, everything but the model",
        least.cpu_us - model_us,
        "us",
        aim=OVERHEAD_US,
        smaller_is_better=True,
        serving_us=round(least.cpu_us),
        model_us=round(model_us),
        exactly_once_us=round(exactly.cpu_us),
        note="of the serving process at full load, less that of the model (user tower and search) "
        "in a process of its own, at its best batch, with as many threads as serve gives it",
    )
    yield figure(
        "peak load: the highest steady rate that is kept up with, at least once",
        2 * least.rates[HALF],
        "requests/s",
        limits={"a burst": least.per_s},
        note="a burst waits in the log and is served in full batches; a steady load comes while "
        "client and broker work, and in smaller ones",
    )
    for load, aim_ms in AIMS_MS.items():
        world.samples[f"at least once, {load}"] = (
            np.asarray(least.latencies_s[load]) * 1000,
            aim_ms,
        )
        yield _latency(least, load, "at least once", aim_ms)
    for load in halves:
        yield _latency(exactly, load, "exactly once", least.p99_ms(load) + MORE_MS)


def _latency(served: Served, load: str, delivery: str, aim_ms: float) -> Figure:
    return figure(
        f"request to recommendation at {load}, {delivery}, p99",
        served.p99_ms(load),
        "ms",
        aim=aim_ms,
        smaller_is_better=True,
        quantiles=quantiles_ms(served.latencies_s[load]),
        requests_per_s=round(served.rates[load]),
        note=f"after {SETTLE_S:g} s of the same rate, in which the broker compiles for it",
    )


def _model_us(world: World) -> float:
    """Processor time of a request, of the model as serve calls it and nothing else."""
    settings, _ = ready(world)
    users, seen = features(world, settings)
    items = [world.shop.item(at) for at in range(world.sizes.catalogue)]
    # As serve limits it: before NumPy is imported there, which the first task does.
    limits = {"initializer": limit_blas, "initargs": (Options().threads(),)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **limits) as pool:
        return pool.submit(_called, world.directory / "staging", users, seen, items).result()


def _called(folder: Path, users: UserFeatures, seen: NDArray[np.uint64], items: list[str]) -> float:
    """Microseconds of processor time a request; in a process of its own."""
    os.environ.update([QUIET])  # noqa: TID251 - TensorFlow reads it when it is imported
    from inference.savedmodel import SavedModel, use_threads
    from inference.towers import TowerModel

    threads = Options().threads()
    use_threads(threads)
    ref = ModelRef(name="bench", version=1, fingerprint=CATALOG.fingerprint)
    model = SavedModel(folder, ref, CATALOG, batch_sizes=BATCHES)
    table = ItemTable(CATALOG.fingerprint)
    table.put_items([Item(item_id=item, title=item) for item in items])
    towers = TowerModel(model, CATALOG, table, users, MemoryMetrics(), threads=threads)
    towers.catch_up()
    found = []
    for size in BATCHES:
        part = UserFeatures(longs=users.longs[:size], floats=users.floats[:size])
        for _ in range(3):
            towers.retrieve(part, seen[:size], K)
        calls, start_s, end_s = 0, process_time(), CLOCK.monotonic_s() + LIMIT_S
        while CLOCK.monotonic_s() < end_s:
            towers.retrieve(part, seen[:size], K)
            calls += 1
        found.append((process_time() - start_s) / calls / size)
    return 1e6 * min(found)


def _served(world: World, delivery: str, rates: Mapping[str, float] | None = None) -> Served:
    """`rates`: requests/s of the loads that are measured; None: of all, by what it bears itself."""
    settings, _ = ready(world)
    words = ("serve", "--delivery", delivery)
    with world.command(settings, *words, environment=dict([QUIET])):
        (child,) = (c for c in world.supervisor.children() if c.name.startswith("serve"))
        process = psutil.Process(child.pid)
        client = Client(world, settings)
        client.warm(delivery)
        taken_s, used_s = min(_burst(world, client, process) for _ in range(world.sizes.passes))
        per_s = world.sizes.serve_requests / taken_s
        if rates is None:
            peak = peak_load(client.steady, per_s)
            rates = {HALF: peak / 2, MOST: 0.9 * peak, HALF_BURST: per_s / 2}
        latencies_s = {}
        for load, rate in rates.items():
            client.settle(rate)
            latencies_s[load] = client.paced(rate, world.sizes.paced_s)
        client.close()
    return Served(
        per_s=per_s,
        cpu_us=1e6 * used_s / world.sizes.serve_requests,
        rates=rates,
        latencies_s=latencies_s,
    )


def peak_load(steady: Callable[[float, float], Sequence[Took]], burst_per_s: float) -> float:
    """
    The highest steady rate, requests/s, at which waiting does not grow: the sustainable throughput
    of Karimov et al., "Benchmarking Distributed Stream Data Processing Systems" (ICDE 2018).

    Args:
        steady: what requests took at a rate for so many seconds, in the order in which they came.
        burst_per_s: no steady rate is higher.

    Raises:
        TooSlow: none of the rates that were tried is kept up with.
    """
    kept, lost = 0.0, burst_per_s
    for _ in range(TRIES):
        rate = (kept + lost) / 2
        last = steady(rate, TRY_S)[-math.ceil(rate) :]
        if median(took.latency_s for took in last) <= KEPT_S:
            kept = rate
        else:
            lost = rate
    if not kept:
        raise TooSlow(f"answers wait longer and longer at {lost:.0f} requests/s")
    return kept


def _burst(world: World, client: Client, process: psutil.Process) -> tuple[float, float]:
    """Seconds that a burst took, and of the serving process's processor time."""
    before = process.cpu_times()
    taken_s = client.burst(world.sizes.serve_requests)
    after = process.cpu_times()
    return taken_s, after.user + after.system - before.user - before.system
