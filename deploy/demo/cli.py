"""The command `millstream demo`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

if TYPE_CHECKING:
    from deploy.demo.audit import Audit
    from deploy.demo.run import Demo
    from ingest.settings import Settings

_out = Console()
_err = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    context: typer.Context,
    headless: Annotated[
        bool, typer.Option("--headless", help="No live view: a line for each phase.")
    ] = False,
) -> None:
    """
    The whole loop on real events, bounded in time; writes out/demo/report.json.

    Exit code 1 if something that must hold did not.

    Example: `millstream demo --headless`
    """
    from deploy.demo.plan import DemoPlan  # noqa: PLC0415 - keeps --help quick
    from deploy.demo.report import findings, report  # noqa: PLC0415
    from deploy.demo.run import ROOT, Demo  # noqa: PLC0415
    from deploy.demo.view import view  # noqa: PLC0415
    from ingest.clock import SystemClock  # noqa: PLC0415

    settings: Settings = context.obj
    told: list[str] = []

    def tell(running: Demo) -> None:
        if headless:
            if running.course.phase not in told:
                told.append(running.course.phase)
                at_s = running.course.phases_s.get(running.course.phase, 0.0)
                _err.print(f"{at_s:6.1f} s  {running.course.phase}", highlight=False)
        else:
            live.update(view(running))

    running = Demo(settings, DemoPlan(), SystemClock(), tell)
    with Live(console=_err, refresh_per_second=4, transient=False) as live:
        if headless:
            live.stop()
        audited = running.run(_audited)
    written = report(findings(running, audited))
    (ROOT / "report.json").write_text(json.dumps(written, indent=1, default=str) + "\n")
    _print(written)
    if not written["ok"]:
        raise typer.Exit(1)


def _audited(finished: Demo) -> Audit:
    from deploy.demo.audit import audit  # noqa: PLC0415 - loads TensorFlow

    return audit(finished)


def _print(written: dict[str, Any]) -> None:
    for check in written["invariants"]:
        mark = "[green]ok[/]  " if check["ok"] else "[red]FAIL[/]"
        _out.print(f"{mark} {check['name']}: ", end="", highlight=False)
        _out.print(check["detail"], highlight=False, markup=False)
    fresh, slow = written["freshness_s"], written["latency_s"]
    if fresh and slow:
        _out.print(
            f"fresh after p50 {fresh['p50'] * 1e3:.0f} ms, p99 {fresh['p99'] * 1e3:.0f} ms; "
            f"answered in p50 {slow['p50'] * 1e3:.0f} ms, p99 {slow['p99'] * 1e3:.0f} ms",
            highlight=False,
        )
    _out.print(f"{written['seconds']:.0f} s; report in out/demo/report.json", highlight=False)
