"""The item table of a large catalogue: how long a server takes to fill it, and what it holds."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator, Mapping

import numpy as np
import psutil
import structlog

from features.catalog import CATALOG
from features.declare import HOUR_MS
from features.hashing import hash_ids
from features.items import Counted, ItemTable
from features.partials import Partials, encode_partials
from features.publish import item_key
from features.tiles import Tiles
from features.user_features import DAY, WEEK
from inference.items_feed import BATCH_RECORDS, NEVER_STOP, ItemsFeed
from ingest.clock import SystemClock
from ingest.dead_letter import DeadLetters
from ingest.log import RecordBatch, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.events import DeadLetter, Item, ItemFeatures
from schemas.registry import MemoryRegistry
from tests.bench.figures import Figure, figure
from tests.bench.measure import own_cpu_s, seconds

ITEMS = 1_000_000
# An item has a partial in two of four partitions, as where most items are rare; of 12 tiles each.
PARTITIONS, HELD_IN, TILES = 4, 2, 12
NOW_MS = 1_750_000_000_000
LOOKUPS = 10_000


def run(items: int = ITEMS) -> list[Figure]:
    """Fill a table as a server does at its start, then look things up in it and change some."""
    topics, registry = Topics(""), MemoryRegistry()
    source = _Compacted(topics, registry, items)
    before_bytes = _resident_bytes()
    table = ItemTable(CATALOG.fingerprint)
    log = MemoryLog()
    letters = Codec(registry, DeadLetter, topics.dead_letters)
    dead = DeadLetters(MemoryProducer(log), letters, topics.dead_letters, SystemClock(), NEVER_STOP)
    feed = ItemsFeed(source, table, registry, topics, SystemClock(), dead)
    feed.open(source)
    cpu_s = own_cpu_s()
    wall_s = seconds(lambda: _filled(feed))
    cpu_s = own_cpu_s() - cpu_s - source.spent_cpu_s
    held_mb = (_resident_bytes() - before_bytes) / 1e6
    if len(table) != items:
        raise RuntimeError(f"{len(table)} of {items} items are in the table")
    records = items * (1 + HELD_IN)
    return [
        figure(
            "item table: load",
            records / cpu_s,
            "records/s",
            items=items,
            records=records,
            cpu_s=round(cpu_s, 1),
            wall_s=round(wall_s - source.spent_s, 1),
        ),
        figure(
            "item table: memory",
            held_mb * 1e6 / items,
            "bytes an item",
            smaller_is_better=True,
            items=items,
            megabytes=round(held_mb),
            bytes_of_partials=HELD_IN * TILES * 8,
        ),
        *_used(table, source),
    ]


def _used(table: ItemTable, source: _Compacted) -> Iterator[Figure]:
    """Reads of a full table, and one batch of changes."""
    some = np.random.default_rng(3).integers(0, len(table), LOOKUPS)
    hashes = hash_ids([source.name(i) for i in some.tolist()])

    def counted() -> None:
        windows = table.windows(table.index(hashes), np.full(LOOKUPS, NOW_MS))
        windows.counts((Counted((3,), DAY), Counted((3,), WEEK)))

    took_s = float(np.median([seconds(counted) for _ in range(9)]))
    yield figure("item table: two windows of candidates", LOOKUPS / took_s, "candidates/s")
    rounds = [source.partials(at, at + BATCH_RECORDS) for at in range(0, 8_000, BATCH_RECORDS)]
    took_s = max(seconds(lambda b=batch: table.put_partials(b)) for batch in rounds)
    yield figure("item table: longest update of 2,000 partials", 1000 * took_s, "ms")


class _Compacted:
    """The two topics, made up as they are read: nothing of them is kept. A Source and a Log."""

    def __init__(self, topics: Topics, registry: MemoryRegistry, items: int) -> None:
        self.spent_s = self.spent_cpu_s = 0.0
        self._topics, self._count = topics, items
        self._items = Codec(registry, Item, topics.item_updates)
        self._features = Codec(registry, ItemFeatures, topics.item_features)
        self._at: dict[TopicPartition, int] = {}
        self._random = np.random.default_rng(7)

    def name(self, i: int) -> str:
        return f"item-{i:08d}"

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        size = 1 if topic == self._topics.item_updates else HELD_IN
        return {0: (0, size * self._count)}

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._at = dict(positions)

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        left = {p: at for p, at in self._at.items() if at < self.bounds(p.topic)[0][1]}
        if not left:
            return None
        place = min(left, key=lambda p: left[p])
        start = left[place]
        end = min(start + max_records, self.bounds(place.topic)[0][1])
        cpu_s = own_cpu_s()
        found: list[RecordBatch] = []
        self.spent_s += seconds(lambda: found.append(self._batch(place, start, end)))
        self.spent_cpu_s += own_cpu_s() - cpu_s
        self._at[place] = end
        return found[0]

    def close(self) -> None:
        """Nothing is open."""

    def partials(self, start: int, end: int) -> list[ItemFeatures]:
        """Records of item-features, at these offsets."""
        n = end - start
        hours = np.sort(self._random.integers(0, 24, (n, TILES)), axis=1)
        keys = (2 << 30) | ((NOW_MS // HOUR_MS - 24 + hours) << 4) | (np.arange(TILES) % 8)
        tiles = Tiles(
            np.arange(n + 1) * TILES,
            np.sort(keys, axis=1).astype(np.uint32).ravel(),
            self._random.integers(1, 9, n * TILES).astype(np.uint32),
        )
        partials = Partials(newest_ms=np.full(n, NOW_MS), tiles=tiles)
        return [
            ItemFeatures(
                item_id=self.name(offset % self._count),
                partition=(offset // self._count + offset) % PARTITIONS,
                fingerprint=CATALOG.fingerprint,
                events_offset=offset,
                partial=stored,
            )
            for offset, stored in zip(
                range(start, end), encode_partials(partials, CATALOG.fingerprint), strict=True
            )
        ]

    def _batch(self, place: TopicPartition, start: int, end: int) -> RecordBatch:
        if place.topic == self._topics.item_updates:
            items = [
                Item(
                    item_id=self.name(i),
                    title=f"The story of item number {i}",
                    categories=(f"c{i % 50}", f"c{i % 70}"),
                    creator=f"creator-{i % 5000}",
                    published_at=NOW_MS - i,
                    price=float(i % 100),
                )
                for i in range(start, end)
            ]
            keys, values = [i.item_id.encode() for i in items], self._items.encode_many(items)
        else:
            found = self.partials(start, end)
            keys = [item_key(f.item_id, f.partition, f.fingerprint) for f in found]
            values = self._features.encode_many(found)
        n = end - start
        return RecordBatch(
            topic=place.topic,
            partition=place.partition,
            start_offset=start,
            next_offset=end,
            offsets=np.arange(start, end),
            timestamps_ms=np.full(n, NOW_MS),
            keys=keys,
            values=values,
            headers={},
        )


def _filled(feed: ItemsFeed) -> None:
    while not feed.ready.is_set():
        feed.step(0)


def _resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    quiet = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=quiet)
    for one in run(int(sys.argv[1]) if len(sys.argv) > 1 else ITEMS):
        print(f"{one.name}: {one.value:,.1f} {one.unit} {dict(one.detail)}")
