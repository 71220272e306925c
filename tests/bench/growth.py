"""What the fold costs as users grow, and as batches grow: the whole catalogue, Kafka to Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from features.catalog import CATALOG
from features.hot_rows import HotRows
from features.job import open_store
from features.outlets import NoOutlets
from features.split import MAX_RECORDS
from features.store import Position
from features.worker import FeatureWorker, FoldRules
from ingest.batches import part
from ingest.kafka import KafkaSource
from ingest.log import RecordBatch, TopicPartition
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.events import UserEvent
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, TooSlow, chunks, seconds
from tests.bench.shop import Shop
from tests.bench.to_rows import QUIET_S, emptied, folded
from tests.bench.world import GROWTH_DB, PARTITIONS, Sent, World

USERS = (10_000, 100_000, 1_000_000)
PASSES = 2
SHARE = 2  # of all events, one in so many
CHUNK = 100_000
LEAST_SHARE = 0.75  # of the rate with the fewest users: it falls by less than a quarter
BATCHES = (64, 256, 1_024, 4_096, 16_384, 65_536)
BATCHED = 400_000  # events at most, of each batch size
SMALL = 400  # batches at most, of each size


def users(world: World) -> Iterator[Figure]:
    """The same number of events of ever more users."""
    count = world.sizes.events // SHARE
    rates: dict[int, float] = {}
    cpu_us: dict[int, float] = {}
    for n in USERS:
        settings = world.named(f"users{n}-", GROWTH_DB)
        _produce(world, settings, replace(world.shop, users=n), count)
        # The better of two: whatever comes first also pays for what a process does once.
        done = max((folded(settings, count) for _ in range(PASSES)), key=lambda one: one.per_s)
        rates[n] = done.per_s
        cpu_us[n] = round(1e6 * done.cpu_s / done.events, 2)
    world.curves["users"] = rates
    for n in USERS:
        first = n == USERS[0]
        yield figure(
            f"Kafka to Redis rows, {n:,} users",
            rates[n],
            "events/s",
            aim=None if first else LEAST_SHARE * rates[USERS[0]],
            peer=None if first else (f"{USERS[0]:,} users", rates[USERS[0]]),
            events=count,
            cpu_us_per_event=cpu_us[n],
        )


def batches(world: World) -> Iterator[Figure]:
    """The same events of one partition, cut into ever larger batches before they are folded."""
    settings = world.named(world.settings.topic_prefix, GROWTH_DB)
    whole = _read(settings, min(BATCHED, world.ends(world.user_events)[0]))
    rates: dict[int, float] = {}
    for size in BATCHES:
        starts = range(0, len(whole), size)[:SMALL]
        cut = [part(whole, at, min(at + size, len(whole))) for at in starts]
        rates[size] = _folded(world, settings, cut)
    world.curves["batch"] = rates
    for size, per_s in rates.items():
        yield figure(f"Kafka to Redis rows, batches of {size:,}", per_s, "events/s")


def _produce(world: World, settings: Settings, shop: Shop, count: int) -> None:
    world.create_topics(settings.topic_prefix)
    topic = Topics(settings.topic_prefix).user_events
    codec = Codec(world.registry, UserEvent, topic)
    for events in chunks(list(shop.events(count, CLOCK.now_ms())), CHUNK):
        world.produce(
            topic,
            [
                Sent(key=e.user_id.encode(), value=v, timestamp_ms=e.event_time)
                for e, v in zip(events, codec.encode_many(events), strict=True)
            ],
        )


def _read(settings: Settings, most: int) -> RecordBatch:
    """The first records of a partition, at least so many, as one batch."""
    source = KafkaSource(settings.bootstrap_servers)
    source.assign({TopicPartition(Topics(settings.topic_prefix).user_events, 0): 0})
    found: list[RecordBatch] = []
    try:
        while (held := sum(map(len, found))) < most:
            batch = source.poll(MAX_RECORDS, QUIET_S)
            if batch is None:
                raise TooSlow(f"the log gave nothing after {held} of {most} records")
            found.append(batch)
    finally:
        source.close()
    return replace(
        found[0],
        next_offset=found[-1].next_offset,
        offsets=np.concatenate([batch.offsets for batch in found]),
        timestamps_ms=np.concatenate([batch.timestamps_ms for batch in found]),
        keys=[key for batch in found for key in batch.keys],
        values=[value for batch in found for value in batch.values],
    )


def _folded(world: World, settings: Settings, given: list[RecordBatch]) -> float:
    """Events/s of these batches, into an emptied database."""
    emptied(settings)
    store = open_store(settings)
    start = Position(
        cluster_id=world.log.cluster_id(),
        topic_id=world.log.topic_id(given[0].topic),
        epoch=1,
        next_offset=given[0].start_offset,
    )
    rows = HotRows(store)
    reader = ColumnReader(world.registry, UserEvent)
    rules = FoldRules(features=CATALOG, partitions=PARTITIONS)
    worker = FeatureWorker(rows, reader, NoOutlets(), rules)
    worker.take(rows.claim(0, start))
    try:
        return sum(map(len, given)) / seconds(lambda: [worker.process(b) for b in given])
    finally:
        store.close()
