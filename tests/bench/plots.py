"""Two pictures of a run: throughput beside its limits, and how long things take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.figures import Figure

WIDTH, HEIGHT = 10, 0.42
OWN, LIMIT, PEER, AIM = "#1f6f8b", "#c9d6df", "#e0a458", "#b23a48"


def draw(folder: Path, name: str, figures: Sequence[Figure], samples: Mapping[str, Any]) -> None:
    """Write `<name>-throughput.png` and `<name>-latency.png`."""
    import matplotlib  # slow, and only needed here

    matplotlib.use("Agg")
    rates = [one for one in figures if one.unit.endswith("/s") and one.value is not None]
    if rates:
        throughput(folder / f"{name}-throughput.png", rates)
    if samples:
        latency(folder / f"{name}-latency.png", samples)


def bars(figures: Sequence[Figure]) -> list[tuple[str, float, str]]:
    """Label, height and colour of every bar: a figure, then its peer and its limits."""
    found = []
    for one in figures:
        colour = PEER if one.detail.get("measured") == "a peer" else OWN
        found.append((f"{one.name} ({one.unit})", one.value or 0.0, colour))
        if one.peer and one.peer_value:
            found.append((f"   peer: {one.peer}", one.peer_value, PEER))
        found += [
            (f"   limit: {limit}", value, LIMIT)
            for limit, value in one.detail.get("limits", {}).items()
        ]
    return found


def throughput(path: Path, figures: Sequence[Figure]) -> None:
    """Bars on a logarithmic scale, the aims as marks."""
    from matplotlib import pyplot

    found = bars(figures)
    height = 1.2 + HEIGHT * len(found)
    sheet, axes = pyplot.subplots(figsize=(WIDTH, height), layout="constrained")
    places = np.arange(len(found))
    axes.barh(places, [value for _, value, _ in found], color=[colour for *_, colour in found])
    for place, (_, value, _) in zip(places, found, strict=True):
        axes.text(value, place, f" {value:,.0f}", va="center", fontsize=8)
    aims = {f"{one.name} ({one.unit})": one.aim for one in figures if one.aim}
    for place, (label, *_) in zip(places, found, strict=True):
        if label in aims:
            axes.plot([aims[label]] * 2, [place - 0.4, place + 0.4], color=AIM, linewidth=2)
    axes.set_yticks(places, [label for label, *_ in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_title("Throughput beside its limits, one run (red: the aim)")
    axes.spines[["top", "right"]].set_visible(False)
    sheet.savefig(path, dpi=120)
    pyplot.close(sheet)


def latency(path: Path, samples: Mapping[str, Any]) -> None:
    """Share of all that took longer, by milliseconds: the tail is where the eye is."""
    from matplotlib import pyplot

    sheet, axes = pyplot.subplots(figsize=(WIDTH, 5), layout="constrained")
    for name, (values, aim_ms) in samples.items():
        ordered = np.sort(np.asarray(values, np.float64))
        share = 1 - np.arange(len(ordered)) / len(ordered)
        p50, p99 = np.percentile(ordered, [50, 99])
        label = f"{name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        (line,) = axes.plot(ordered, share, label=label, drawstyle="steps-post")
        if aim_ms is not None:
            axes.axvline(aim_ms, color=line.get_color(), linestyle=":", linewidth=1)
            axes.text(aim_ms, 0.6, f" aim {aim_ms:g} ms (p99)", color=line.get_color(), fontsize=8)
    axes.axhline(0.01, color="#999999", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("share that took longer (grey line: 1 in 100)")
    axes.set_title("How long it takes, one run")
    axes.legend(loc="lower left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    sheet.savefig(path, dpi=120)
    pyplot.close(sheet)


CURVES = {
    "batch": ("records of a batch", "events/s, Kafka to Redis rows", True),
    "users": ("users", "events/s, Kafka to Redis rows", True),
    "resident": ("events folded", "resident set of the job, MiB", False),
}


def curves(folder: Path, name: str, found: Mapping[str, Mapping[int, float]]) -> None:
    """Write `<name>-<curve>.png` of each: what a size does to a figure."""
    import matplotlib  # slow, and only needed here

    matplotlib.use("Agg")
    of_sizes = {curve: points for curve, points in found.items() if curve in CURVES}
    for curve, points in of_sizes.items():
        _curve(folder / f"{name}-{curve}.png", points, *CURVES[curve])
    _batchers(
        folder / f"{name}-batchers.png", {k: p for k, p in found.items() if k not in of_sizes}
    )


def _batchers(path: Path, wanted: Mapping[str, Mapping[int, float]]) -> None:
    """p99 over load, of our batcher and of a fixed one."""
    if not wanted:
        return
    from matplotlib import pyplot

    sheet, axes = pyplot.subplots(figsize=(WIDTH * 0.8, 4.5), layout="constrained")
    for curve, points in wanted.items():
        _, kind, who = curve.split("-")
        axes.plot(
            [*points],
            [*points.values()],
            color=OWN if who == "ours" else "#b0b0b0",
            linestyle="-" if kind == "poisson" else "--",
            label=f"{'adaptive' if who == 'ours' else 'fixed, 32 or 10 ms'}, {kind} arrivals",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("requests/s served")
    axes.set_ylabel("p99 from arrival to answer, ms (simulated)")
    axes.legend(loc="upper left", fontsize=9)
    axes.grid(axis="y", color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    sheet.savefig(path, dpi=120)
    pyplot.close(sheet)


def _curve(
    path: Path, points: Mapping[int, float], across: str, up: str, logarithmic: bool
) -> None:
    """A line from the size to the figure, whose axis begins at 0."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    sheet, axes = pyplot.subplots(figsize=(WIDTH * 0.7, 4), layout="constrained")
    axes.plot([*points], [*points.values()], color=OWN, marker="o" if logarithmic else None)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xticks([*points], [f"{size:,}" for size in points], minor=False)
        axes.minorticks_off()
        for size, value in points.items():
            axes.annotate(
                f"{value:,.0f}", (size, value), (0, 7), textcoords="offset points", ha="center"
            )
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, 1.2 * max(points.values()))
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(axis="y", color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    sheet.savefig(path, dpi=120)
    pyplot.close(sheet)
