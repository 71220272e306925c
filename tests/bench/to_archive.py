"""Kafka to archive: events as they were, and the label join's examples; beside reading alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from features.catalog import CATALOG
from features.event_archive import ArchiveParts, EventArchiver
from features.join import JoinPolicy
from features.join_worker import JoinParts, JoinWorker
from ingest.kafka import KafkaSource
from ingest.log import TopicPartition
from ingest.metrics import MemoryMetrics
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.events import USER_EVENTS, Recommendation, UserEvent
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, TooSlow, chunks, own_cpu_s, seconds
from tests.bench.to_rows import ensure_rows
from tests.bench.world import PARTITIONS, Sent, World

WINDOW_MS, LATENESS_MS = 60_000, 10_000
FOLLOWING = 0.25  # events after the lists, as a share of those before
FOLLOWED_MS = 240_000  # event time that they span: well past window and lateness
ARCHIVE_S = 120.0
ARCHIVED = 0  # a partition is enough to tell
JOINED = (0, 1)


def run(world: World) -> Iterator[Figure]:
    """Archive events as they were; join what `serve` answered with events that follow."""
    settings = ensure_rows(world)
    yield archived(world, settings)
    if not sum(world.ends(Topics(settings.topic_prefix).recommendations).values()):
        raise RuntimeError("no recommendations: the part `serving` must come first")
    yield from labels(world, settings)


def labels(world: World, settings: Settings, aim: float | None = None) -> Iterator[Figure]:
    """Join the lists that are on their topic with events that follow."""
    topics = Topics(settings.topic_prefix)
    followed = _follow(world, topics)
    lists = [len(world.values(topics.recommendations, n)) for n in range(PARTITIONS)]
    everything, joining = sum(lists), sum(lists[n] for n in JOINED)
    alone = everything / seconds(lambda: world.consume_all(topics.recommendations))
    decoded = everything / seconds(lambda: _decode(world, topics))
    metrics, cpu_s = MemoryMetrics(), own_cpu_s()
    taken_s = seconds(lambda: joined(world, settings, metrics))
    cpu_s = own_cpu_s() - cpu_s
    examples = metrics.value("join.examples")
    if examples < joining:
        raise RuntimeError(f"{joining} lists became {examples:.0f} examples")
    limits = {"consuming the lists alone": alone, "consuming and decoding them": decoded}
    per_list = examples / joining
    yield figure(
        "Kafka to archive, label join, lists",
        joining / taken_s,
        "recommendations/s",
        aim=aim,
        limits=limits,
        lists=joining,
        events=followed,
        cpu_us_per_list=round(1e6 * cpu_s / joining),
    )
    yield figure(
        "Kafka to archive, label join, examples",
        examples / taken_s,
        "examples/s",
        limits={name: value * per_list for name, value in limits.items()},
        examples=int(examples),
        bytes_per_example=round(_size(world, "examples") / examples),
    )


def archived(world: World, settings: Settings) -> Figure:
    """The events of one partition, as Avro container files."""
    topics = Topics(settings.topic_prefix)
    end = world.ends(topics.user_events)[ARCHIVED]
    alone = end / seconds(lambda: world.consume_all(topics.user_events, ARCHIVED))
    source, metrics, cpu_s = KafkaSource(settings.bootstrap_servers), MemoryMetrics(), own_cpu_s()
    parts = ArchiveParts(
        log=world.log,
        source=source,
        topics=topics,
        root=world.directory / "archive",
        clock=CLOCK,
        metrics=metrics,
    )
    until = {TopicPartition(topics.user_events, ARCHIVED): end}
    with stopping(ARCHIVE_S, source) as stop:
        taken_s = seconds(lambda: EventArchiver(parts, partitions=[ARCHIVED]).run(stop, until))
    records = metrics.value("archive.records", topic=USER_EVENTS)
    if records != end:
        raise RuntimeError(f"{records:.0f} of {end} events were archived")
    return figure(
        "Kafka to archive, events",
        end / taken_s,
        "events/s",
        limits={"confluent_kafka consuming alone": alone},
        events=end,
        cpu_us_per_event=round(1e6 * (own_cpu_s() - cpu_s) / end, 2),
        bytes_per_event=round(_size(world, USER_EVENTS) / end, 1),
    )


@contextmanager
def stopping(after_s: float, *sources: KafkaSource) -> Iterator[threading.Event]:
    """An event that is set when it takes too long, which is an error. Closes the sources."""
    stop = threading.Event()
    timer = threading.Timer(after_s, stop.set)
    timer.daemon = True
    timer.start()
    try:
        yield stop
    finally:
        timer.cancel()
        for source in sources:
            source.close()
    if stop.is_set():
        raise TooSlow(f"not at its end after {after_s:g} s")


def joined(world: World, settings: Settings, metrics: MemoryMetrics) -> None:
    """The lists of some partitions, joined into the archive."""
    topics = Topics(settings.topic_prefix)
    lists, events = (KafkaSource(settings.bootstrap_servers) for _ in range(2))
    parts = JoinParts(
        log=world.log,
        lists=lists,
        events=events,
        registry=world.registry,
        topics=topics,
        features=CATALOG,
        root=world.directory / "archive",
        clock=CLOCK,
        metrics=metrics,
    )
    policy = JoinPolicy(window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, idle_close_s=1.0)
    ends = world.ends(topics.recommendations)
    with stopping(ARCHIVE_S, lists, events) as stop:
        JoinWorker(parts, policy, partitions=JOINED).run(stop, {n: ends[n] for n in JOINED})


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


def _decode(world: World, topics: Topics) -> None:
    reader = ColumnReader(world.registry, Recommendation)
    for part in chunks(world.values(topics.recommendations), 2_000):
        reader.read(part)


def _size(world: World, kind: str) -> int:
    files = (world.directory / "archive" / kind).rglob("part-*")
    return sum(path.stat().st_size for path in files)
