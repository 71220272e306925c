"""Runs the parts of a benchmark one after the other, and writes down what they found."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.table import Table

from tests.bench import plots
from tests.bench.figures import COLUMNS, Figure, failed, markdown, rows, write_json
from tests.bench.measure import CLOCK, Processor

W = TypeVar("W")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[W]):
    """A piece of a benchmark: yields its figures as it has them."""

    name: str
    run: Callable[[W], Iterator[Figure]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run found. Missing an aim is no failure; a part that broke is one."""

    figures: tuple[Figure, ...]
    broken: tuple[str, ...]
    taken_s: float

    @property
    def exit_code(self) -> int:
        return 1 if self.broken else 0


def measured(parts: Sequence[Part[W]], world: W, console: Console, machine: str) -> Outcome:
    """All figures of all parts; a part that breaks does not stop the others."""
    start_s = CLOCK.monotonic_s()
    figures: list[Figure] = []
    broken: list[str] = []
    for part in parts:
        part_s, processor = CLOCK.monotonic_s(), Processor()
        console.print(f"[bold]{part.name}[/]", highlight=False)
        try:
            for one in part.run(world):
                beside = {"others_cpu": f"{processor.others():.0%}", "machine": machine}
                figures.append(replace(one, detail={**one.detail, **beside}))
                console.print("  " + ", ".join(filter(None, rows([one])[0])), highlight=False)
        except Exception as error:  # noqa: BLE001 - the other parts are still worth measuring
            broken.append(part.name)
            figures.append(failed(part.name, error))
            console.print("".join(traceback.format_exception(error)), markup=False)
        console.print(f"  {CLOCK.monotonic_s() - part_s:.0f} s", style="dim", highlight=False)
    return Outcome(
        figures=tuple(figures), broken=tuple(broken), taken_s=CLOCK.monotonic_s() - start_s
    )


def print_table(name: str, figures: Sequence[Figure], console: Console) -> None:
    """The figures as one table."""
    table = Table(title=f"bench {name}", title_justify="left")
    for column in COLUMNS:
        right = column in ("value", "aim", "limit", "of limit")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for line in rows(figures):
        table.add_row(*line, style="yellow" if "NO" in line else None)
    console.print(table)


def write(
    folder: Path, name: str, outcome: Outcome, samples: dict[str, Any], about: Sequence[str]
) -> None:
    """`<name>.json`, its plots, and README.md of the folder."""
    write_json(folder / f"{name}.json", outcome.figures)
    plots.draw(folder, name, outcome.figures, samples)
    (folder / "README.md").write_text(readme(folder, name, outcome, about))


def readme(folder: Path, name: str, outcome: Outcome, about: Sequence[str]) -> str:
    """The table, the pictures, how it was measured, and why an aim was missed."""
    lines = [f"# bench {name}", "", f"`make bench ONLY={name}`, {outcome.taken_s:.0f} s.", ""]
    lines += [*about, "", markdown(outcome.figures), ""]
    for picture in sorted(folder.glob(f"{name}-*.png")):
        lines += [f"![{picture.stem}]({picture.name})", ""]
    lines += ["## Figure by figure", ""]
    for one in outcome.figures:
        lines += [f"**{one.name}**", ""]
        for key, value in one.detail.items():
            if key != "machine":
                lines += _described(key, value)
        lines.append("")
    return "\n".join(lines)


def _described(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        shown = ", ".join(f"{k}: {_short(v)}" for k, v in value.items())
        return [f"- {key}: {shown}"]
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [f"- {key}:", *(f"  - {line}" for line in value)]
    return [f"- {key}: {_short(value)}"]


def _short(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1000 else str(value)
