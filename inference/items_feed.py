"""Keeps an item table current from item-updates and item-features."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import structlog

from ingest.clock import Clock
from ingest.dead_letter import DeadLetterPolicy, DeadLetters
from ingest.log import Log, RecordBatch, Source, TopicPartition
from ingest.topics import Topics
from schemas.codec import Decoder
from schemas.errors import Reason, Rejected, Retryable
from schemas.events import Item, ItemFeatures
from schemas.registry import Registry

if TYPE_CHECKING:
    from features.items import ItemTable

log = structlog.get_logger(__name__)

T = TypeVar("T")

BATCH_RECORDS = 2_000
# However many entries of a catalogue are bad: the others are served.
NEVER_STOP = DeadLetterPolicy(max_share=1.0)


class ItemsFeed:
    """
    Reads the two compacted topics from their start, then follows them.

    `ready` once everything that stood on them at `open` is in the table. What is refused becomes a
    dead letter at every reading: readers of dead letters drop repeats.
    """

    def __init__(
        self,
        source: Source,
        table: ItemTable,
        registry: Registry,
        topics: Topics,
        clock: Clock,
        dead_letters: DeadLetters,
    ) -> None:
        self._source = source
        self._dead_letters = dead_letters
        self._table = table
        self._topics = topics
        self._clock = clock
        self._items = Decoder(registry, Item)
        self._partials = Decoder(registry, ItemFeatures)
        self._ends: dict[TopicPartition, int] = {}
        self._pending: RecordBatch | None = None
        self.ready = threading.Event()

    def open(self, known: Log) -> None:
        """Start from the start; remember the ends as of now."""
        starts = {}
        for topic in (self._topics.item_updates, self._topics.item_features):
            for partition, (first, end) in known.bounds(topic).items():
                place = TopicPartition(topic, partition)
                starts[place] = first
                if end > first:
                    self._ends[place] = end
        self._source.assign(starts)
        self._check_ready()

    def run(self, stop: threading.Event) -> None:
        """Follow the topics until told to stop."""
        while not stop.is_set():
            try:
                self.step(0.2)
            except Retryable as error:
                log.warning("items.unreachable", error=str(error))
                self._clock.sleep(0.5)

    def step(self, timeout_s: float) -> bool:
        """
        Take in one batch, if one comes.

        Raises:
            Retryable: the broker or the registry did not answer; the batch is tried again.
        """
        self._pending = self._pending or self._source.poll(BATCH_RECORDS, timeout_s)
        batch = self._pending
        if batch is None:
            return False
        self._take(batch)
        self._pending = None
        place = TopicPartition(batch.topic, batch.partition)
        if batch.next_offset >= self._ends.get(place, 0):
            self._ends.pop(place, None)
            self._check_ready()
        return True

    def _take(self, batch: RecordBatch) -> None:
        if batch.topic == self._topics.item_updates:
            self._table.put_items(list(self._decoded(batch, self._item)))
        else:
            refused = self._table.put_partials(list(self._decoded(batch, self._partial)))
            if refused:  # the publisher's feature set is not ours (yet): it will publish again
                log.warning("items.partials_refused", count=refused)
        self._dead_letters.flush()

    def _decoded(
        self, batch: RecordBatch, decode: Callable[[RecordBatch, int], T | None]
    ) -> Iterator[T]:
        """What can be read; the rest is refused."""
        for at in range(len(batch)):
            try:
                found = decode(batch, at)
            except Rejected as rejected:
                place = f"{batch.topic}[{batch.partition}]@{int(batch.offsets[at])}"
                log.warning("items.rejected", place=place, error=str(rejected))
                self._dead_letters.add(batch, at, rejected)
                continue
            if found is not None:
                yield found

    def _item(self, batch: RecordBatch, at: int) -> Item | None:
        value, key = batch.values[at], batch.keys[at]
        if value is None:  # taken from the catalogue: kept by its id, never recommended again
            gone = (key or b"").decode(errors="replace")
            return Item(item_id=gone, title=gone, available=False) if gone else None
        item = self._items.decode(value)
        if not item.item_id:
            raise Rejected(Reason.MISSING_FIELD, "item_id is empty")
        if key != item.item_id.encode():
            raise Rejected(Reason.KEY_MISMATCH, f"item_id is {item.item_id!r}, key is {key!r}")
        return item

    def _partial(self, batch: RecordBatch, at: int) -> ItemFeatures | None:
        value = batch.values[at]
        return None if value is None else self._partials.decode(value)

    def _check_ready(self) -> None:
        if not self._ends and not self.ready.is_set():
            self.ready.set()
            log.info("items.ready", items=len(self._table))
