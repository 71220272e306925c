"""
The benchmark `inference`: serving beside its model alone, one way of delivery beside the other.

All of it from one run, on a real Kafka and a real Valkey that share the machine with what is
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.bench import batching, delivery, plots, retrieval, swapping
from tests.bench.harness import Part, measured, print_table, write
from tests.bench.measure import machine
from tests.bench.world import Sizes, World, world

NAME = "inference"
PARTS: tuple[Part[World], ...] = (
    Part(name="delivery", run=delivery.run),
    Part(name="batcher", run=batching.run),
    Part(name="retrieval", run=retrieval.run),
    Part(name="swap", run=swapping.run),
)


def bench(folder: Path, sizes: Sizes, only: Sequence[str], console: Console) -> int:
    """Measure, print, write; 1 if a part broke."""
    parts = [part for part in PARTS if not only or part.name in only]
    described = machine()
    with world(folder / f"{NAME}-data", sizes) as made:
        outcome = measured(parts, made, console, described)
        samples, curves = made.samples, made.curves
    print_table(NAME, outcome.figures, console)
    plots.batchers(folder, NAME, curves)
    write(folder, NAME, outcome, samples, about(described))
    console.print(f"{outcome.taken_s:.0f} s; written: {folder / NAME}.json", highlight=False)
    return outcome.exit_code


def about(described: str) -> list[str]:
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
