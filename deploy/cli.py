"""The command `millstream`: global options, the commands of every package, exit codes."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from deploy import migrate_cli, own_version
from features.cli import features_app
from features.runner import JobServer, Runner, serve_with
from ingest.repartition_cli import rebuild_rows_with
from ingest.replay_cli import watch_folds_with
from ingest.settings import Settings
from ingest.terminal import Json, err, out, print_json, print_table
from schemas.errors import (
    BrokerUnavailable,
    MillstreamError,
    Misconfigured,
    Refused,
    RegistryUnavailable,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from ingest.repartition import FoldedRows
    from ingest.replay import FoldWatch

# Their modules import what is heavy only inside commands: `millstream --help` is quick.
PACKAGES = ("ingest.cli", "features.cli", "inference.cli", "retrain.cli", "deploy.demo.cli")

app = typer.Typer(
    name="millstream",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="User-behaviour events in Kafka become features, recommendations, and fresh models.",
)
stack_app = typer.Typer(no_args_is_help=True, help="Kafka, Valkey and the registry, here.")
app.add_typer(stack_app, name="stack")


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"millstream {own_version()}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    bootstrap_servers: Annotated[str | None, typer.Option(help="Kafka, host:port.")] = None,
    registry_url: Annotated[str | None, typer.Option(help="Schema registry.")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis or Valkey.")] = None,
    profile: Annotated[str | None, typer.Option(help="production or demo.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Before every topic and group name.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print it."),
    ] = False,
) -> None:
    """Options before the command override MILLSTREAM_* variables and the settings file."""
    settings = Settings.load(file=config)
    log_to_standard_error(settings.log_format)
    context.obj = replace(
        settings,
        bootstrap_servers=bootstrap_servers or settings.bootstrap_servers,
        registry_url=registry_url or settings.registry_url,
        redis_url=redis_url or settings.redis_url,
        profile=profile or settings.profile,
        topic_prefix=settings.topic_prefix if prefix is None else prefix,
    )


@app.command()
def doctor(
    context: typer.Context,
    fetch: Annotated[bool, typer.Option("--fetch", help="Download what is missing.")] = False,
    runners: Annotated[bool, typer.Option("--runners", help="Also Prism and Flink.")] = False,
    as_json: Json = False,
) -> None:
    """
    Check what Millstream needs on this machine, and say what to do. Exit code 2 on a problem.

    Example: `millstream doctor --fetch`
    """
    from deploy import doctor as checks  # noqa: PLC0415 - keeps --help quick
    from deploy import kafka  # noqa: PLC0415

    settings: Settings = context.obj
    if fetch:
        with err.status("fetching Kafka (45 MB, once)"):
            kafka.prepare(settings.cache_dir)
    if fetch and runners:
        _fetch_runners(settings)
    with err.status("looking"):
        found = list(checks.examine(settings, runners=runners))
    if as_json:
        print_json([asdict(check) for check in found])
    else:
        rows = [
            ("[green]ok[/]" if c.ok else "[red]no[/]", c.name, c.found, "" if c.ok else c.remedy)
            for c in found
        ]
        print_table(("", "what", "found", "to do"), rows)
    if not all(check.ok for check in found):
        raise typer.Exit(2)


def _fetch_runners(settings: Settings) -> None:
    from deploy import jars, prism  # noqa: PLC0415 - keeps --help quick

    with err.status("fetching Flink (152 MB, once)"):
        jars.fetch(settings.cache_dir, jars.FLINK)
    with err.status("building Prism (minutes, once)"):
        prism.build(settings.cache_dir)


@stack_app.command("up")
def stack_up(
    context: typer.Context,
    partitions: Annotated[int, typer.Option(min=1, help="Of every keyed topic.")] = 4,
    flink: Annotated[bool, typer.Option("--flink", help="Also a small Flink cluster.")] = False,
    as_json: Json = False,
) -> None:
    """
    Start Kafka, Valkey and the registry on this machine and create the topics. Idempotent.

    Data and logs are under `out/stack` and survive a restart. A key that signs models and releases
    is made if there is none.

    Example: `millstream stack up --partitions 4`
    """
    from deploy import stack  # noqa: PLC0415 - keeps --help quick
    from inference.signature import ensure_key  # noqa: PLC0415

    settings: Settings = context.obj
    with err.status("starting") as spinner:
        started = stack.up(settings, partitions, with_flink=flink, tell=spinner.update)
        spinner.update("creating topics")
        created = stack.create_topics(settings, partitions)
        ensure_key(settings.keys_dir)
    if not as_json:
        err.print(
            f"started: {', '.join(started) or 'nothing, all was up'}; "
            f"topics created: {len(created)}"
        )
    _print_status(settings, as_json=as_json)


@stack_app.command("down")
def stack_down(
    context: typer.Context,
    delete_data: Annotated[
        bool, typer.Option("--delete-data", help="Also delete log, rows, archive and models.")
    ] = False,
    as_json: Json = False,
) -> None:
    """
    Stop what `stack up` started. Its data stays, unless told otherwise.

    Example: `millstream stack down`
    """
    from deploy import stack  # noqa: PLC0415 - keeps --help quick

    with err.status("stopping"):
        stopped = stack.down(context.obj, delete_data=delete_data)
    if as_json:
        print_json({"stopped": stopped, "data_deleted": delete_data})
        return
    for name, clean in stopped.items():
        out.print(f"{name} {'stopped' if clean else 'was killed: it did not stop in time'}")
    if not stopped:
        out.print("nothing was up")


@stack_app.command("status")
def stack_status(context: typer.Context, as_json: Json = False) -> None:
    """
    What is up, where, its version, pid and memory. Exit code 1 if a part is down.

    Example: `millstream stack status --json`
    """
    from deploy import stack  # noqa: PLC0415 - keeps --help quick

    _print_status(context.obj, as_json=as_json)
    if any(part.state in ("down", "starting") for part in stack.status(context.obj)):
        raise typer.Exit(1)


def _print_status(settings: Settings, *, as_json: bool) -> None:
    from deploy import stack  # noqa: PLC0415 - keeps --help quick

    found = stack.status(settings)
    if as_json:
        print_json([asdict(part) for part in found])
        return
    rows = [
        (
            part.name,
            f"[{'green' if part.state == 'up' else 'yellow'}]{part.state}[/]",
            part.address,
            part.version,
            str(part.pid or ""),
            f"{part.resident_bytes / 1e6:.0f} MB" if part.resident_bytes else "",
        )
        for part in found
    ]
    print_table(("part", "state", "address", "version", "pid", "memory"), rows)
    err.print(f"logs: {settings.stack_dir / 'logs'}", highlight=False)


def log_to_standard_error(form: str = "console") -> None:
    """
    Log events become lines on standard error, so that `--json` alone is on standard output.

    `form`: one of `ingest.settings.LOG_FORMATS`; as "json", a line is one object, an exception in
    it a list of frames without their variables, which may hold what users did.
    """
    written: list[Any] = [
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ),
        structlog.processors.JSONRenderer(default=str),
    ]
    if form == "console":
        written = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *written,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # The stream as it is when a line is written, not as it was when the process began.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


@cache
def build() -> typer.Typer:
    """The whole command line: ours and every package's."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name).register(app)
    migrate_cli.register(features_app)  # it needs to know the releases, which features does not
    watch_folds_with(_fold_watch)
    rebuild_rows_with(_stored_rows)
    serve_with(Runner.PRISM, _prism)
    serve_with(Runner.FLINK, _flink)
    return app


def _fold_watch(settings: Settings) -> FoldWatch:
    from features.fold_watch import open_watch  # noqa: PLC0415 - keeps --help quick

    return open_watch(settings)


def _stored_rows(settings: Settings) -> FoldedRows:
    from features.repartitioned import StoredRows  # noqa: PLC0415 - keeps --help quick

    return StoredRows(settings)


def _prism(settings: Settings) -> AbstractContextManager[JobServer]:
    from deploy import prism  # noqa: PLC0415 - keeps --help quick

    return prism.serving(settings)


def _flink(settings: Settings) -> AbstractContextManager[JobServer]:
    from deploy import stack  # noqa: PLC0415 - keeps --help quick

    return nullcontext(stack.flink_server(settings))


def run(arguments: Sequence[str], commands: typer.Typer | None = None) -> int:
    """
    Run one command. The exit code: 0 done, 1 failed, 2 misconfigured, 3 refused, 130 interrupted.

    Args:
        commands: other commands than ours.

    >>> run(["--no-such-option"])
    2
    """
    log_to_standard_error()
    try:
        (commands or build())(args=list(arguments), prog_name="millstream")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except KeyboardInterrupt:
        return 130
    except MillstreamError as error:
        err.print(f"[red]{type(error).__name__}[/]: ", end="")
        err.print(str(error), markup=False, highlight=False)
        if isinstance(error, BrokerUnavailable | StoreUnavailable | RegistryUnavailable):
            err.print(_UNREACHABLE, markup=False, highlight=False)
        return _exit_code(error)
    return 0


_UNREACHABLE = (
    "What is up, and where it is looked for: `millstream stack status`; to start it: "
    "`millstream stack up`; to use another: --bootstrap-servers, --registry-url, --redis-url"
)


def _exit_code(error: MillstreamError) -> int:
    match error:
        case Misconfigured():
            return 2
        case Refused():
            return 3
        case _:
            return 1


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
