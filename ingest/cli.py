"""The commands of ingest: topics and simulate here, replay and dead letters in their modules."""

# What is heavy (Kafka's client, polars) is imported inside commands, so that `--help` is quick; a
# command has as many parameters as it has options.
# ruff: noqa: PLC0415, PLR0917

from __future__ import annotations

import signal
import sys
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.clock import SystemClock
from ingest.dead_letter_cli import letters_app
from ingest.repartition_cli import repartition
from ingest.replay_cli import replay
from ingest.settings import Settings
from ingest.terminal import Json, out, plain, print_json, print_table, progress
from schemas.errors import Misconfigured

if TYPE_CHECKING:
    from ingest.simulator import Simulator

topics_app = typer.Typer(no_args_is_help=True, help="The ten topics: create, copy, describe.")


def register(app: typer.Typer) -> None:
    """Add the commands to the one app."""
    topics_app.command()(repartition)
    app.add_typer(topics_app, name="topics")
    app.add_typer(letters_app, name="dead-letters")
    app.command()(replay)
    app.command()(simulate)


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
        print_json({"created": created, "topics": [spec.name for spec in specs]})
    else:
        out.print(f"{len(created)} topics created, {len(specs) - len(created)} were there")


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
        print_json([asdict(row) for row in rows])
    else:
        print_table(
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


# --- simulate -----------------------------------------------------------------------------------


def simulate(
    context: typer.Context,
    shoppers: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    catalogue: Annotated[int, typer.Option(min=12, help="Items of the shop.")] = 300,
    minutes: Annotated[float, typer.Option(min=0, help="How long.")] = 5.0,
    sessions_per_hour: Annotated[float, typer.Option(help="Of one shopper.")] = 30.0,
    day_s: Annotated[float, typer.Option(help="Seconds that a day of shoppers lasts.")] = 86_400.0,
    rhythm: Annotated[float, typer.Option(min=0, max=1, help="0: the same at all hours.")] = 0.6,
    click: Annotated[float, typer.Option(min=0, max=1, help="Of a perfect item in front.")] = 0.7,
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
            world=WorldPolicy(shoppers=shoppers, items=catalogue, seed=seed),
            sessions_per_hour=sessions_per_hour,
            day_s=day_s,
            rhythm=rhythm,
            click=click,
            script=script,
        )
    except ValueError as error:
        raise Misconfigured(f"simulate: {error}") from error
    simulator = Simulator(policy, clock.now_ms())
    _simulate(context.obj, simulator, minutes * 60)
    tally = simulator.tally
    if as_json:
        print_json(plain(tally))
        return
    print_table(("event type", "sent"), ((k, str(n)) for k, n in sorted(tally.events.items())))
    out.print(
        f"{tally.requests} requests, {tally.answered} answered; {tally.duplicates} duplicates, "
        f"{tally.late} late, {tally.malformed} malformed, {tally.withheld.total()} withheld",
        highlight=False,
    )


def _simulate(settings: Settings, simulator: Simulator, duration_s: float) -> None:
    from ingest.kafka import KafkaLog, KafkaProducer, KafkaSource
    from ingest.simulation import Live, Simulation
    from ingest.topics import Topics, check_partitions
    from schemas.registry import RemoteRegistry

    log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    check_partitions(log, Topics(settings.topic_prefix))
    clock, servers, timeout_s = SystemClock(), settings.bootstrap_servers, settings.timeout_s
    stopping: list[int] = []
    before = [(s, signal.signal(s, lambda n, _: stopping.append(n))) for s in _STOP_SIGNALS]
    started_s = clock.monotonic_s()
    try:
        with (
            closing(KafkaSource(servers, timeout_s=timeout_s)) as source,
            closing(KafkaProducer(servers, timeout_s=timeout_s)) as producer,
            progress("seconds", round(duration_s)) as tell,
        ):
            live = Live(
                log=log,
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
