"""`millstream train` and `millstream evaluate`."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from inference.cli import release_app
from ingest.settings import Settings
from retrain import litert_cli

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
_out = Console()
_err = Console(stderr=True)

_CONTROL = "retrain.control_cli"  # monitor and controller add their own commands


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.command()(train)
    app.command()(evaluate)
    litert_cli.register(release_app)
    if importlib.util.find_spec(_CONTROL) is not None:
        importlib.import_module(_CONTROL).register(app)


def train(
    context: typer.Context,
    examples: Annotated[
        Path | None, typer.Option(help="Archive to learn from; default: the settings' one.")
    ] = None,
    key: Annotated[
        str, typer.Option(help="Idempotency key: the same key is the same training.")
    ] = "",
    champion: Annotated[
        int | None,
        typer.Option(help="Version to beat; 0: none. Default: the newest not quarantined."),
    ] = None,
    approve: Annotated[
        str, typer.Option(help="Who lets a first model through, which has no champion to beat.")
    ] = "",
    as_json: Json = False,
) -> None:
    """
    Train a model on the archive's examples; publish it if the gate accepts. Exit code 3 if not.

    Example: `millstream train --approve "Ada, first model"`
    """
    from features.catalog import CATALOG  # noqa: PLC0415 - keeps --help quick
    from ingest.clock import SystemClock  # noqa: PLC0415
    from retrain import job  # noqa: PLC0415
    from retrain.gate import Approval  # noqa: PLC0415
    from retrain.order import JobOrder, Status  # noqa: PLC0415

    settings = _settings(context, examples)
    clock = SystemClock()
    with _err.status("starting") as spinner:
        shop = job.Shop(
            settings=settings,
            features=CATALOG,
            policy=job.policy_of(settings.profile),
            clock=clock,
            tell=spinner.update,
        )
        order = JobOrder(
            key=key or f"operator:{clock.now_ms()}",
            champion=champion,
            approval=Approval(by=approve) if approve else None,
        )
        result = job.run(order, shop)
    if as_json:
        _print_json(asdict(result))
    else:
        color = "green" if result.status == Status.PUBLISHED else "red"
        version = f", version {result.version}" if result.version else ""
        _out.print(f"[{color}]{result.status}[/]{version}", highlight=False)
        for reason in result.reasons:
            _out.print(f"  {reason}", highlight=False, markup=False)
        _print_numbers({m.name: m.value for m in result.measures})
    if result.status != Status.PUBLISHED:
        raise typer.Exit(1 if result.status == Status.FAILED else 3)


def evaluate(
    context: typer.Context,
    version: Annotated[int, typer.Option(help="Which published version.")],
    examples: Annotated[
        Path | None, typer.Option(help="Archive to evaluate on; default: the settings' one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """
    Evaluate a version on what users did after its training's time, beside the popularity ranking.

    Example: `millstream evaluate --version 1`
    """
    from features.catalog import CATALOG  # noqa: PLC0415 - keeps --help quick
    from ingest.clock import SystemClock  # noqa: PLC0415
    from retrain import job, later  # noqa: PLC0415

    settings = _settings(context, examples)
    with _err.status("starting") as spinner:
        shop = job.Shop(
            settings=settings,
            features=CATALOG,
            policy=job.policy_of(settings.profile),
            clock=SystemClock(),
            tell=spinner.update,
        )
        found = later.evaluate_version(shop, version)
    if as_json:
        _print_json(found.described())
        return
    table = Table("", f"version {version}", "popularity")
    for name in ("requests", "hit_rate", "ndcg", "mrr", "coverage"):
        table.add_row(name, *(_number(side.summary()[name]) for side in found.sides))
    _out.print(table)
    lead = found.lead
    _out.print(
        f"NDCG lead a user {lead.mean:+.4f} [{lead.low:+.4f}, {lead.high:+.4f}]", highlight=False
    )


def _settings(context: typer.Context, examples: Path | None) -> Settings:
    settings: Settings = context.obj
    return replace(settings, archive_dir=examples) if examples else settings


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=1))


def _print_numbers(numbers: dict[str, float]) -> None:
    table = Table("measure", "value")
    for name, value in numbers.items():
        table.add_row(name, _number(value))
    if numbers:
        _out.print(table)


def _number(value: float) -> str:
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.0001 else f"{value:.2g}"
