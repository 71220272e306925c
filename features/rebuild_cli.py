"""Command: `millstream features rebuild`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ingest.terminal import Json, out, print_json, print_table, progress
from schemas.errors import Misconfigured, Refused

if TYPE_CHECKING:
    from features.rebuild import Compared, RebuildReport, UserReport
    from features.refold import RebuildParts

T = TypeVar("T")
SetName = Annotated[
    str | None,
    typer.Option("--set", help="Another feature set of the store: how its fingerprint begins."),
]

WORDS = {
    "equal": "is what the log gives",
    "different": "is another than the log gives",
    "missing": "is missing",
    "extra": "is not known to the log",
}


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("rebuild")(rebuild)


def rebuild(
    context: typer.Context,
    partition: Annotated[int | None, typer.Option(help="Only this partition.")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user's row.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only compare; change nothing.")] = False,
    feature_set: SetName = None,
    as_json: Json = False,
) -> None:
    """
    Fold the log again and put the rows right, byte for byte; `--verify` exits 3 if they differ.

    A feature job that runs meanwhile is fenced by a rebuild (not by `--verify`): restart it.

    Example: `millstream features rebuild --verify`
    """
    from features.feature_sets import chosen_set  # noqa: PLC0415 - `--help` stays quick
    from features.job import rebuild_parts  # noqa: PLC0415

    if user is not None and partition is not None:
        raise Misconfigured("--user and --partition: a user has one partition; give one of them")
    parts = rebuild_parts(context.obj, chosen_set(context.obj, feature_set))
    if user is not None:
        ok = _one_user(parts, user, verify=verify, as_json=as_json)
    else:
        ok = _partitions(parts, partition, verify=verify, as_json=as_json)
    if verify and not ok:
        raise Refused(
            "stored rows differ from what the log gives; run the same command without --verify"
        )


def _one_user(parts: RebuildParts, user: str, *, verify: bool, as_json: bool) -> bool:
    from features import rebuild as rebuilding  # noqa: PLC0415

    step = rebuilding.verify_user if verify else rebuilding.rebuild_user
    home = rebuilding.home_of(parts, user)
    report: UserReport = _shown(parts, home, lambda telling, _: step(telling, user))
    replaced = not (verify or report.ok)
    if as_json:
        print_json({"ok": report.ok, "replaced": replaced, **asdict(report)})
    else:
        end = ": replaced" if replaced else ""
        out.print(
            f"user {user}, partition {report.partition}, up to offset {report.offset}: "
            f"the row {WORDS[report.found]}{end}",
            highlight=False,
        )
    return report.ok


def _partitions(parts: RebuildParts, partition: int | None, *, verify: bool, as_json: bool) -> bool:
    from features import rebuild as rebuilding  # noqa: PLC0415

    count = parts.log.partitions(parts.topic)
    if partition is not None and not 0 <= partition < count:
        raise Misconfigured(f"{parts.topic} has partitions 0 to {count - 1}, not {partition}")
    step = rebuilding.verify_partition if verify else rebuilding.rebuild_partition
    chosen = range(count) if partition is None else [partition]
    report = rebuilding.RebuildReport(
        partitions=tuple(_shown(parts, number, step) for number in chosen)
    )
    replaced = not (verify or report.ok)
    if as_json:
        found = [asdict(p) for p in report.partitions]
        print_json({"ok": report.ok, "replaced": replaced, "partitions": found})
    else:
        _print_report(report, replaced)
    return report.ok


def _shown(parts: RebuildParts, partition: int, work: Callable[[RebuildParts, int], T]) -> T:
    """The work on one partition, with a bar that says how far its fold has come."""
    _, end = parts.start(partition)
    with progress(f"offsets of partition {partition} folded", end) as tell:
        return work(replace(parts, tell=tell), partition)


def _print_report(report: RebuildReport, replaced: bool) -> None:
    print_table(
        ("partition", "up to", "kind", "equal", "different", "missing", "extra"),
        (
            [str(v) for v in (p.partition, p.offset, kind, *_numbers(c))]
            for p in report.partitions
            for kind, c in (("rows", p.rows), ("partials", p.partials))
        ),
    )
    for p in report.partitions:
        for name in p.named:
            out.print(f"partition {p.partition}: {name}", highlight=False)
    if replaced:
        out.print("what differed was replaced by what the log gives", highlight=False)


def _numbers(compared: Compared) -> tuple[int, int, int, int]:
    return compared.equal, compared.different, compared.missing, compared.extra
