"""The live view: what runs, how fast, how fresh, how good, and which model."""

from __future__ import annotations

from collections import Counter

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.demo.observe import quantiles
from deploy.demo.run import Demo
from ingest.settings import masked

ALERTS = 5
TRANSITIONS = 7
COLOURS = {"ACT": "red", "WARN": "yellow", "CLEAR": "green"}


def view(demo: Demo) -> RenderableType:
    """The present state as a renderable."""
    return Group(
        Panel(_numbers(demo), title=f"millstream demo: {demo.course.phase}", title_align="left"),
        Panel(_models(demo), title="models", title_align="left"),
        Panel(_drift(demo), title="drift on the shop's surface", title_align="left"),
        Panel(_releases(demo), title="releases", title_align="left"),
    )


def _numbers(demo: Demo) -> Table:
    grid = Table.grid(padding=(0, 3))
    seen, settings = demo.seen, demo.settings
    now_s = demo.clock.monotonic_s()
    last = [a for a in seen.recent if a.at_s > now_s - 5]
    fresh, traffic = quantiles(seen.freshness_s[-500:]), demo.traffic
    slow = quantiles([a.total_us / 1e6 for a in last])
    passed = (demo.clock.now_ms() - demo.course.started_ms) / 1000
    grid.add_row("time", f"{passed:.0f} s of at most {demo.plan.limit_s:.0f}")
    grid.add_row("history", f"{demo.course.bootstrap_events} events")
    if traffic is not None:
        grid.add_row("MovieLens", f"{traffic.events} events, {traffic.requests} requests live")
    grid.add_row("answers", f"{len(seen.answers)}, {len(last) / 5:.0f} a second")
    if fresh:
        grid.add_row(
            "fresh after", f"p50 {fresh['p50'] * 1e3:.0f} ms, p99 {fresh['p99'] * 1e3:.0f}"
        )
    if slow:
        grid.add_row(
            "answered in", f"p50 {slow['p50'] * 1e3:.0f} ms, p99 {slow['p99'] * 1e3:.0f} ms"
        )
    grid.add_row("Kafka", settings.bootstrap_servers)
    grid.add_row("Valkey", masked(settings.redis_url))
    grid.add_row("registry", settings.registry_url)
    return grid


def _models(demo: Demo) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in (
        "version",
        "share of the last answers",
        "hit rate@10",
        "popularity's",
        "requests",
    ):
        table.add_column(title)
    last = Counter(a.version for a in demo.seen.recent)
    scores = demo.traffic.scores if demo.traffic else None
    for version in sorted(last):
        score = scores.score(version) if scores else None
        table.add_row(
            str(version) if version else "fallback",
            f"{last[version] / max(1, last.total()):.0%}",
            f"{score.hit_rate:.3f}" if score else "",
            f"{score.popularity_hit_rate:.3f}" if score else "",
            str(score.requests) if score else "",
        )
    return table


def _drift(demo: Demo) -> RenderableType:
    lines = Text()
    if demo.windows.windows:
        w = demo.windows.windows[-1]
        togo = f", {w['windows_to_go']} windows to the reference" if w["windows_to_go"] else ""
        lines.append(
            f"{w['phase']}{togo}: evidence to act {float(w['evidence']):.1f}, to warn "
            f"{float(w['warning']):.1f} {w['subject']}, clicked "
            f"{float(w['click_rate']):.3f} (reference {float(w['reference_click_rate']):.3f})\n"
        )
        lines.append(_sparkline([float(x["click_rate"]) for x in demo.windows.windows[-60:]]))
        lines.append(" click rate by window\n")
    for alert in demo.seen.alerts[-ALERTS:]:
        lines.append(f"{alert.severity:<8}", style=COLOURS.get(alert.severity, "magenta"))
        lines.append(f"{alert.message}\n")
    return lines


def _releases(demo: Demo) -> RenderableType:
    lines = Text()
    for link in demo.seen.transitions[-TRANSITIONS:]:
        at_s = (link.at - demo.course.started_ms) / 1000
        lines.append(f"{at_s:6.0f} s  {link.from_state} -> {link.to_state:<10}{link.reason}\n")
    return lines


def _sparkline(values: list[float]) -> str:
    """
    A line of bars.

    >>> _sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    bars = "▁▂▃▄▅▆▇█"
    top = max(values, default=0.0) or 1.0
    return "".join(bars[min(len(bars) - 1, round(v / top * (len(bars) - 1)))] for v in values)
