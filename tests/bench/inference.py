"""
The benchmark `inference`: serving beside its model alone, one way of delivery beside the other.

All of it from one run, on a real Kafka and a real Valkey that share the machine with what is
measured.
"""

from __future__ import annotations

from tests.bench import batching, delivery, network, ranking, retrieval, starting, swapping
from tests.bench.harness import Part
from tests.bench.world import World

NAME = "inference"
PARTS: tuple[Part[World], ...] = (
    Part(name="delivery", run=delivery.run),
    Part(name="batcher", run=batching.run),
    Part(name="retrieval", run=retrieval.run),
    Part(name="rank", run=ranking.run),
    Part(name="network", run=network.run),
    Part(name="swap", run=swapping.run),
    Part(name="start", run=starting.run),
)


def about(described: str, made: World) -> list[str]:
    """What was measured, on what."""
    return [
        f"Machine: {described}. Broker, store, clients and the measured process share it.",
        "",
        "The model is untrained and of full size: two towers, history 50, width 64, 3,400 items.",
        "",
        "The batchers are simulated: one model, whose calls take what the SavedModel took in this "
        f"run with {batching.NOISE:.0%} of noise; {batching.DAY_S:g} s a day. Bursts have "
        f"{batching.BURST:g} times the mean rate.",
        "",
        "`others_cpu` is the share of all processors that other work on the machine took while a "
        "figure was measured: above a tenth the figures, latencies above all, are too pessimistic.",
    ]
