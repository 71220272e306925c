"""Given candidates: one client, one request at a time, over REST."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from itertools import cycle

import numpy as np

from deploy import ports
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, quantiles_ms
from tests.bench.serve_log import SPOKEN
from tests.bench.serving import ready
from tests.bench.world import World

AIMS_MS = {100: 8.0, 300: 15.0}
CALLS, WARM = 400, 50
PEOPLE = 200
TIMEOUT_S = 10.0
NOTE = (
    "REST on a kept connection; rows are read from the store at each call. Metarank's pages "
    "prints about 10 ms for 100 and 24 ms for 300 items (docs.metarank.ai, performance)"
)


def run(world: World) -> Iterator[Figure]:
    """The answer's p99 by number of candidates."""
    settings, _ = ready(world)
    with ports.reserve(1) as reserved:
        (port,) = reserved.numbers
    with world.command(settings, "serve", "--http-port", str(port), environment=SPOKEN):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        for count, aim_ms in AIMS_MS.items():
            taken = _ranked(world, connection, count)
            found = quantiles_ms(taken[WARM:])
            world.samples[f"rank {count} candidates"] = (np.asarray(taken[WARM:]) * 1000, aim_ms)
            yield figure(
                f"rank {count} candidates, one client, p99",
                found["p99_ms"],
                "ms",
                aim=aim_ms,
                smaller_is_better=True,
                quantiles=found,
                note=NOTE,
            )
        connection.close()


def _ranked(world: World, connection: http.client.HTTPConnection, count: int) -> list[float]:
    """Seconds of each call."""
    chance = np.random.default_rng(9)
    people = cycle(range(PEOPLE))
    taken = []
    for _ in range(WARM + CALLS):
        items = chance.choice(world.sizes.catalogue, count, replace=False).tolist()
        body = json.dumps(
            {
                "user_id": world.shop.user(next(people)),
                "k": 10,
                "candidates": [world.shop.item(at) for at in items],
            }
        )
        start_s = CLOCK.monotonic_s()
        connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        answer = json.loads(reply.read())
        taken.append(CLOCK.monotonic_s() - start_s)
        if reply.status != 200 or len(answer["items"]) != 10 or answer.get("fallback_reason"):
            raise RuntimeError(f"{reply.status}: {str(answer)[:300]}")
    return taken
