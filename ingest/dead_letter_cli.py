"""The commands `millstream dead-letters list | show`."""

# What is heavy is imported inside commands, so that `--help` is quick.
# ruff: noqa: PLC0415

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingest.terminal import Json, err, print_json, print_table

if TYPE_CHECKING:
    from ingest.settings import Settings
    from schemas.events import DeadLetter

letters_app = typer.Typer(no_args_is_help=True, help="Records that were refused, and why.")


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
        print_json([_letter_json(one) for one in found])
        return
    if not found:
        err.print("no dead letters")
        return
    print_table(
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
                print_json(_letter_json(one))
                return
    err.print(f"no dead letter of {origin}", markup=False)
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
