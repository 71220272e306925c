"""The command `millstream replay`."""

# What is heavy is imported inside commands, so that `--help` is quick.
# ruff: noqa: PLC0415, PLR0913, PLR0917 - a command has as many parameters as options

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingest.clock import SystemClock
from ingest.settings import Settings
from ingest.terminal import Json, err, out, plain, print_json, print_table, progress
from schemas.errors import Misconfigured

if TYPE_CHECKING:
    from ingest.datasets import Dataset
    from ingest.replay import Folded, FoldWatch, ReplayPlan, Sent

FOLD_TIMEOUT_S = 600.0  # a job that folds needs seconds; one that stands still is told earlier

MakeWatch = Callable[[Settings], "FoldWatch"]
_watches: list[MakeWatch] = []


def watch_folds_with(make: MakeWatch) -> None:
    """How `replay --wait` sees the features job: a package above ingest says it."""
    _watches[:] = [make]


def replay(
    context: typer.Context,
    dataset: Annotated[
        str,
        typer.Argument(help="movielens-100k, movielens, kuairand, ranklens, otto or recbole."),
    ],
    path: Annotated[Path | None, typer.Argument(help="Where its files are.")] = None,
    speed: Annotated[str, typer.Option(help="Times real time, or max.")] = "max",
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many rows.")] = None,
    start: Annotated[float, typer.Option("--from", help="Leave out this share of rows.")] = 0.0,
    until: Annotated[float, typer.Option("--until", help="Stop at this share of rows.")] = 1.0,
    end_ms: Annotated[
        int | None, typer.Option(help="Event time of the last row, epoch ms. Default: now.")
    ] = None,
    items: Annotated[bool, typer.Option(help="Send the catalogue first.")] = True,
    wait: Annotated[bool, typer.Option(help="Wait until the features job has folded it.")] = True,
    as_json: Json = False,
) -> None:
    """
    Send a data set as live traffic, in event-time order, shifted so that it ends now.

    Example: `millstream replay movielens-100k --speed max --until 0.8`
    """
    from ingest.datasets import open_dataset
    from ingest.replay import ReplayPlan

    with err.status(f"reading {dataset}"):
        data = open_dataset(dataset, path, context.obj.data_dir)
    err.print(f"licence of {dataset}: {data.licence}", markup=False)
    try:
        plan = ReplayPlan(
            end_ms=SystemClock().now_ms() if end_ms is None else end_ms,
            speed=None if speed == "max" else float(speed),
            from_fraction=start,
            until_fraction=until,
            limit=limit,
            items=items,
        )
    except ValueError as error:
        raise Misconfigured(f"replay: {error}") from error
    watch = _watches[0](context.obj) if wait and _watches else None
    if watch is not None:
        with err.status("looking for the features job"):
            watch.begin()
    sent = _send(context.obj, data, plan)
    folded = None
    try:
        if watch is not None:
            with err.status("waiting for the features job"):
                folded = watch.wait(sent.last_offsets, timeout_s=FOLD_TIMEOUT_S)
    finally:
        _print_replay(sent, folded, as_json=as_json)
    if folded is not None and folded.lost(sent):
        raise typer.Exit(1)


def _send(settings: Settings, data: Dataset, plan: ReplayPlan) -> Sent:
    from ingest.kafka import KafkaLog, KafkaProducer
    from ingest.replay import Replay
    from ingest.topics import Topics, check_partitions
    from schemas.registry import RemoteRegistry

    topics = Topics(settings.topic_prefix)
    check_partitions(KafkaLog(settings.bootstrap_servers, settings.timeout_s), topics)
    first, stop = plan.rows(len(data))
    producer = KafkaProducer(settings.bootstrap_servers, timeout_s=settings.timeout_s)
    registry = RemoteRegistry(settings.registry_url, settings.timeout_s)
    with closing(producer), progress("rows", stop - first) as tell:
        job = Replay(data, producer, registry, topics, SystemClock())
        return job.run(plan, lambda so_far: tell(so_far.rows))


def _print_replay(sent: Sent, folded: Folded | None, *, as_json: bool) -> None:
    if as_json:
        report: dict[str, Any] = {"sent": plain(sent)}
        if folded is not None:
            report["folded"] = plain(folded) | {"lost": folded.lost(sent)}
        print_json(report)
        return
    titles = ["event type", "sent", "without repeats"]
    rows = [[name, str(n), str(sent.distinct[name])] for name, n in sorted(sent.events.items())]
    if folded is not None:
        titles.append("folded")
        for row in rows:
            row.append(str(folded.accepted.get(row[0], 0)))
    print_table(titles, rows)
    events = sum(sent.events.values())
    out.print(
        f"{sent.rows} rows ({sent.repeated_rows} repeated), {sent.items} items, {events} events "
        f"in {sent.seconds:.1f} s",
        highlight=False,
    )
    if folded is not None:
        out.print(
            f"{folded.duplicates} duplicates, {folded.late} late, {folded.rejected} refused, "
            f"{folded.lost(sent)} lost",
            highlight=False,
        )
