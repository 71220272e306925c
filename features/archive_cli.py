"""Commands: `millstream features join | archive | backfill`."""

# What is heavy is imported inside commands, so that `--help` is quick.
# ruff: noqa: PLC0415, PLR0913, PLR0917 - a command has as many parameters as options

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.clock import SystemClock
from ingest.settings import Settings
from ingest.terminal import Json, err, out, print_json, progress
from schemas.errors import Misconfigured

if TYPE_CHECKING:
    from features.join import JoinPolicy
    from ingest.kafka import KafkaSource

Root = Annotated[Path | None, typer.Option("--archive-dir", help="Default: from the settings.")]
Partitions = Annotated[
    str, typer.Option(help="Only these partitions, e.g. 0,2. Others run elsewhere.")
]
RotateS = Annotated[float, typer.Option(min=0.1, help="A file counts after so many seconds.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the group `features`."""
    app.command("join")(join)
    app.command("archive")(archive)
    app.command("backfill")(backfill)


def join(
    context: typer.Context,
    window_s: Annotated[
        float | None, typer.Option(min=0.001, help="Attribution window. Default: the profile's.")
    ] = None,
    lateness_s: Annotated[
        float | None, typer.Option(min=0, help="How late an event may come.")
    ] = None,
    idle_close_s: Annotated[
        float | None, typer.Option(min=0, help="Silence after which wall clock closes lists.")
    ] = None,
    rotate_s: RotateS = 60.0,
    partitions: Partitions = "",
    archive_dir: Root = None,
) -> None:
    """
    Join served recommendations with what users did next, into TFRecord files, until SIGTERM.

    Example: `millstream features join --window-s 1800`
    """
    from features.catalog import CATALOG
    from features.join_worker import JoinParts, JoinWorker, Rotation, WorkPolicy
    from ingest.kafka import KafkaLog
    from ingest.metrics import PrometheusMetrics
    from ingest.topics import Topics
    from schemas.registry import RemoteRegistry

    settings: Settings = context.obj
    policy = _join_policy(settings.profile, window_s, lateness_s, idle_close_s)
    lists, events = _source(settings), _source(settings)
    with closing(lists), closing(events):
        parts = JoinParts(
            log=KafkaLog(settings.bootstrap_servers, settings.timeout_s),
            lists=lists,
            events=events,
            registry=RemoteRegistry(settings.registry_url, settings.timeout_s),
            topics=Topics(settings.topic_prefix),
            features=CATALOG,
            root=archive_dir or settings.archive_dir,
            clock=SystemClock(),
            metrics=PrometheusMetrics(),
        )
        work = WorkPolicy(rotation=Rotation(max_age_s=rotate_s))
        worker = JoinWorker(parts, policy, work, _numbers(partitions))
        _run(worker.run, f"join into {parts.root}")


def archive(
    context: typer.Context,
    rotate_s: RotateS = 60.0,
    partitions: Partitions = "",
    archive_dir: Root = None,
) -> None:
    """
    Keep user-events and recommendations as Avro container files, until SIGTERM.

    Example: `millstream features archive --rotate-s 300`
    """
    from features.event_archive import ArchiveParts, ArchivePolicy, EventArchiver
    from features.join_worker import Rotation
    from ingest.kafka import KafkaLog
    from ingest.metrics import PrometheusMetrics
    from ingest.topics import Topics

    settings: Settings = context.obj
    with closing(_source(settings)) as source:
        parts = ArchiveParts(
            log=KafkaLog(settings.bootstrap_servers, settings.timeout_s),
            source=source,
            topics=Topics(settings.topic_prefix),
            root=archive_dir or settings.archive_dir,
            clock=SystemClock(),
            metrics=PrometheusMetrics(),
        )
        policy = ArchivePolicy(rotation=Rotation(max_bytes=64_000_000, max_age_s=rotate_s))
        archiver = EventArchiver(parts, policy, _numbers(partitions))
        _run(archiver.run, f"archive into {parts.root}")


def backfill(
    context: typer.Context,
    interactions: Annotated[
        bool,
        typer.Option("--interactions", help="What users did is the example and its own label."),
    ] = False,
    window_s: Annotated[
        float | None, typer.Option(min=0.001, help="Attribution window. Default: the profile's.")
    ] = None,
    surface: Annotated[list[str] | None, typer.Option(help="Only events of this surface.")] = None,
    archive_dir: Root = None,
    from_files: Annotated[
        list[Path] | None,
        typer.Option(help="The event archive's folder, .avro or .parquet files. Default: Kafka."),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="A data set as `replay` knows it; --from-files says where it is.")
    ] = "",
    partition_count: Annotated[
        int | None, typer.Option(min=1, help="Partitions that files stand for. Default: Kafka's.")
    ] = None,
    rows: Annotated[
        bool, typer.Option("--rows", help="Fold rows and partials into the store, no examples.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --rows: only compare; exit 3 if they differ.")
    ] = False,
    rows_dir: Annotated[
        Path | None, typer.Option(help="With --rows: Parquet files here, not the store.")
    ] = None,
    runner: Annotated[
        str, typer.Option(help="Beam runner: fnapi, prism, flink ... Default: this process.")
    ] = "",
    beam_option: Annotated[
        list[str] | None, typer.Option(help="For the runner, e.g. --direct_num_workers=2.")
    ] = None,
    as_json: Json = False,
) -> None:
    """
    Make examples of the user-events that the log holds, each as it was seen then; or fold rows.

    Examples of an earlier backfill are replaced. Rows go on from the store's position.

    Example: `millstream features backfill --interactions`, or
    `millstream features backfill --rows --from-files out/stack/archive --runner fnapi`
    """
    from features.backfill import BackfillPolicy
    from features.backfill_job import BackfillParts, backfill_log
    from features.catalog import CATALOG
    from ingest.kafka import KafkaLog
    from ingest.topics import Topics
    from schemas.registry import RemoteRegistry

    settings: Settings = context.obj
    policy = BackfillPolicy.of_interactions() if interactions else BackfillPolicy()
    window_ms = _join_policy(settings.profile, window_s, None, None).window_ms
    policy = replace(policy, window_ms=window_ms, surfaces=tuple(surface or ()))
    if rows or verify or rows_dir or from_files or dataset or runner:
        from features import backfill_cli

        options = backfill_cli.BatchOptions(
            files=tuple(from_files or ()),
            dataset=dataset,
            partitions=partition_count,
            rows=rows,
            verify=verify,
            rows_dir=rows_dir,
            runner=runner,
            beam_options=tuple(beam_option or ()),
        )
        root = archive_dir or settings.archive_dir
        backfill_cli.backfill(settings, options, policy, root, as_json=as_json)
        return
    log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    topics = Topics(settings.topic_prefix)
    records = sum(end - start for start, end in log.bounds(topics.user_events).values())
    with closing(_source(settings)) as source, progress("events", records) as tell:
        parts = BackfillParts(
            log=log,
            source=source,
            registry=RemoteRegistry(settings.registry_url, settings.timeout_s),
            topics=topics,
            features=CATALOG,
            root=archive_dir or settings.archive_dir,
        )
        manifest = backfill_log(parts, policy, lambda done, of: tell(done))
    size = sum(f.size_bytes for f in manifest.files)
    if as_json:
        found = {"examples": manifest.records, "files": len(manifest.files), "bytes": size}
        print_json(found | {"fingerprint": manifest.fingerprint, "position": manifest.position})
    else:
        out.print(f"{manifest.records} examples in {len(manifest.files)} files, {size} bytes")


def _join_policy(
    profile: str, window_s: float | None, lateness_s: float | None, idle_close_s: float | None
) -> JoinPolicy:
    """The profile's policy, with what was given instead."""
    from features.join import JOIN_POLICIES

    if profile not in JOIN_POLICIES:
        raise Misconfigured(f"no profile {profile!r}; there are {', '.join(JOIN_POLICIES)}")
    policy = JOIN_POLICIES[profile]
    return replace(
        policy,
        window_ms=policy.window_ms if window_s is None else round(1000 * window_s),
        lateness_ms=policy.lateness_ms if lateness_s is None else round(1000 * lateness_s),
        idle_close_s=policy.idle_close_s if idle_close_s is None else idle_close_s,
    )


def _source(settings: Settings) -> KafkaSource:
    from ingest.kafka import KafkaSource

    return KafkaSource(settings.bootstrap_servers, timeout_s=settings.timeout_s)


def _numbers(text: str) -> list[int] | None:
    """Partitions as given; None: all."""
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError as error:
        raise Misconfigured(f"--partitions {text!r}: numbers with commas between") from error


def _run(run: Callable[[threading.Event], None], what: str) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    err.print(f"ready: {what}", highlight=False)
    run(stop)
