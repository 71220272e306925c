"""A cold start: from the process's first instruction to the first answer, with a large model."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from features.hashing import hash_ids
from inference import operator
from inference.registry import FolderRegistry
from retrain.export import size_bytes
from retrain.recipe import NetworkPolicy
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, chunks
from tests.bench.serve_log import SPOKEN, ServeLog
from tests.bench.serving import QUIET, Client, ready
from tests.bench.world import World
from tests.published import publish
from tests.untrained import export_untrained

AIM_S, FIRST_AIM = 6.0, 1.5
VOCABULARY = 180_000  # items that make 50 MB of vectors and biases
STARTS = 3
STEADY = 60  # lone requests after the first
PER_S = 20.0
PHASES = ("items.ready", "model.loaded", "release.serving", "serve.assigned")


def run(world: World) -> Iterator[Figure]:
    """Start, answer what waits, answer alone; three times."""
    settings, _ = ready(world)
    before = operator.state(settings).release
    assert before is not None
    os.environ.setdefault(*QUIET)  # noqa: TID251 - TensorFlow reads it when it is imported
    with TemporaryDirectory(dir=world.directory) as folder:
        exported = Path(folder) / "1"
        items = [world.shop.item(at) for at in range(world.sizes.catalogue)]
        others = [f"another-{at}" for at in range(VOCABULARY - len(items))]
        export_untrained(exported, hash_ids([*items, *others]), policy=NetworkPolicy())
        size = size_bytes(exported)
        version = publish(settings, exported)
    operator.promote(settings, version, "to be measured")
    waited, firsts, steadies, phases = [], [], [], {}
    for _ in range(STARTS):
        client = Client(world, settings)
        asking = threading.Thread(target=lambda c=client: waited.append(_asked(c)))
        start_s, now_ms = CLOCK.monotonic_s(), CLOCK.now_ms()
        asking.start()
        with world.command(settings, "serve", environment=SPOKEN) as path:
            asking.join()
            waited[-1] -= start_s
            told = [line for line in ServeLog(path).lines() if line.at_s * 1000 >= now_ms]
            phases = {
                line.event: round(line.at_s - now_ms / 1000, 2)
                for line in told
                if line.event in PHASES
            }
            alone = client.paced(PER_S, STEADY / PER_S)
            firsts.append(alone[0])
            steadies.append(median(alone[1:]))
        client.close()
    operator.promote(settings, before.stable, "measured")
    FolderRegistry(settings.models_dir).quarantine(settings.model_name, version, "of a benchmark")
    yield figure(
        "cold start, from the process to the first answer",
        median(waited),
        "s",
        aim=AIM_S,
        smaller_is_better=True,
        model_mb=round(size / 1e6),
        starts_s=[round(one, 2) for one in waited],
        since_start_s=phases,
        note="a request waits on the log from the start; the phases are of the last start",
    )
    yield figure(
        "first lone request after a start, against the others",
        median(firsts) / median(steadies),
        "x",
        aim=FIRST_AIM,
        smaller_is_better=True,
        first_ms=[round(1000 * one, 1) for one in firsts],
        steady_ms=[round(1000 * one, 1) for one in steadies],
        steady_p99_ms=round(1000 * float(np.quantile(alone[1:], 0.99)), 1),
        requests=[len(part) for part in chunks(alone, len(alone))],
    )


def _asked(client: Client) -> float:
    """When the answer to a request that is sent now was read."""
    start_s = CLOCK.monotonic_s()
    return start_s + client.burst(1)
