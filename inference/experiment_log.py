"""An experiment's lists and choices, read from the log: one partition of users at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import polars as pl

from features.catalog import TARGETS
from inference.experiment_report import attributed
from ingest.log import Log, RecordBatch, Source
from ingest.reading import partition_until_end
from ingest.topics import Topics
from schemas.columns import ColumnReader
from schemas.errors import Refused
from schemas.events import Experiment, Recommendation, UserEvent
from schemas.registry import Registry

# Of a partition, in memory at once; lists are the larger, about 200 bytes each.
MOST: Final = 2_000_000
_LISTS: Final = ("request_id", "user_id", "event_time", "items", "experiments", "fallback_reason")
_EVENTS: Final = ("user_id", "item_id", "event_type", "event_time")


class ExperimentLog:
    """Reads both topics from their start. Users of one partition are read, then the next."""

    def __init__(self, log: Log, source: Source, registry: Registry, topics: Topics) -> None:
        self._log, self._source, self._topics = log, source, topics
        self._answers = ColumnReader(registry, Recommendation)
        self._events = ColumnReader(registry, UserEvent)

    def read(
        self, experiment: Experiment, since_ms: int, window_ms: int
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """
        Lists and choices as `experiment_report.report` takes them.

        Args:
            since_ms: lists that are older are left out.

        Raises:
            BrokerUnavailable: a topic could not be read to its end.
            Refused: a partition holds more lists than fit in memory.
        """
        lists, choices, before = [], [], 0
        for partition in sorted(self._log.bounds(self._topics.recommendations)):
            shown = self._lists(experiment, partition, since_ms)
            found = attributed(shown, self._choices(partition, since_ms), window_ms)
            lists.append(shown)
            choices.append(found.with_columns(pl.col("list") + before))
            before += len(shown)
        return pl.concat(lists), pl.concat(choices)

    def _lists(self, experiment: Experiment, partition: int, since_ms: int) -> pl.DataFrame:
        parts, count = [_NO_LISTS], 0
        for batch in self._batches(self._topics.recommendations, partition):
            frame = self._answers.read(batch.values, _LISTS).frame
            found = (
                frame.filter(
                    (pl.col("event_time") >= since_ms) & pl.col("fallback_reason").is_null()
                )
                .with_columns(
                    pl.col("experiments")
                    .list.eval(
                        pl.element()
                        .filter(pl.element().struct.field("name") == experiment.name)
                        .struct.field("value")
                    )
                    .list.first()
                    .alias("arm")
                )
                .drop_nulls("arm")
                .select(
                    pl.col("user_id").alias("user"),
                    "arm",
                    pl.col("items").list.eval(pl.element().struct.field("item_id")),
                    pl.col("event_time").alias("time"),
                    pl.col("request_id").alias("request"),
                )
            )
            parts.append(found)
            count += len(found)
            _check(count, partition)
        # At least once, an answer may be there twice.
        return pl.concat(parts).unique(["user", "request"], keep="first", maintain_order=True)

    def _choices(self, partition: int, since_ms: int) -> pl.DataFrame:
        targets = [int(kind) for kind in TARGETS]
        parts, count = [_NO_EVENTS], 0
        for batch in self._batches(self._topics.user_events, partition):
            frame = self._events.read(batch.values, _EVENTS).frame
            found = frame.filter(
                (pl.col("event_time") >= since_ms)
                & pl.col("item_id").is_not_null()
                & pl.col("event_type").is_in(targets)
            ).select(
                pl.col("user_id").alias("user"),
                pl.col("item_id").alias("item"),
                pl.col("event_time").alias("time"),
            )
            parts.append(found)
            count += len(found)
            _check(count, partition)
        return pl.concat(parts)

    def _batches(self, topic: str, partition: int) -> Iterator[RecordBatch]:
        return partition_until_end(self._log, self._source, topic, partition)


def _check(count: int, partition: int) -> None:
    if count > MOST:
        raise Refused(
            f"partition {partition} holds more than {MOST} lists or choices since then; give a "
            "shorter time with --hours"
        )


_NO_LISTS: Final = pl.DataFrame(
    schema={
        "user": pl.String,
        "arm": pl.String,
        "items": pl.List(pl.String),
        "time": pl.Int64,
        "request": pl.String,
    }
)
_NO_EVENTS: Final = pl.DataFrame(schema={"user": pl.String, "item": pl.String, "time": pl.Int64})
