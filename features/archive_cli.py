"""Commands: `millstream features join | archive | backfill | compact | verify-archive`."""

# What is heavy is imported inside commands, so that `--help` is quick.
# ruff: noqa: PLC0415, PLR0913, PLR0917 - a command has as many parameters as options

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.clock import SystemClock
from ingest.settings import Settings
from ingest.terminal import Json, err, out, print_json, progress
from schemas.errors import Misconfigured

if TYPE_CHECKING:
    from features.compaction import Tidied
    from features.disk import Place
    from features.join import JoinPolicy
    from ingest.kafka import KafkaSource

Root = Annotated[
    str | None, typer.Option("--archive-dir", help="Folder or URL. Default: from the settings.")
]
Partitions = Annotated[
    str, typer.Option(help="Only these partitions, e.g. 0,2. Others run elsewhere.")
]
RotateS = Annotated[float, typer.Option(min=0.1, help="A file counts after so many seconds.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the group `features`."""
    app.command("join")(join)
    app.command("archive")(archive)
    app.command("backfill")(backfill)
    app.command("compact")(compact)
    app.command("verify-archive")(verify_archive)


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
    from features.disk import place
    from features.join_worker import JoinParts, JoinWorker, Rotation, WorkPolicy
    from ingest.kafka import KafkaLog
    from ingest.prometheus import PrometheusMetrics
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
            root=place(archive_dir or settings.archive_dir),
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
    from features.disk import place
    from features.event_archive import ArchiveParts, ArchivePolicy, EventArchiver
    from features.join_worker import Rotation
    from ingest.kafka import KafkaLog
    from ingest.prometheus import PrometheusMetrics
    from ingest.topics import Topics

    settings: Settings = context.obj
    with closing(_source(settings)) as source:
        parts = ArchiveParts(
            log=KafkaLog(settings.bootstrap_servers, settings.timeout_s),
            source=source,
            topics=Topics(settings.topic_prefix),
            root=place(archive_dir or settings.archive_dir),
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
    Make examples of the user-events that log and event archive hold, each as it was seen then; or
    fold rows.

    Examples of an earlier backfill are replaced. Rows go on from the store's position.

    Example: `millstream features backfill --interactions`, or
    `millstream features backfill --rows --from-files out/stack/archive --runner fnapi`
    """
    from features.backfill import BackfillPolicy
    from features.backfill_job import BackfillParts, backfill_log
    from features.catalog import CATALOG
    from features.disk import place
    from features.past_log import PastLog, PastSource
    from ingest.kafka import KafkaLog
    from ingest.topics import Topics
    from schemas.registry import RemoteRegistry

    settings: Settings = context.obj
    policy = BackfillPolicy.of_interactions() if interactions else BackfillPolicy()
    window_ms = _join_policy(settings.profile, window_s, None, None).window_ms
    policy = replace(policy, window_ms=window_ms, surfaces=tuple(surface or ()))
    root = place(archive_dir or settings.archive_dir)
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
        backfill_cli.backfill(settings, options, policy, root, as_json=as_json)
        return
    topics = Topics(settings.topic_prefix)
    log = PastLog(KafkaLog(settings.bootstrap_servers, settings.timeout_s), root, topics)
    records = sum(end - start for start, end in log.bounds(topics.user_events).values())
    with (
        closing(PastSource(_source(settings), log)) as source,
        progress("events", records) as tell,
    ):
        parts = BackfillParts(
            log=log,
            source=source,
            registry=RemoteRegistry(settings.registry_url, settings.timeout_s),
            topics=topics,
            features=CATALOG,
            root=root,
        )
        manifest = backfill_log(parts, policy, lambda done, of: tell(done))
    size = sum(f.size_bytes for f in manifest.files)
    if as_json:
        found = {"examples": manifest.records, "files": len(manifest.files), "bytes": size}
        print_json(found | {"fingerprint": manifest.fingerprint, "position": manifest.position})
    else:
        out.print(f"{manifest.records} examples in {len(manifest.files)} files, {size} bytes")


def compact(
    context: typer.Context,
    retain_days: Annotated[
        int | None, typer.Option(min=0, help="Drop files older than so many days of event time.")
    ] = None,
    min_files: Annotated[
        int, typer.Option(min=2, help="Merge no fewer small neighbours than these.")
    ] = 8,
    grace_s: Annotated[
        float, typer.Option(min=0, help="What is replaced stays so long, for those that read it.")
    ] = 6 * 3_600.0,
    every_s: Annotated[
        float, typer.Option(min=0, help="Again after so many seconds, until SIGTERM. 0: once.")
    ] = 0.0,
    archive_dir: Root = None,
    as_json: Json = False,
) -> None:
    """
    Merge the archives' small files, drop old ones, remove what was replaced; workers may go on.

    Example: `millstream features compact --retain-days 90 --every-s 3600`
    """
    from features.compaction import Tidied, TidyPolicy, tidy
    from features.disk import place

    settings: Settings = context.obj
    root, clock = place(archive_dir or settings.archive_dir), SystemClock()
    policy = TidyPolicy(min_files=min_files, grace_s=grace_s, retain_days=retain_days)

    def passes(stop: threading.Event) -> None:
        while True:
            found: dict[str, Tidied] = {}
            for kind, partition in _partitions(root):
                done = tidy(root, kind, partition, policy, clock)
                found[kind] = found.get(kind, Tidied()) + done
            _tell(found, as_json)
            if not every_s or stop.wait(every_s):
                return

    _run(passes, f"compact {root}")


def verify_archive(context: typer.Context, archive_dir: Root = None, as_json: Json = False) -> None:
    """
    Check every file and manifest of the archives by its checksum. Exit code 1 if one is damaged.

    Example: `millstream features verify-archive`
    """
    from features.archive import verify
    from features.disk import place

    settings: Settings = context.obj
    root = place(archive_dir or settings.archive_dir)
    kinds = sorted({kind for kind, _ in _partitions(root)})
    problems = [problem for kind in kinds for problem in verify(root, kind)]
    if as_json:
        print_json({"kinds": kinds, "problems": problems})
    else:
        for problem in problems:
            out.print(problem, highlight=False, soft_wrap=True)
        out.print(f"{len(problems)} problems in {', '.join(kinds) or 'no archive'}")
    if problems:
        raise typer.Exit(1)


def _partitions(root: Place) -> list[tuple[str, int]]:
    """Every partition of every kind of archive that is there."""
    from features import backfill, event_archive, join_worker
    from features.archive import partitions

    kinds = (join_worker.KIND, backfill.KIND, *event_archive.KINDS)
    return [(kind, partition) for kind in kinds for partition in partitions(root, kind)]


def _tell(found: Mapping[str, Tidied], as_json: bool) -> None:
    if as_json:
        print_json({kind: asdict(done) for kind, done in found.items()})
        return
    for kind, done in found.items():
        out.print(
            f"{kind}: {done.merged} files became {done.into}, {done.dropped} were too old, "
            f"{done.removed} replaced earlier are removed"
            + (" (a partition changed hands: left for the next pass)" if done.disturbed else "")
        )


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
    from ingest.kafka import GATHERED, KafkaSource

    return KafkaSource(settings.bootstrap_servers, timeout_s=settings.timeout_s, options=GATHERED)


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
