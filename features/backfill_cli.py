"""`millstream features backfill` from files, into rows, or by a Beam runner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from features.backfill import BackfillPolicy
from features.batch_examples import ExampleParts
from features.batch_fold import Compare, IntoFiles, IntoStore, Target
from features.batch_job import (
    FromSettings,
    Input,
    Work,
    fold_rows,
    log_range,
    scratch,
    write_examples,
)
from features.batch_reports import Reports
from features.catalog import CATALOG
from features.disk import Place
from features.event_files import archived, container_files
from features.event_tables import DatasetTable, ParquetTable, Tables
from ingest.kafka import KafkaLog
from ingest.settings import Settings
from ingest.terminal import out, print_json, print_table, progress
from ingest.topics import Topics
from schemas.errors import Misconfigured, Refused

_COUNTS: Final = ("records", "folded", "duplicates", "late", "erased", "dead", "misplaced")
_VERDICTS: Final = ("equal", "different", "missing", "extra")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """What the command line chooses."""

    files: tuple[Path, ...] = ()  # the event archive's folder, .avro or .parquet files
    dataset: str = ""  # one of ingest.datasets; the first of `files` is where it is
    partitions: int | None = None  # of the topic that tables stand for; default: Kafka's
    rows: bool = False  # rows and partials instead of examples
    verify: bool = False  # only compare them with the store's
    rows_dir: Path | None = None  # into files instead of the store
    runner: str = ""
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows and (self.verify or self.rows_dir):
            raise Misconfigured("--verify and --rows-dir are about rows: give --rows with them")
        if self.verify and self.rows_dir:
            raise Misconfigured("--verify writes nothing: leave --rows-dir out")


def backfill(
    settings: Settings, options: BatchOptions, policy: BackfillPolicy, root: Place, *, as_json: bool
) -> None:
    """
    Fold rows and partials, or write examples, of the input that the options name.

    Args:
        root: the archive that examples go to; what the workers leave lies there meanwhile.

    Raises:
        Refused: with `verify`, the store's rows differ.
    """
    given = chosen_input(settings, options)
    if options.rows:
        _rows(given, settings, options, root, as_json=as_json)
    else:
        _examples(given, settings, options, policy, root, as_json=as_json)


def _rows(
    given: Input, settings: Settings, options: BatchOptions, root: Place, *, as_json: bool
) -> None:
    target = _target(settings, options)
    with _working(given, _shared(root, settings), options) as (folder, work):
        found = fold_rows(given, target, work, Reports(folder=folder))
    if as_json:
        print_json({"partitions": found})
    elif options.verify:
        print_table(("partition", "up to", "kind", *_VERDICTS), _compared(found))
    else:
        print_table(
            ("partition", "up to", *_COUNTS),
            ([str(v) for v in (r["partition"], r["offset"], *_counted(r))] for r in found),
        )
    if any(_differs(report) for report in found):
        raise Refused("stored rows differ from what was folded")


def _examples(
    given: Input,
    settings: Settings,
    options: BatchOptions,
    policy: BackfillPolicy,
    root: Place,
    *,
    as_json: bool,
) -> None:
    opening = FromSettings(settings=settings)
    with _working(given, _shared(root, settings), options) as (folder, work):
        parts = ExampleParts(
            features=CATALOG,
            opening=opening,
            catalogue=_dataset(settings, options).items if options.dataset else opening.catalogue,
            policy=policy,
            reports=Reports(folder=folder),
            scratch=folder,
        )
        manifest = write_examples(given, parts, work, root)
    size = sum(f.size_bytes for f in manifest.files)
    if as_json:
        found = {"examples": manifest.records, "files": len(manifest.files), "bytes": size}
        print_json(found | {"fingerprint": manifest.fingerprint, "position": manifest.position})
    else:
        out.print(f"{manifest.records} examples in {len(manifest.files)} files, {size} bytes")


def chosen_input(settings: Settings, options: BatchOptions) -> Input:
    """
    What the options name: a data set, an archive, container files, tables, or the log.

    Raises:
        Misconfigured: the files are of different kinds, or of none.
    """
    topic = Topics(settings.topic_prefix).user_events
    if options.dataset:
        table = _dataset(settings, options)
        return Tables(tables=(table,), partitions=_partitions(settings, options))
    if not options.files:
        return log_range(settings)
    kinds = {"folder" if path.is_dir() else path.suffix for path in options.files}
    if kinds == {"folder"} and len(options.files) == 1:
        return archived(options.files[0], topic)
    if kinds == {".avro"}:
        return container_files(options.files, options.partitions)
    if kinds == {".parquet"}:
        tables = (ParquetTable(path=path, number=n) for n, path in enumerate(options.files))
        return Tables(tables=tuple(tables), partitions=_partitions(settings, options))
    raise Misconfigured(
        f"--from-files takes the folder of one event archive, .avro files or .parquet files, "
        f"not {', '.join(map(str, options.files))}"
    )


def _dataset(settings: Settings, options: BatchOptions) -> DatasetTable:
    path = options.files[0] if options.files else None
    return DatasetTable(name=options.dataset, path=path, data_dir=settings.data_dir)


def _partitions(settings: Settings, options: BatchOptions) -> int:
    if options.partitions is not None:
        return options.partitions
    log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    return log.partitions(Topics(settings.topic_prefix).user_events)


def _target(settings: Settings, options: BatchOptions) -> Target:
    opening = FromSettings(settings=settings)
    if options.verify:
        return Compare(features=CATALOG, opening=opening, timeout_s=settings.timeout_s)
    if options.rows_dir is not None:
        return IntoFiles(features=CATALOG, opening=opening, folder=options.rows_dir)
    return IntoStore(features=CATALOG, opening=opening)


def _shared(root: Place, settings: Settings) -> Path:
    """Where the workers leave what they found: beside a local archive."""
    return root if isinstance(root, Path) else settings.stack_dir


@contextmanager
def _working(given: Input, shared: Path, options: BatchOptions) -> Iterator[tuple[Path, Work]]:
    """A folder for what the workers leave, and who does the work, with a progress bar."""
    with scratch(shared) as folder, progress("events", given.origin.records) as tell:
        yield folder, Work(runner=options.runner, options=options.beam_options, tell=tell)


def _counted(report: dict[str, Any]) -> Sequence[int]:
    return [report["counts"].get(name, 0) for name in _COUNTS]


def _compared(found: list[dict[str, Any]]) -> Iterator[list[str]]:
    for report in found:
        for kind in ("rows", "partials"):
            numbers = [str(report["compared"][kind][verdict]) for verdict in _VERDICTS]
            yield [str(report["partition"]), str(report["offset"]), kind, *numbers]


def _differs(report: dict[str, Any]) -> bool:
    compared = report["compared"]
    return compared is not None and any(
        compared[kind][verdict] for kind in ("rows", "partials") for verdict in _VERDICTS[1:]
    )
