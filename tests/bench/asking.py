"""`millstream request`, typed again and again: from the key press until the titles stand there."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from ingest.settings import Settings
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK
from tests.bench.world import ROOT, World, variables

CALLS = 20
AIM_MS = 1_000.0
ANSWER_S = 30.0


def ask(world: World, settings: Settings) -> Figure:
    """`CALLS` calls, each a process of its own, while `millstream serve` runs."""
    told = {**os.environ, **variables(settings)}  # noqa: TID251 - the child needs our PATH
    took_ms = []
    for number in range(CALLS):
        command = [sys.executable, "-m", "deploy.cli", "request", "--user", world.shop.user(number)]
        start_s = CLOCK.monotonic_s()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=told,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=True,
        )
        took_ms.append(1000 * (CLOCK.monotonic_s() - start_s))
        if "OK, recommender version 1" not in done.stdout:
            raise RuntimeError(f"not answered by the model: {done.stdout[-500:]}")
    return figure(
        "millstream request, start to titles, p95",
        float(np.percentile(took_ms, 95)),
        "ms",
        aim=AIM_MS,
        smaller_is_better=True,
        calls_ms=[round(one) for one in took_ms],
    )
