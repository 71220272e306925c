"""
The benchmark `pipeline`: every step from Kafka to a recommendation, each beside its limit.

All of it from one run, on a real Kafka and a real Valkey that share the machine with what is
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.bench import decode, folding, freshness, serving, to_archive, to_rows
from tests.bench.harness import Part, measured, print_table, write
from tests.bench.measure import machine
from tests.bench.world import Sizes, World, world

NAME = "pipeline"
PARTS: tuple[Part[World], ...] = (
    Part(name="decode", run=decode.run),
    Part(name="fold", run=folding.run),
    Part(name="rows", run=to_rows.run),
    Part(name="freshness", run=freshness.run),
    Part(name="serving", run=serving.run),
    Part(name="archive", run=to_archive.run),
)


def bench(folder: Path, sizes: Sizes, only: Sequence[str], console: Console) -> int:
    """Measure, print, write; 1 if a part broke."""
    parts = [part for part in PARTS if not only or part.name in only]
    described = machine()
    with world(folder / f"{NAME}-data", sizes) as made:
        outcome = measured(parts, made, console, described)
        samples = made.samples
        notes = made.notes
    print_table(NAME, outcome.figures, console)
    write(folder, NAME, outcome, samples, about(described, sizes, notes))
    console.print(f"{outcome.taken_s:.0f} s; written: {folder / NAME}.json", highlight=False)
    return outcome.exit_code


def about(described: str, sizes: Sizes, notes: dict[str, object]) -> list[str]:
    """What was measured, on what."""
    return [
        f"Machine: {described}. Broker, store, clients and the measured process share it.",
        "",
        f"{sizes.events:,} events of 20,000 zipf users and 5,000 zipf items (exponent 1), "
        f"{notes.get('bytes_per_event', 0):.0f} bytes each, uncompressed, 1 % sent twice: "
        "62 % impressions, 18 % views, 11 % clicks, the rest likes, carts, purchases, ratings, "
        "profiles. 4 partitions, one broker.",
        "",
        "`others_cpu` is the share of all processors that other work on the machine took while a "
        "figure was measured: above a tenth the figures, latencies above all, are too pessimistic.",
        "",
        "A limit is what one part of the work reaches alone, in the same run, in the same unit.",
    ]
