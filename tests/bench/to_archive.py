"""Kafka to archive: the label join's examples, beside reading its lists alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from features.catalog import CATALOG
from features.join import JoinPolicy
from features.join_worker import JoinParts, JoinWorker
from ingest.kafka import KafkaSource
from ingest.metrics import MemoryMetrics
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.events import Recommendation, UserEvent
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, chunks, own_cpu_s, profiled, seconds
from tests.bench.to_rows import ensure_rows
from tests.bench.world import Sent, World

WINDOW_MS, LATENESS_MS = 60_000, 10_000
FOLLOWING = 0.25  # events after the lists, as a share of those before
FOLLOWED_MS = 240_000  # event time that they span: well past window and lateness
JOIN_S = 120.0


def run(world: World) -> Iterator[Figure]:
    """Join what `serve` answered with events that follow."""
    settings = ensure_rows(world)
    topics = Topics(settings.topic_prefix)
    if not sum(world.ends(topics.recommendations).values()):
        raise RuntimeError("no recommendations: the part `serving` must come first")
    followed = _follow(world, topics)
    lists = len(_lists(world, topics))
    alone = lists / seconds(lambda: world.consume_all(topics.recommendations))
    decoded = lists / seconds(lambda: _decode(world, topics))
    metrics, cpu_s = MemoryMetrics(), own_cpu_s()
    taken_s = seconds(lambda: joined(world, settings, metrics))
    cpu_s = own_cpu_s() - cpu_s
    examples = metrics.value("join.examples")
    yield figure(
        "Kafka to archive, label join, lists",
        lists / taken_s,
        "recommendations/s",
        limits={"consuming the lists alone": alone, "and decoding them to columns": decoded},
        lists=lists,
        events=followed,
        cpu_us_per_list=round(1e6 * cpu_s / lists),
        profile=profiled(lambda: joined(world, settings, MemoryMetrics(), "profiled")),
    )
    yield figure(
        "Kafka to archive, label join, examples",
        examples / taken_s,
        "examples/s",
        examples=int(examples),
        bytes_per_example=round(_size(world) / max(1, examples)),
    )


def joined(world: World, settings: Settings, metrics: Any, name: str = "archive") -> None:
    """All lists on the log, joined into an archive of this name."""
    topics = Topics(settings.topic_prefix)
    lists, events = (KafkaSource(settings.bootstrap_servers) for _ in range(2))
    parts = JoinParts(
        log=world.log,
        lists=lists,
        events=events,
        registry=world.registry,
        topics=topics,
        features=CATALOG,
        root=world.directory / name,
        clock=CLOCK,
        metrics=metrics,
    )
    policy = JoinPolicy(window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, idle_close_s=1.0)
    stop = threading.Event()
    timer = threading.Timer(JOIN_S, stop.set)
    timer.daemon = True
    timer.start()
    try:
        JoinWorker(parts, policy).run(stop, world.ends(topics.recommendations))
    finally:
        timer.cancel()
        lists.close()
        events.close()
    if stop.is_set():
        raise RuntimeError(f"the join was not at its end after {JOIN_S:g} s")


def _follow(world: World, topics: Topics) -> int:
    """Events that come after the lists, until well past their windows; how many."""
    count = int(world.sizes.events * FOLLOWING)
    codec = Codec(world.registry, UserEvent, topics.user_events)
    later = replace(world.shop, seed=world.shop.seed + 1, span_ms=FOLLOWED_MS)
    events = list(later.events(count, CLOCK.now_ms() + FOLLOWED_MS))
    records = [
        Sent(key=e.user_id.encode(), value=v, timestamp_ms=e.event_time)
        for e, v in zip(events, codec.encode_many(events), strict=True)
    ]
    world.produce(topics.user_events, records)
    return count


def _lists(world: World, topics: Topics) -> list[bytes]:
    return world.values(topics.recommendations)


def _decode(world: World, topics: Topics) -> None:
    reader = ColumnReader(world.registry, Recommendation)
    for part in chunks(_lists(world, topics), 2_000):
        reader.read(part)


def _size(world: World) -> int:
    files = (world.directory / "archive").rglob("*.tfrecord.gz")
    return sum(path.stat().st_size for path in files)
