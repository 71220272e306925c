"""Command: `millstream features migrate`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.settings import Settings
from ingest.terminal import Json, err, out, print_json, print_table, progress
from schemas.errors import Misconfigured, Refused, Retryable

if TYPE_CHECKING:
    from deploy.migrate import SetState

EVERY_S = 2.0


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("migrate")(migrate)


def migrate(
    context: typer.Context,
    status: Annotated[bool, typer.Option("--status", help="Only say how the sets stand.")] = False,
    retire: Annotated[
        str | None, typer.Option(help="Delete the set whose fingerprint begins so.")
    ] = None,
    until_one: Annotated[
        bool, typer.Option("--until-one", help="End when only the catalog's set is needed.")
    ] = False,
    as_json: Json = False,
    job_options: Annotated[
        list[str] | None, typer.Argument(help="After `--`: options of `features run`.")
    ] = None,
) -> None:
    """
    Fold the catalog's feature set beside those that released versions still need, until SIGTERM.

    To be run instead of `features run` after the catalog changed: it takes over from a running
    job, folds the new set from the start of the log, and drops the old set's job when no live or
    previous version reads it any more. Exit code 3: `--retire` of a set that is needed.

    Example: `millstream features migrate --status`
    """
    settings: Settings = context.obj
    if status and retire:
        raise Misconfigured("--status and --retire: give one of them")
    if status:
        _show(settings, as_json=as_json)
    elif retire:
        _retire(settings, retire, as_json=as_json)
    else:
        _run(settings, job_options or (), until_one=until_one)


def _show(settings: Settings, *, as_json: bool) -> None:
    from deploy.migrate import states  # noqa: PLC0415 - keeps --help quick
    from features.catalog import CATALOG  # noqa: PLC0415

    with err.status("looking"):
        found = states(settings, CATALOG)
    if as_json:
        print_json([asdict(one) | {"caught_up": one.caught_up} for one in found])
        return
    print_table(("feature set", "features", "events folded", "lag", "read by"), map(_row, found))
    for one in found:
        if one.foreign:
            out.print(f"{one.fingerprint}: {one.foreign}", highlight=False)


def _row(one: SetState) -> tuple[str, ...]:
    versions = ", ".join(f"version {v} ({role})" for v, role in one.versions)
    return (
        f"{one.fingerprint} (catalog)" if one.own else one.fingerprint,
        str(one.features) if one.features else "not known here" if one.foreign else "",
        f"{one.folded:,}",
        "not folded" if one.lag is None else f"{one.lag:,}",
        versions or ("the next model" if one.own else "nobody: --retire"),
    )


def _retire(settings: Settings, name: str, *, as_json: bool) -> None:
    from deploy.migrate import retired  # noqa: PLC0415 - keeps --help quick
    from features.catalog import CATALOG  # noqa: PLC0415
    from ingest.kafka import KafkaLog  # noqa: PLC0415
    from ingest.topics import Topics, check_partitions  # noqa: PLC0415

    known = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    count = check_partitions(known, Topics(settings.topic_prefix))
    with progress("partitions", count) as tell:
        found = retired(settings, CATALOG, name, tell)
    if as_json:
        print_json(asdict(found))
    else:
        out.print(
            f"feature set {found.fingerprint}: {found.values:,} values deleted, "
            f"{found.tombstones:,} taken from item-features",
            highlight=False,
        )


def _run(settings: Settings, job_options: Sequence[str], *, until_one: bool) -> None:
    from deploy.migrate import Migration, states  # noqa: PLC0415 - keeps --help quick
    from deploy.supervise import Supervisor  # noqa: PLC0415
    from features.catalog import CATALOG  # noqa: PLC0415

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    told: dict[str, str] = {}
    with err.status("starting") as line, Supervisor() as supervisor:
        logs = Path(settings.stack_dir) / "logs"
        migration = Migration(settings, CATALOG, supervisor, logs, job_options)
        while True:
            migration.step()
            try:
                found = states(settings, CATALOG)
            except (Retryable, Refused):
                found = []  # `step` has said it
            for one in found:
                _tell(one, told)
            behind = (f"{one.fingerprint[:8]} {one.lag or 0:,}" for one in found)
            line.update(f"records behind the log: {', '.join(behind)}")
            only = migration.running == {CATALOG.fingerprint}
            if until_one and only and any(one.own and one.caught_up for one in found):
                break
            if stop.wait(EVERY_S):
                break


def _tell(one: SetState, told: dict[str, str]) -> None:
    """A line for a set whose state has changed."""
    state = "caught up" if one.caught_up else "not folded" if one.lag is None else "catching up"
    readers = ", ".join(f"version {v} ({role})" for v, role in one.versions) or "nobody"
    line = f"{state}, read by {readers}"
    if told.get(one.fingerprint) != line:
        told[one.fingerprint] = line
        ready = "ready: " if one.own and one.caught_up else ""
        err.print(f"{ready}feature set {one.fingerprint[:8]}: {line}", highlight=False)
