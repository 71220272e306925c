"""
Backfill put together: an input, what becomes of it, and who does the work.

The work is done in this process, partition by partition, or by a Beam runner: the steps are the
same ones.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from features import archive
from features.archive import Manifest
from features.backfill import KIND, SUFFIX
from features.backfill_job import BackfillParts, read_catalogue, read_to_ends
from features.batch_examples import (
    EXAMPLES,
    HOURS,
    ExampleParts,
    ExamplesStep,
    HoursStep,
    merge,
)
from features.batch_fold import FOLD, FoldStep, Target
from features.batch_reports import Reports
from features.catalog import CATALOG
from features.disk import Place, place
from features.event_tables import Tables, table_recordings
from features.fit import EventReader
from features.job import open_store
from features.recording import Origin, Recording
from features.redis_store import RedisStore
from features.rejoin import REJOIN, RejoinStep
from ingest.kafka import KafkaLog, KafkaSource
from ingest.log import RecordBatch, TopicPartition
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.columns import ColumnReader
from schemas.events import Item, UserEvent
from schemas.registry import Registry, RemoteRegistry

IN_PROCESS: Final = ""

Input = Recording | Tables
Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FromSettings:
    """The registry and the store that the settings name. Implements Opening."""

    settings: Settings

    def registry(self) -> Registry:
        return RemoteRegistry(self.settings.registry_url, self.settings.timeout_s)

    def store(self) -> RedisStore:
        return open_store(self.settings)

    def catalogue(self) -> list[Item]:
        """The items of item-updates, as they are now."""
        settings = self.settings
        with closing(_source(settings)) as source:
            parts = BackfillParts(
                log=KafkaLog(settings.bootstrap_servers, settings.timeout_s),
                source=source,
                registry=self.registry(),
                topics=Topics(settings.topic_prefix),
                features=CATALOG,
                root=place(settings.archive_dir),
            )
            return read_catalogue(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRange:
    """A stretch of Kafka's user-events. Implements Recording."""

    origin: Origin
    settings: Settings

    def batches(self, partition: int, offset: int, max_records: int) -> Iterator[RecordBatch]:
        start = {TopicPartition(self.origin.topic, partition): offset}
        end = {partition: self.origin.bounds[partition][1]}
        with closing(_source(self.settings)) as source:
            yield from read_to_ends(source, start, end, max_records)

    def reader(self, registry: Registry) -> EventReader:
        return ColumnReader(registry, UserEvent)


def log_range(settings: Settings, until: Mapping[int, int] | None = None) -> LogRange:
    """All user-events that the log holds now, or before the offsets `until`."""
    log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    topic = Topics(settings.topic_prefix).user_events
    ends = until or {}
    return LogRange(
        origin=Origin(
            topic=topic,
            cluster_id=log.cluster_id(),
            topic_id=log.topic_id(topic),
            partitions=log.partitions(topic),
            bounds={p: (a, min(b, ends.get(p, b))) for p, (a, b) in log.bounds(topic).items()},
        ),
        settings=settings,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Who does it: a Beam runner by name, or this process without Beam."""

    runner: str = IN_PROCESS
    options: tuple[str, ...] = ()  # of the runner
    tell: Tell = field(default=lambda records: None)  # records done so far


def fold_rows(given: Input, target: Target, work: Work, reports: Reports) -> list[dict[str, Any]]:
    """
    Fold every partition of an input into the target; the partitions' reports.

    Raises:
        MillstreamError: the first error that a partition met; the others may be done.
    """
    reports.begin()
    step = FoldStep(target=target, reports=reports)
    with reports.watched(FOLD, work.tell):
        if work.runner == IN_PROCESS:
            for partition, recording in _recordings(given):
                list(step(recording, partition))
        else:
            _beam_each(given, FOLD, step, work, reports)
    return reports.results()


def write_examples(given: Input, parts: ExampleParts, work: Work, root: Place) -> Manifest:
    """
    Write the examples of an input into the archive, as `features.backfill` does.

    Raises:
        MillstreamError: the first error that a partition met; what was there before stands.
    """
    origin = given.origin
    first = Manifest(
        kind=KIND,
        partition=0,  # one chain for all partitions: they are put in one order
        sequence=0,
        generation=0,
        position={},
        log={"cluster": origin.cluster_id, "user-events": origin.topic_id},
        fingerprint=parts.features.fingerprint,
    )
    parts.reports.begin()
    with closing(archive.claim(root, first, SUFFIX)) as writer:
        with parts.reports.watched(EXAMPLES, work.tell):
            if work.runner == IN_PROCESS:
                _local_examples(given, parts)
            else:
                _beam_examples(given, parts, work)
        return merge(parts, writer)


def rejoin_lists(step: RejoinStep, work: Work) -> list[dict[str, Any]]:
    """
    Join every partition's recorded lists again; the partitions' reports.

    Raises:
        MillstreamError: the first error that a partition met; the others may be done.
    """
    lists, reports = step.parts.lists, step.reports
    reports.begin()
    with reports.watched(REJOIN, work.tell):
        if work.runner == IN_PROCESS:
            for partition, recording in _recordings(lists):
                list(step(recording, partition))
        else:
            _beam_each(lists, REJOIN, step, work, reports)
    return reports.results()


@contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """A folder that all workers reach, gone afterwards."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".backfill-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _local_examples(given: Input, parts: ExampleParts) -> None:
    hours, examples = HoursStep(parts), ExamplesStep(parts)
    recordings = dict(_recordings(given))
    found = [h for p, recording in recordings.items() for h in hours(recording, p)]
    for partition, recording in recordings.items():
        list(examples(recording, partition, found))


def _recordings(given: Input) -> Iterator[tuple[int, Recording]]:
    if isinstance(given, Tables):
        yield from table_recordings(given)
    else:
        for partition in sorted(given.origin.bounds):
            yield partition, given


def _beam_each(
    given: Input, name: str, step: FoldStep | RejoinStep, work: Work, reports: Reports
) -> None:
    batch_pipeline = _beam()

    def build(pipeline: Any) -> None:
        batch_pipeline.parts_of(pipeline, given).then(name, step)

    batch_pipeline.run(build, reports, work.runner, work.options)


def _beam_examples(given: Input, parts: ExampleParts, work: Work) -> None:
    batch_pipeline = _beam()

    def build(pipeline: Any) -> None:
        shared = batch_pipeline.parts_of(pipeline, given)
        hours = shared.then(HOURS, HoursStep(parts))
        shared.then(EXAMPLES, ExamplesStep(parts), hours)

    batch_pipeline.run(build, parts.reports, work.runner, work.options)


def _beam() -> ModuleType:
    """The pipelines; Beam takes seconds to load."""
    # It warns of Google's clients, which are not wanted here, each time it is loaded.
    logging.getLogger().addFilter(lambda record: "apitools" not in record.getMessage())
    from features import batch_pipeline  # noqa: PLC0415

    return batch_pipeline


def _source(settings: Settings) -> KafkaSource:
    return KafkaSource(settings.bootstrap_servers, timeout_s=settings.timeout_s)
