"""BentoML: one worker, its adaptive batching."""

from __future__ import annotations

from typing import Any

import bentoml

from tests.bench.peers.saved import MAX_BATCH, WAIT_MS, Saved, told


@bentoml.service(
    workers=1,
    traffic={"timeout": 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Recommender:
    """Rows of single calls, gathered by the framework."""

    def __init__(self) -> None:
        self._saved = Saved()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=int(float(told(WAIT_MS))))
    def predict(self, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._saved.answered(instances)
