"""`python -m tests.bench [NAME]`: measure, print a table, write out/bench."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import structlog
from rich.console import Console

from tests.bench import features, inference, pipeline
from tests.bench.benchmark import Benchmark, bench
from tests.bench.world import ROOT, Sizes

BENCHMARKS: dict[str, Benchmark] = {one.NAME: one for one in (features, inference, pipeline)}


def main(arguments: list[str] | None = None) -> int:
    """Run the named benchmark, or all of them. Exit code 1 if a part broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(BENCHMARKS), help="default: all")
    parser.add_argument("--part", action="append", help="only this part; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    chosen = parser.parse_args(arguments)
    if chosen.part and not chosen.name:
        parser.error("--part is a part of one benchmark: name it")
    names = [chosen.name] if chosen.name else sorted(BENCHMARKS)
    # Over the table, only what is wrong.
    quiet = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=quiet)
    console = Console(width=max(120, Console().width))
    sizes = Sizes() if chosen.scale == 1 else Sizes().scaled(chosen.scale)
    only = chosen.part or []
    return max(bench(BENCHMARKS[n], chosen.out, sizes, only, console) for n in names)


if __name__ == "__main__":
    sys.exit(main())
