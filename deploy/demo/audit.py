"""The audit at the end of a run: counts from the topics themselves, rows against their log."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deploy.demo.compare import WITHIN_MS, Asked, Difference, compared
from deploy.demo.run import Demo
from deploy.demo.score import Score
from features.assemble import UserFeatures
from features.catalog import CATALOG
from features.counts import Counts
from features.declare import Level
from features.hashing import hash_ids
from features.job import rebuild_parts
from features.rebuild import RebuildReport, verify
from features.redis_store import RedisStore
from ingest.kafka import KafkaLog, KafkaSource
from ingest.log import TopicPartition
from ingest.simulator import SURFACE
from schemas.columns import ColumnReader
from schemas.events import EventType, Recommendation, RecommendationRequest, UserEvent
from schemas.registry import RemoteRegistry

POLL_S = 0.2
MOST_REQUESTS = 3_000  # compared offline


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the topics, the store and the models say after a run."""

    records: Mapping[str, int]  # by topic
    requests: int
    unanswered: int
    answered_twice: int
    events: int  # distinct valid events on the log
    folded: int
    duplicates: int
    late: int
    rejected: int
    dead_letters: int
    rows_equal: int
    rows_unequal: int
    after_change: Mapping[int, Score]
    difference: Difference | None

    @property
    def unfolded(self) -> int:
        """Events that were neither folded, nor late, nor refused."""
        return max(0, self.events - self.folded - self.late)

    @property
    def folded_twice(self) -> int:
        """Events folded more than once."""
        return max(0, self.folded + self.late - self.events)


def audit(demo: Demo) -> Audit:
    """Read every topic again, fold the log again, and ask both models again."""
    settings, topics = demo.settings, demo.topics
    servers, timeout_s = settings.bootstrap_servers, settings.timeout_s
    log = KafkaLog(servers, timeout_s)
    registry = RemoteRegistry(settings.registry_url, timeout_s)
    with closing(KafkaSource(servers, timeout_s=timeout_s)) as source:

        def read(topic: str, kind: type, *columns: str) -> pl.DataFrame:
            return _read(log, source, topic, ColumnReader(registry, kind), columns)

        requests = read(topics.requests, RecommendationRequest, "request_id")["request_id"]
        answers = read(
            topics.recommendations,
            Recommendation,
            *("request_id", "user_id", "event_time", "surface", "user_longs", "user_floats"),
        )
        events = read(
            topics.user_events,
            UserEvent,
            *("event_id", "user_id", "item_id", "event_type", "event_time", "request_id"),
        )
        records = {name: _count(log, source, name) for name in topics.names()}
    asked, answered = Counter(requests.to_list()), Counter(answers["request_id"].to_list())
    rows = _verified(demo).rows
    found = _positions(demo, log)
    scores, difference = _compared(demo, answers, events)
    return Audit(
        records=records,
        requests=len(asked),
        unanswered=sum(1 for name in asked if name not in answered),
        answered_twice=sum(count - 1 for count in answered.values()),
        events=events["event_id"].n_unique(),
        folded=found.folded,
        duplicates=found.duplicates,
        late=found.late,
        rejected=found.dead,
        dead_letters=records[topics.dead_letters],
        rows_equal=rows.equal,
        rows_unequal=rows.different + rows.missing + rows.extra,
        after_change=scores,
        difference=difference,
    )


def _batches(log: KafkaLog, source: KafkaSource, topic: str) -> Iterator[list[bytes | None]]:
    """The values of every batch of a topic, to its present end."""
    bounds = log.bounds(topic)
    ends = {p: end for p, (start, end) in bounds.items() if end > start}
    source.assign({TopicPartition(topic, p): bounds[p][0] for p in ends})
    while ends:
        batch = source.poll(10_000, POLL_S)
        if batch is None:
            continue
        yield list(batch.values)
        if batch.next_offset >= ends.get(batch.partition, 0):
            ends.pop(batch.partition, None)


def _read(
    log: KafkaLog,
    source: KafkaSource,
    topic: str,
    reader: ColumnReader[object],
    columns: tuple[str, ...],
) -> pl.DataFrame:
    frames = [reader.read(values, columns).frame for values in _batches(log, source, topic)]
    return pl.concat(frames) if frames else pl.DataFrame({name: [] for name in columns})


def _count(log: KafkaLog, source: KafkaSource, topic: str) -> int:
    return sum(len(values) for values in _batches(log, source, topic))


def _verified(demo: Demo) -> RebuildReport:
    return verify(rebuild_parts(demo.settings))


def _positions(demo: Demo, log: KafkaLog) -> Counts:
    settings = demo.settings
    partitions = range(log.partitions(demo.topics.user_events))
    with closing(
        RedisStore(settings.redis_url, CATALOG.fingerprint, timeout_s=settings.timeout_s)
    ) as store:
        total = Counts()
        for position in store.positions(list(partitions)).values():
            if position is not None:
                total += Counts.of(position.counts)
    return total


def _compared(
    demo: Demo, answers: pl.DataFrame, events: pl.DataFrame
) -> tuple[dict[int, Score], Difference | None]:
    """The version before the change and the one that serves at the end, on traffic after both."""
    releases = demo.seen.releases
    stable = releases[-1][1].stable if releases else 0
    trained = [link.at for link in demo.seen.transitions if link.to_state == "TRAINING"]
    if stable < 2 or not trained:
        return {}, None
    # Nothing that the new version may have learned from: only what came after its training began.
    asked = _asked(answers, events, trained[-1])
    return compared(demo.settings, (1, stable), asked)


def _asked(answers: pl.DataFrame, events: pl.DataFrame, from_ms: int) -> Asked:
    """Requests from a time on, with the next item that the shopper chose without a list."""
    chosen: dict[str, list[tuple[int, str]]] = defaultdict(list)
    organic = events.filter(
        (pl.col("event_type") == int(EventType.CLICK))
        & pl.col("request_id").is_null()
        & (pl.col("event_time") >= from_ms)
    ).sort("event_time")
    for user, at, item in organic.select("user_id", "event_time", "item_id").iter_rows():
        chosen[user].append((at, item))
    width = CATALOG.width
    shop = answers.filter(
        (pl.col("surface") == SURFACE)
        & (pl.col("event_time") >= from_ms)
        & (pl.col("user_longs").list.len() == width(Level.USER, "int64"))
    )
    kept, items = [], []
    for i, (user, at) in enumerate(shop.select("user_id", "event_time").iter_rows()):
        found = chosen.get(user, [])
        place = bisect_left(found, (at, ""))
        if place < len(found) and found[place][0] <= at + WITHIN_MS:
            kept.append(i)
            items.append(found[place][1])
    taken = shop[kept[:MOST_REQUESTS]]
    return Asked(
        users=taken["user_id"].to_list(),
        features=UserFeatures(
            longs=_matrix(taken["user_longs"], np.int64),
            floats=_matrix(taken["user_floats"], np.float32),
        ),
        chosen=hash_ids(items[:MOST_REQUESTS]),
    )


def _matrix(lists: pl.Series, dtype: type[Any]) -> NDArray[Any]:
    if len(lists) == 0:
        return np.zeros((0, 0), dtype)
    return lists.explode().to_numpy().astype(dtype).reshape(len(lists), -1)
