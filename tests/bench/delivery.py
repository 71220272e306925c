"""Exactly once beside at least once: what transactions cost, and all that is not the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil

from tests.bench.figures import Figure, figure
from tests.bench.measure import quantiles_ms
from tests.bench.serving import QUIET, WARM, Client, ready
from tests.bench.world import World

SHARE_AIM = 0.9  # of the SavedModel called in a loop
OVERHEAD_US = 60.0
SOON_MS, BUSY_MS = 25.0, 60.0  # p99 at half of peak load, and at nine tenths, at least once
LIKE_AIM, MORE_MS = 0.8, 50.0  # exactly once: of the throughput of at least once; p99 beyond it
LOADS = {"half": 0.5, "nine tenths": 0.9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one way of delivery gave."""

    per_s: float
    cpu_us: float  # of the serving process, a request
    latencies_s: dict[str, list[float]]  # by load

    def p99_ms(self, load: str) -> float:
        return quantiles_ms(self.latencies_s[load])["p99_ms"]


def run(world: World) -> Iterator[Figure]:
    """The same requests, delivered both ways in turn."""
    _, alone = ready(world)
    best = max(alone.values())
    least, exactly = (_served(world, delivery) for delivery in ("at-least-once", "exactly-once"))
    limits = {"the SavedModel alone, its best batch": best}
    yield figure(
        "recommendations through Kafka, at least once",
        least.per_s,
        "recommendations/s",
        aim=SHARE_AIM * best,
        limits=limits,
        requests=world.sizes.serve_requests,
        note="broker, store and client share the processors with the model",
    )
    yield figure(
        "recommendations through Kafka, exactly once",
        exactly.per_s,
        "recommendations/s",
        aim=LIKE_AIM * least.per_s,
        limits=limits,
        peer=("at least once", least.per_s),
    )
    model_us = 1e6 / best
    yield figure(
        "processor time of a request, everything but the model",
        least.cpu_us - model_us,
        "us",
        aim=OVERHEAD_US,
        smaller_is_better=True,
        serving_us=round(least.cpu_us),
        model_us=round(model_us),
        exactly_once_us=round(exactly.cpu_us),
        note="of the serving process at full load, less a call's time at its best batch; a call "
        "that uses several processors makes it look smaller",
    )
    for load, aim_ms in (("half", SOON_MS), ("nine tenths", BUSY_MS)):
        world.samples[f"at least once, {load} load"] = (
            np.asarray(least.latencies_s[load]) * 1000,
            aim_ms,
        )
        yield figure(
            f"request to recommendation at {load} of peak load, at least once, p99",
            least.p99_ms(load),
            "ms",
            aim=aim_ms,
            smaller_is_better=True,
            quantiles=quantiles_ms(least.latencies_s[load]),
            requests_per_s=round(LOADS[load] * least.per_s),
        )
    yield figure(
        "request to recommendation at half of peak load, exactly once, p99",
        exactly.p99_ms("half"),
        "ms",
        aim=least.p99_ms("half") + MORE_MS,
        smaller_is_better=True,
        quantiles=quantiles_ms(exactly.latencies_s["half"]),
        requests_per_s=round(0.5 * exactly.per_s),
    )


def _served(world: World, delivery: str) -> Served:
    settings, _ = ready(world)
    words = ("serve", "--delivery", delivery)
    with world.command(settings, *words, environment=dict([QUIET])):
        (child,) = (c for c in world.supervisor.children() if c.name.startswith("serve"))
        process = psutil.Process(child.pid)
        client = Client(world, settings)
        client.burst(WARM)
        before = process.cpu_times()
        taken_s = client.burst(world.sizes.serve_requests)
        after = process.cpu_times()
        per_s = world.sizes.serve_requests / taken_s
        latencies = {
            load: client.paced(share * per_s, world.sizes.paced_s) for load, share in LOADS.items()
        }
        client.close()
    used_s = after.user + after.system - before.user - before.system
    return Served(
        per_s=per_s,
        cpu_us=1e6 * used_s / world.sizes.serve_requests,
        latencies_s=latencies,
    )
