"""What commands print: JSON and tables on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

# What reads a pipe or a file cuts lines by itself; a terminal is as wide as it is.
PIPE_WIDTH = 400


def console(*, stderr: bool = False) -> Console:
    """A console that does not fold lines where nobody sees them."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)


out = console()
err = console(stderr=True)


def print_json(value: object) -> None:
    """JSON on standard output, for programs."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output, for people."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


@contextmanager
def progress(unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; `tell(done)` moves it."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(unit, total=total)
        yield lambda done: bar.update(task, completed=done)


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as a dict; unlike `asdict`, with its Counters whole."""
    return {f.name: getattr(value, f.name) for f in fields(value)}
