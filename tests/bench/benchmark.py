"""Runs one benchmark: its parts in one world, then the table, the plots and what is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

from tests.bench import plots
from tests.bench.harness import Part, measured, print_table, write
from tests.bench.measure import machine
from tests.bench.world import Sizes, World, world


class Benchmark(Protocol):
    """A module that is a benchmark."""

    NAME: str
    PARTS: Sequence[Part[World]]

    def about(self, described: str, made: World) -> list[str]:
        """What was measured, on what: lines of Markdown. `described` is the machine."""


def bench(
    benchmark: Benchmark, folder: Path, sizes: Sizes, only: Sequence[str], console: Console
) -> int:
    """
    Measure, print, write; 1 if a part broke.

    Raises:
        ValueError: `only` names a part that there is not.
    """
    name = benchmark.NAME
    parts = chosen(benchmark.PARTS, only)
    described = machine()
    with world(folder / f"{name}-data", sizes) as made:
        outcome = measured(parts, made, console, described)
    print_table(name, outcome.figures, console)
    plots.curves(folder, name, made.curves)
    write(folder, name, outcome, made.samples, benchmark.about(described, made))
    console.print(f"{outcome.taken_s:.0f} s; written: {folder / name}.json", highlight=False)
    return outcome.exit_code


def chosen(parts: Sequence[Part[World]], only: Sequence[str]) -> list[Part[World]]:
    """The named parts, in their own order; all of them if none is named."""
    known = [part.name for part in parts]
    if unknown := sorted(set(only) - set(known)):
        raise ValueError(f"no part {unknown[0]!r}: there are {', '.join(known)}")
    return [part for part in parts if not only or part.name in only]
