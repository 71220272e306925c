"""
The benchmark `features`: from the log to rows, examples and back, beside peers and limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.bench import same_job
from tests.bench.harness import Part, measured, print_table, write
from tests.bench.measure import machine
from tests.bench.world import Sizes, World, world

NAME = "features"
PARTS: tuple[Part[World], ...] = (Part(name="same-job", run=same_job.run),)


def bench(folder: Path, sizes: Sizes, only: Sequence[str], console: Console) -> int:
    """Measure, print, write; 1 if a part broke."""
    parts = [part for part in PARTS if not only or part.name in only]
    described = machine()
    with world(folder / f"{NAME}-data", sizes) as made:
        outcome = measured(parts, made, console, described)
        samples = made.samples
    print_table(NAME, outcome.figures, console)
    write(folder, NAME, outcome, samples, [described])
    console.print(f"{outcome.taken_s:.0f} s; written: {folder / NAME}.json", highlight=False)
    return outcome.exit_code
