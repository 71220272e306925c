"""Commands: `millstream features run | show | describe`; the others' modules are named below."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from features import audit_cli
from features.rebuild_cli import SetName
from features.runner import JobServer, Runner, RunPlan
from ingest.terminal import Json, err, out, print_json, print_table

if TYPE_CHECKING:
    from features.show import ShownUser

# What is heavy is imported inside the commands: `--help` stays quick.
features_app = typer.Typer(no_args_is_help=True, help="User rows: fold, look at, rebuild.")

OTHER_COMMANDS = ("features.rebuild_cli", "features.archive_cli")


def register(app: typer.Typer) -> None:
    """Add this package's commands."""
    app.add_typer(features_app, name="features")
    for name in OTHER_COMMANDS:
        importlib.import_module(name).register(features_app)
    audit_cli.register(app)


@features_app.command("run")
def run(  # noqa: PLR0917 - as many parameters as options
    context: typer.Context,
    runner: Annotated[Runner, typer.Option(help="Beam runner.")] = Runner.FNAPI,
    parallelism: Annotated[int, typer.Option(min=1, help="Shares folded side by side.")] = 1,
    job_endpoint: Annotated[
        str | None, typer.Option(help="Another job server than this machine's, host:port.")
    ] = None,
    flink_master: Annotated[
        str | None, typer.Option(help="With --job-endpoint: Flink's REST API, host:port.")
    ] = None,
    worker_command: Annotated[
        str | None, typer.Option(help="With --job-endpoint: what TaskManagers run as a worker.")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Serve Prometheus metrics here.")] = None,
    from_earliest: Annotated[
        bool, typer.Option("--from-earliest", help="Begin although the log's head is gone.")
    ] = False,
    publish: Annotated[bool, typer.Option(help="Send item partials to item-features.")] = True,
    feature_set: SetName = None,
    beam_options: Annotated[
        list[str] | None, typer.Argument(help="After `--`: Beam's own options.")
    ] = None,
) -> None:
    """
    Fold user-events into rows until SIGTERM; a restart resumes where the store stands.

    Example: `millstream features run --runner flink --parallelism 2`
    """
    from features.feature_sets import chosen_set  # noqa: PLC0415
    from features.run import RunOptions, run_job  # noqa: PLC0415

    server = (
        None
        if job_endpoint is None
        else JobServer(
            endpoint=job_endpoint, flink_master=flink_master, worker_command=worker_command
        )
    )
    options = RunOptions(
        plan=RunPlan(
            runner=runner,
            parallelism=parallelism,
            server=server,
            beam_options=tuple(beam_options or ()),
        ),
        metrics_port=metrics_port,
        from_earliest=from_earliest,
        publish=publish,
        features=chosen_set(context.obj, feature_set),
    )
    run_job(context.obj, options, lambda text: err.print(f"ready: {text}", highlight=False))


@features_app.command("show")
def show(
    context: typer.Context,
    user: Annotated[str, typer.Option(help="User id.")],
    as_json: Json = False,
) -> None:
    """
    Print a user's row: what is known of the user, and up to which event.

    Example: `millstream features show --user 42`
    """
    from features.show import shown_user  # noqa: PLC0415

    with err.status("reading the row and the catalogue"):
        found = shown_user(context.obj, user)
    if as_json:
        print_json(asdict(found))
    else:
        _print_user(found)
    if not found.known:
        raise typer.Exit(1)


@features_app.command("describe")
def describe(as_json: Json = False) -> None:
    """
    List the declared features of the standard set.

    Example: `millstream features describe`
    """
    from features import catalog  # noqa: PLC0415
    from features.catalog import CATALOG  # noqa: PLC0415

    found = catalog.describe(CATALOG)
    if as_json:
        print_json({"fingerprint": CATALOG.fingerprint, "features": found})
        return
    out.print(f"feature set {CATALOG.fingerprint}", highlight=False)
    print_table(tuple(found[0]), (tuple(row.values()) for row in found))


def _print_user(user: ShownUser) -> None:
    out.print(
        f"user {user.user}, partition {user.partition}, folded up to offset {user.next_offset}",
        highlight=False,
    )
    if not user.known:
        out.print("no row: nothing is known of this user", highlight=False)
        return
    out.print(f"first seen {user.first_seen}, last seen {user.last_seen}", highlight=False)
    out.print("\nevents until last seen")
    print_table(
        ("event type", "24 hours", "30 days"),
        ((c.event_type, str(c.day), str(c.month)) for c in user.counts),
    )
    out.print("\nlast interactions, newest first")
    print_table(
        ("time", "type", "item", "value"),
        (
            (e.time, e.event_type, e.title or e.item, "" if e.value is None else f"{e.value:g}")
            for e in user.history
        ),
    )
