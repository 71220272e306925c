"""Command: `millstream audit`."""

# What is heavy is imported inside the command, so that `--help` is quick.
# ruff: noqa: PLC0415, PLR0913, PLR0917 - a command has as many parameters as options

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.clock import SystemClock
from ingest.settings import Settings
from ingest.terminal import Json, err, out, print_json, print_table
from schemas.errors import Misconfigured, Refused

if TYPE_CHECKING:
    from features.audit_answers import UserSample
    from features.audit_record import AuditRecord
    from features.skew import AuditReport, SkewPolicy
    from ingest.prometheus import PrometheusMetrics


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit")(audit)


def audit(
    context: typer.Context,
    users_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the users, chosen by hash.")
    ] = 0.01,
    users: Annotated[
        int | None, typer.Option(min=1, help="So many users, instead of a share.")
    ] = None,
    since: Annotated[
        str, typer.Option(help="Only answers since then, e.g. 2026-01-31 or 2026-01-31T12:00.")
    ] = "",
    least: Annotated[
        int | None, typer.Option(min=1, help="Answers that are enough. Default: the profile's.")
    ] = None,
    every_s: Annotated[
        float, typer.Option(min=0, help="Audit again and again, so long apart. 0: once.")
    ] = 0,
    metrics_port: Annotated[int | None, typer.Option(help="Serve Prometheus metrics here.")] = None,
    as_json: Json = False,
) -> None:
    """
    Compare features as served with what the log gives, for some users. Exit code 3 if they differ.

    The verdict is kept for the gate; 1 is the exit code when too few answers could be compared.

    Example: `millstream audit --users-share 0.01`
    """
    from features.audit_answers import UserSample

    settings: Settings = context.obj
    policy = _policy(settings.profile, least)
    since_ms = _ms(since)
    if users is None and not users_share:
        raise Misconfigured("--users-share 0 chooses nobody")

    def once(metrics: PrometheusMetrics) -> AuditRecord:
        sample = UserSample(users=users) if users is not None else UserSample(share=users_share)
        report, record = _audited(settings, sample, policy, since_ms, metrics)
        _print(report, record, as_json)
        return record

    record = _again_and_again(once, every_s, metrics_port)
    if record.outcome == "SKEWED":
        raise Refused("features as served are not those that the log gives")
    if record.outcome == "INSUFFICIENT":
        raise typer.Exit(1)


def _again_and_again(
    once: Callable[[PrometheusMetrics], AuditRecord], every_s: float, metrics_port: int | None
) -> AuditRecord:
    """One audit, or one after the other until SIGTERM; the last one's record."""
    from contextlib import nullcontext

    from ingest.prometheus import PrometheusMetrics

    metrics, stop = PrometheusMetrics(), threading.Event()
    if every_s:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    with nullcontext() if metrics_port is None else metrics.served(metrics_port):
        record = once(metrics)
        while every_s and not stop.wait(every_s):
            record = once(metrics)
    return record


def _audited(
    settings: Settings,
    sample: UserSample,
    policy: SkewPolicy,
    since_ms: int,
    metrics: PrometheusMetrics,
) -> tuple[AuditReport, AuditRecord]:
    from features import audit_record
    from features.audit import AuditParts
    from features.audit import audit as run
    from features.catalog import CATALOG
    from features.job import rebuild_parts
    from features.skew import judge
    from ingest.kafka import KafkaLog, KafkaSource
    from ingest.topics import Topics
    from schemas.registry import RemoteRegistry

    servers, timeout_s = settings.bootstrap_servers, settings.timeout_s
    with (
        closing(KafkaSource(servers, timeout_s=timeout_s)) as source,
        err.status("starting") as spinner,
    ):
        parts = AuditParts(
            log=KafkaLog(servers, timeout_s),
            source=source,
            registry=RemoteRegistry(settings.registry_url, timeout_s),
            topics=Topics(settings.topic_prefix),
            features=CATALOG,
            refold=rebuild_parts(settings),
            metrics=metrics,
            tell=spinner.update,
        )
        report = run(parts, sample, policy, since_ms=since_ms)
    record = audit_record.recorded(report, judge(report, policy), SystemClock().now_ms())
    audit_record.save(settings.models_dir, record)
    return report, record


def _policy(profile: str, least: int | None) -> SkewPolicy:
    from features.skew import SKEW_POLICIES

    if profile not in SKEW_POLICIES:
        raise Misconfigured(f"no profile {profile!r}; there are {', '.join(SKEW_POLICIES)}")
    policy = SKEW_POLICIES[profile]
    if least is None:
        return policy
    return replace(policy, least_answers=least, most_answers=max(least, policy.most_answers))


def _ms(since: str) -> int:
    """A date or time in UTC, unless it names another zone, in milliseconds."""
    if not since:
        return 0
    try:
        at = datetime.fromisoformat(since)
    except ValueError as error:
        raise Misconfigured(f"--since {since!r}: a date or time, as in 2026-01-31T12:00") from error
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return round(at.timestamp() * 1000)


def _print(report: AuditReport, record: AuditRecord, as_json: bool) -> None:
    if as_json:
        print_json({"verdict": asdict(record), **asdict(report)})
        return
    out.print(
        f"{report.answers} answers with {report.entries} items to {report.users} users compared",
        highlight=False,
    )
    print_table(
        ("feature", "equal", "within", "different", "missing", "extra", "SMAPE"),
        (
            (
                f.name,
                *map(str, (f.equal, f.within, f.different, f.missing, f.extra)),
                "" if f.smape is None else f"{f.smape:.4f}",
            )
            for f in report.features
        ),
    )
    for why, count in sorted(report.skipped.items()):
        out.print(f"not compared, {why}: {count}", highlight=False)
    if report.left_out:
        out.print(f"older answers left out: {report.left_out}", highlight=False)
    for name in report.named:
        out.print(f"wrong: {name}", highlight=False, markup=False)
    color = {"PASS": "green", "SKEWED": "red", "INSUFFICIENT": "yellow"}[record.outcome]
    out.print(f"[{color}]{record.outcome}[/]", highlight=False)
    for reason in record.reasons:
        out.print(f"  {reason}", highlight=False, markup=False)
