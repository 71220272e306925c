"""The commands of ingest: topics, dead letters, replay, simulate."""

# What is heavy (Kafka's client, polars) is imported inside commands, so that `--help` is quick; a
# command has as many parameters as it has options.
# ruff: noqa: PLC0415, PLR0917

from __future__ import annotations

import base64
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ingest.clock import SystemClock
from ingest.settings import Settings
from schemas.errors import Misconfigured

if TYPE_CHECKING:
    from ingest.replay import Folded, FoldWatch, Sent
    from ingest.simulator import Simulator
    from schemas.events import DeadLetter

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
MakeWatch = Callable[[Settings], "FoldWatch"]

topics_app = typer.Typer(no_args_is_help=True, help="The ten topics: create, describe.")
letters_app = typer.Typer(no_args_is_help=True, help="Records that were refused, and why.")
_out = Console()
_err = Console(stderr=True)
_watches: list[MakeWatch] = []


def register(app: typer.Typer) -> None:
    """Add the commands to the one app."""
    app.add_typer(topics_app, name="topics")
    app.add_typer(letters_app, name="dead-letters")
    app.command()(replay)
    app.command()(simulate)


def watch_folds_with(make: MakeWatch) -> None:
    """How `replay --wait` sees the features job: a package above ingest says it."""
    _watches[:] = [make]


# --- topics -------------------------------------------------------------------------------------


@topics_app.command("create")
def topics_create(
    context: typer.Context,
    partitions: Annotated[int, typer.Option(min=1, help="Of every keyed topic.")] = 4,
    replay: Annotated[
        bool, typer.Option(help="Keep records of any age, as replays of old data need it.")
    ] = True,
    as_json: Json = False,
) -> None:
    """
    Create the topics that are missing; those that are there keep their records.

    Example: `millstream topics create --partitions 4`
    """
    from ingest.kafka import KafkaAdmin
    from ingest.topics import ensure_topics, topic_specs

    settings: Settings = context.obj
    specs = topic_specs(settings.topic_prefix, partitions, replay=replay)
    admin = KafkaAdmin(settings.bootstrap_servers, settings.timeout_s)
    created = ensure_topics(admin, specs)
    if as_json:
        _print_json({"created": created, "topics": [spec.name for spec in specs]})
    else:
        _out.print(f"{len(created)} topics created, {len(specs) - len(created)} were there")


@topics_app.command("describe")
def topics_describe(context: typer.Context, as_json: Json = False) -> None:
    """
    What there is of the ten topics. Exit code 1 if one is missing.

    Example: `millstream topics describe --json`
    """
    from ingest.kafka import KafkaAdmin, KafkaLog
    from ingest.topics import describe, topic_specs

    settings: Settings = context.obj
    admin = KafkaAdmin(settings.bootstrap_servers, settings.timeout_s)
    log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    rows = describe(admin, log, topic_specs(settings.topic_prefix, 1, replay=False))
    if as_json:
        _print_json([asdict(row) for row in rows])
    else:
        _print_table(
            ("topic", "partitions", "cleanup", "retention", "records"),
            (
                (r.name, str(r.partitions), r.cleanup, r.retention, str(r.records))
                if r.exists
                else (r.name, "[red]missing[/]", "", "", "")
                for r in rows
            ),
        )
    if not all(row.exists for row in rows):
        raise typer.Exit(1)


# --- dead letters -------------------------------------------------------------------------------


@letters_app.command("list")
def dead_letters_list(
    context: typer.Context,
    reason: Annotated[str | None, typer.Option(help="Only those of this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the first ones.")] = 100,
    as_json: Json = False,
) -> None:
    """
    The refused records: reason, origin, detail.

    Example: `millstream dead-letters list --reason undecodable`
    """
    found: list[DeadLetter] = []
    with _letters(context.obj) as letters:
        for one in letters:
            if reason in (None, one.reason):
                found.append(one)
            if len(found) == limit:
                break
    if as_json:
        _print_json([_letter_json(one) for one in found])
        return
    _print_table(
        ("reason", "origin", "detail"),
        ((one.reason, f"{one.topic}/{one.partition}/{one.offset}", one.detail) for one in found),
    )


@letters_app.command("show")
def dead_letters_show(
    context: typer.Context,
    origin: Annotated[str, typer.Argument(help="topic/partition/offset, as `list` prints it.")],
) -> None:
    """
    One refused record in full, as JSON; its bytes in base 64. Exit code 1 if there is none.

    Example: `millstream dead-letters show user-events/0/42`
    """
    with _letters(context.obj) as letters:
        for one in letters:
            if f"{one.topic}/{one.partition}/{one.offset}" == origin:
                _print_json(_letter_json(one))
                return
    _err.print(f"no dead letter of {origin}", markup=False)
    raise typer.Exit(1)


@contextmanager
def _letters(settings: Settings) -> Iterator[Iterator[DeadLetter]]:
    from ingest.dead_letter import read_dead_letters
    from ingest.kafka import KafkaLog, KafkaSource
    from ingest.topics import Topics
    from schemas.codec import Codec
    from schemas.events import DeadLetter
    from schemas.registry import RemoteRegistry

    topic = Topics(settings.topic_prefix).dead_letters
    registry = RemoteRegistry(settings.registry_url, settings.timeout_s)
    log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    with closing(KafkaSource(settings.bootstrap_servers, timeout_s=settings.timeout_s)) as source:
        yield read_dead_letters(source, log, Codec(registry, DeadLetter, topic), topic)


def _letter_json(one: DeadLetter) -> dict[str, Any]:
    def text(data: bytes | None) -> str | None:
        return None if data is None else base64.b64encode(data).decode()

    headers = {h.name: text(h.value) for h in one.headers}
    return {**asdict(one), "key": text(one.key), "value": text(one.value), "headers": headers}


# --- replay -------------------------------------------------------------------------------------


def replay(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="movielens-100k, movielens or kuairand.")],
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
    from ingest.kafka import KafkaProducer
    from ingest.replay import Replay, ReplayPlan
    from ingest.topics import Topics
    from schemas.registry import RemoteRegistry

    settings: Settings = context.obj
    clock = SystemClock()
    with _err.status(f"reading {dataset}"):
        data = open_dataset(dataset, path, settings.data_dir)
    _err.print(f"licence of {dataset}: {data.licence}", markup=False)
    try:
        plan = ReplayPlan(
            end_ms=clock.now_ms() if end_ms is None else end_ms,
            speed=None if speed == "max" else float(speed),
            from_fraction=start,
            until_fraction=until,
            limit=limit,
            items=items,
        )
    except ValueError as error:
        raise Misconfigured(f"replay: {error}") from error
    watch = _watches[0](settings) if wait and _watches else None
    if watch is not None:
        watch.begin()
    first, stop = plan.rows(len(data))
    producer = KafkaProducer(settings.bootstrap_servers, timeout_s=settings.timeout_s)
    registry = RemoteRegistry(settings.registry_url, settings.timeout_s)
    with closing(producer), _progress("rows", stop - first) as tell:
        job = Replay(data, producer, registry, Topics(settings.topic_prefix), clock)
        sent = job.run(plan, lambda so_far: tell(so_far.rows))
    folded = None
    if watch is not None:
        with _err.status("waiting for the features job"):
            folded = watch.wait(sent.last_offsets, timeout_s=600)
    _print_replay(sent, folded, as_json=as_json)


def _print_replay(sent: Sent, folded: Folded | None, *, as_json: bool) -> None:
    if as_json:
        report: dict[str, Any] = {"sent": _fields(sent)}
        if folded is not None:
            report["folded"] = _fields(folded)
        _print_json(report)
        return
    titles = ["event type", "sent", "without repeats"]
    rows = [[name, str(n), str(sent.distinct[name])] for name, n in sorted(sent.events.items())]
    if folded is not None:
        titles.append("folded")
        for row in rows:
            row.append(str(folded.accepted.get(row[0], 0)))
    _print_table(titles, rows)
    events = sum(sent.events.values())
    _out.print(
        f"{sent.rows} rows ({sent.repeated_rows} repeated), {sent.items} items, {events} events "
        f"in {sent.seconds:.1f} s",
        highlight=False,
    )
    if folded is not None:
        _out.print(
            f"{folded.duplicates} duplicates, {folded.late} late, {folded.rejected} refused",
            highlight=False,
        )


# --- simulate -----------------------------------------------------------------------------------


def simulate(
    context: typer.Context,
    shoppers: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    minutes: Annotated[float, typer.Option(min=0, help="How long.")] = 5.0,
    sessions_per_hour: Annotated[float, typer.Option(help="Of one shopper.")] = 30.0,
    day_s: Annotated[float, typer.Option(help="Seconds that a day of shoppers lasts.")] = 86_400.0,
    flip_at: Annotated[float | None, typer.Option(help="Tastes flip after so many s.")] = None,
    catalogue_at: Annotated[
        float | None, typer.Option(help="A new catalogue after so many s.")
    ] = None,
    outage: Annotated[str | None, typer.Option(help="No events, s: FROM-UNTIL.")] = None,
    label_loss: Annotated[str | None, typer.Option(help="No labels, s: FROM-UNTIL.")] = None,
    seed: Annotated[int, typer.Option(help="Everything follows from it.")] = 1,
    as_json: Json = False,
) -> None:
    """
    Let simulated shoppers ask, look and click, on the surface `shop-sim`.

    Example: `millstream simulate --shoppers 200 --minutes 10 --flip-at 300`
    """
    from ingest.simulator import Script, Simulator, SimulatorPolicy
    from ingest.tastes import WorldPolicy

    clock = SystemClock()
    script = Script(
        flip_at_s=flip_at,
        catalogue_at_s=catalogue_at,
        outage=_span("outage", outage),
        label_loss=_span("label-loss", label_loss),
    )
    try:
        policy = SimulatorPolicy(
            world=WorldPolicy(shoppers=shoppers, seed=seed),
            sessions_per_hour=sessions_per_hour,
            day_s=day_s,
            script=script,
        )
    except ValueError as error:
        raise Misconfigured(f"simulate: {error}") from error
    simulator = Simulator(policy, clock.now_ms())
    _simulate(context.obj, simulator, minutes * 60)
    tally = simulator.tally
    if as_json:
        _print_json(_fields(tally))
        return
    _print_table(("event type", "sent"), ((k, str(n)) for k, n in sorted(tally.events.items())))
    _out.print(
        f"{tally.requests} requests, {tally.answered} answered; {tally.duplicates} duplicates, "
        f"{tally.late} late, {tally.malformed} malformed, {tally.withheld.total()} withheld",
        highlight=False,
    )


def _simulate(settings: Settings, simulator: Simulator, duration_s: float) -> None:
    from ingest.kafka import KafkaLog, KafkaProducer, KafkaSource
    from ingest.simulation import Live, Simulation
    from ingest.topics import Topics
    from schemas.registry import RemoteRegistry

    clock, servers, timeout_s = SystemClock(), settings.bootstrap_servers, settings.timeout_s
    stopping: list[int] = []
    before = [(s, signal.signal(s, lambda n, _: stopping.append(n))) for s in _STOP_SIGNALS]
    started_s = clock.monotonic_s()
    try:
        with (
            closing(KafkaSource(servers, timeout_s=timeout_s)) as source,
            closing(KafkaProducer(servers, timeout_s=timeout_s)) as producer,
            _progress("seconds", round(duration_s)) as tell,
        ):
            live = Live(
                log=KafkaLog(servers, timeout_s),
                source=source,
                producer=producer,
                registry=RemoteRegistry(settings.registry_url, timeout_s),
                topics=Topics(settings.topic_prefix),
                clock=clock,
            )
            simulation = Simulation(simulator, live)
            sys.stderr.write("ready: simulated shoppers\n")
            sys.stderr.flush()
            simulation.run(
                duration_s,
                stopped=lambda: bool(stopping),
                on_progress=lambda _: tell(int(clock.monotonic_s() - started_s)),
            )
    finally:
        for number, handler in before:
            signal.signal(number, handler)


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _span(name: str, text: str | None) -> tuple[float, float] | None:
    """FROM-UNTIL in seconds.

    >>> _span("outage", "60-90")
    (60.0, 90.0)
    """
    if text is None:
        return None
    try:
        start, until = (float(part) for part in text.split("-"))
    except ValueError as error:
        raise Misconfigured(f"--{name} {text!r} is not FROM-UNTIL in seconds, as 60-90") from error
    return start, until


# --- printing -----------------------------------------------------------------------------------


@contextmanager
def _progress(unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; `tell(done)` moves it."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, console=_err, transient=True) as bar:
        task = bar.add_task(unit, total=total)
        yield lambda done: bar.update(task, completed=done)


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass as a dict; unlike `asdict`, with its Counters whole."""
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def _print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    _out.print(table)
