"""The command `millstream topics repartition`."""

# What is heavy is imported inside commands, so that `--help` is quick.
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.clock import SystemClock
from ingest.settings import Settings
from ingest.terminal import Json, err, out, print_json, print_table
from schemas.errors import Misconfigured

if TYPE_CHECKING:
    from ingest.repartition import CopiedTopic, FoldedRows, Repartition

MakeRows = Callable[[Settings], "FoldedRows"]
_rows: list[MakeRows] = []


def rebuild_rows_with(make: MakeRows) -> None:
    """How a repartition sees and rebuilds the rows: a package above ingest says it."""
    _rows[:] = [make]


def repartition(
    context: typer.Context,
    to: Annotated[int, typer.Option(min=1, help="Partitions of every keyed topic.")],
    switch: Annotated[
        bool, typer.Option("--switch", help="Copy the rest, rebuild the rows, and switch.")
    ] = False,
    as_json: Json = False,
) -> None:
    """
    Copy the topics of this prefix into those of the next one, with another number of partitions.

    Everything may go on meanwhile; run it again to copy what has come. A run that was killed goes
    on where it stood. Then stop clients, replays and `features run`, let `serve`, `features join`
    and `features archive` finish and stop them, and give `--switch`: it copies the rest, counts,
    rebuilds the rows, and from then on whatever starts with the old prefix is told the new one.

    Example: `millstream topics repartition --to 8`
    """
    if not _rows:
        raise Misconfigured("topics repartition: nothing here knows how to rebuild rows")
    settings: Settings = context.obj
    job = _opened(settings, to)
    copied = 0
    with err.status("copying") as spinner:

        def tell(records: int) -> None:
            nonlocal copied
            copied += records
            spinner.update(f"{copied} records copied")

        found = (job.switch if switch else job.copy)(_rows[0](settings), tell)
    if as_json:
        topics = [asdict(topic) for topic in found]
        print_json({"prefix": job.new.prefix, "switched": switch, "topics": topics})
    else:
        _print(job, found, to, switched=switch)


def _opened(settings: Settings, to: int) -> Repartition:
    from ingest.kafka import (
        KafkaAdmin,
        KafkaGroups,
        KafkaLog,
        KafkaSource,
        KafkaTransactionalProducer,
    )
    from ingest.repartition import HEADER_BYTES, Repartition
    from ingest.topic_copy import CopyParts
    from ingest.topics import DEAD_LETTER_BYTES

    servers, timeout_s = settings.bootstrap_servers, settings.timeout_s
    parts = CopyParts(
        log=KafkaLog(servers, timeout_s),
        admin=KafkaAdmin(servers, timeout_s),
        groups=KafkaGroups(servers, timeout_s),
        open_source=lambda: KafkaSource(servers, timeout_s=timeout_s),
        open_producer=lambda name: KafkaTransactionalProducer(
            servers, name, timeout_s=timeout_s, max_record_bytes=DEAD_LETTER_BYTES + HEADER_BYTES
        ),
        clock=SystemClock(),
        timeout_s=timeout_s,
    )
    return Repartition(parts, settings.topic_prefix, to)


def _print(job: Repartition, found: list[CopiedTopic], to: int, *, switched: bool) -> None:
    print_table(
        ("topic", "copied", "in all", "behind"),
        ([t.name, str(t.records), str(t.total), str(t.behind)] for t in found),
    )
    new = job.new.prefix
    if switched:
        text = (
            f"switched. Set MILLSTREAM_TOPIC_PREFIX={new} (or give --prefix {new}), let clients "
            f"use {job.new.user_events}, {job.new.requests} and {job.new.recommendations}, archive "
            "to another folder (MILLSTREAM_ARCHIVE_DIR), and start everything again"
        )
    else:
        text = (
            "To switch: stop clients, replays and `millstream features run`, let serve, join and "
            f"archive finish, stop them, and run: millstream topics repartition --to {to} --switch"
        )
    out.print(text, markup=False, highlight=False)
