"""Keeps an item table current from item-updates and item-features."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog

from features.publish import old_item_key
from inference.titles import Titles
from ingest.clock import Clock
from ingest.dead_letter import DeadLetterPolicy, DeadLetters
from ingest.log import Log, RecordBatch, Source, TopicPartition
from ingest.topics import Topics
from schemas.columns import ColumnReader, Decoded
from schemas.errors import Reason, Rejected, Retryable
from schemas.events import Item, ItemFeatures
from schemas.registry import Registry

if TYPE_CHECKING:
    from features.items import ItemTable

log = structlog.get_logger(__name__)

BATCH_RECORDS = 2_000
# However many entries of a catalogue are bad: the others are served.
NEVER_STOP = DeadLetterPolicy(max_share=1.0)
# What the table keeps of an entry: no image is decoded.
_ITEM_COLUMNS: Final = (
    *("item_id", "title", "categories", "creator", "published_at", "price", "available"),
)


class ItemsFeed:
    """
    Reads the two compacted topics from their start, then follows them: first the catalogue, so
    that an item has its place before its aggregates come.

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
        self.titles: Titles | None = None  # set before `open` where titles are wanted
        self._source = source
        self._dead_letters = dead_letters
        self._table = table
        self._topics = topics
        self._clock = clock
        self._items = ColumnReader(registry, Item)
        self._partials = ColumnReader(registry, ItemFeatures)
        self._next: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._following = False  # both topics, not the catalogue alone
        self._pending: RecordBatch | None = None
        # (item, partition) whose aggregates were taken from under the key of before.
        self._old_form: set[tuple[str, int]] = set()
        self.ready = threading.Event()

    def open(self, known: Log) -> None:
        """Start from the start; remember the ends as of now."""
        for topic in (self._topics.item_updates, self._topics.item_features):
            for partition, (first, end) in known.bounds(topic).items():
                place = TopicPartition(topic, partition)
                self._next[place] = first
                if end > first:
                    self._ends[place] = end
        catalogue = self._topics.item_updates
        self._source.assign({p: at for p, at in self._next.items() if p.topic == catalogue})
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
        self._next[place] = batch.next_offset
        if batch.next_offset >= self._ends.get(place, 0):
            self._ends.pop(place, None)
            self._check_ready()
        return True

    def _take(self, batch: RecordBatch) -> None:
        if batch.topic == self._topics.item_updates:
            entries = self._entries(batch)
            self._table.put_items(entries)
            if self.titles is not None:
                self.titles.put(entries)
        else:
            refused = self._table.put_partials(self._aggregates(batch))
            if refused:  # they will be published again when they change
                log.warning("items.partials_refused", count=refused)
        self._dead_letters.flush()

    def _entries(self, batch: RecordBatch) -> list[Item]:
        """What the batch says of the catalogue, in its order; the rest is refused."""
        decoded = self._items.read(batch.values, _ITEM_COLUMNS)
        pairs = zip(batch.keys, batch.values, strict=True)
        found = [_gone(key) if value is None else None for key, value in pairs]
        refused = dict(decoded.bad)
        for at, row in _rows(decoded):
            try:
                found[at] = _item(batch.keys[at], row)
            except Rejected as rejected:
                refused[at] = rejected
        self._refuse(batch, refused)
        return [item for item in found if item is not None]

    def _aggregates(self, batch: RecordBatch) -> list[ItemFeatures]:
        """The batch's aggregates, those under their present key first; the rest is refused."""
        decoded = self._partials.read(batch.values)
        self._refuse(batch, dict(decoded.bad))
        new: list[ItemFeatures] = []
        old: list[ItemFeatures] = []
        for at, row in _rows(decoded):
            found = ItemFeatures(**row)
            key = old_item_key(found.item_id, found.partition)
            (old if batch.keys[at] == key else new).append(found)
        return [*new, *self._old_ones(old, {(f.item_id, f.partition) for f in new})]

    def _old_ones(
        self, found: Sequence[ItemFeatures], replaced: set[tuple[str, int]]
    ) -> Iterator[ItemFeatures]:
        """Those that no record under a present key has replaced; it may be read before or after."""
        self._old_form -= replaced
        for one in found:
            pair = (one.item_id, one.partition)
            if pair in replaced:
                continue
            if pair in self._old_form or not self._table.holds_partial(*pair):
                self._old_form.add(pair)
                yield one

    def _refuse(self, batch: RecordBatch, refused: Mapping[int, Rejected]) -> None:
        for at, rejected in sorted(refused.items()):
            place = f"{batch.topic}[{batch.partition}]@{int(batch.offsets[at])}"
            log.warning("items.rejected", place=place, error=str(rejected))
            self._dead_letters.add(batch, at, rejected)

    def _check_ready(self) -> None:
        catalogue = self._topics.item_updates
        if not self._following and not any(p.topic == catalogue for p in self._ends):
            self._following = True
            self._source.assign(self._next)
        if not self._ends and not self.ready.is_set():
            self.ready.set()
            log.info("items.ready", items=len(self._table))


def _rows(decoded: Decoded) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each good record's place in the batch, with its fields."""
    return zip(decoded.index.tolist(), decoded.frame.iter_rows(named=True), strict=True)


def _item(key: bytes | None, row: dict[str, Any]) -> Item:
    """
    One entry.

    Raises:
        Rejected: it has no id, or another one than its key.
    """
    item_id = row["item_id"]
    if not item_id:
        raise Rejected(Reason.MISSING_FIELD, "item_id is empty")
    if key != item_id.encode():
        raise Rejected(Reason.KEY_MISMATCH, f"item_id is {item_id!r}, key is {key!r}")
    return Item(**{**row, "categories": tuple(row["categories"])})


def _gone(key: bytes | None) -> Item | None:
    """What a null value says: taken from the catalogue, kept by its id, never recommended again."""
    gone = (key or b"").decode(errors="replace")
    return Item(item_id=gone, title=gone, available=False) if gone else None
