"""
Changed item partials on their way from the store to `item-features`.

The values are absolute, so sending one twice does no harm. One transactional producer a partition
fences a zombie: it ends when a younger publisher of the same partition has begun.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from features.store import PartialOutbox, Unpublished
from ingest.log import Outgoing, TransactionalProducer
from schemas.codec import Codec
from schemas.column_writer import ColumnWriter, Same
from schemas.errors import PositionMoved, Retryable
from schemas.events import ItemFeatures

log = structlog.get_logger(__name__)

# Item windows are closed hours: a second more is nothing to them, and what changes often goes once.
EVERY_S = 1.0
MAX_ITEMS = 2_000  # of one transaction
LAST_ROUND_S = 10.0


def item_key(item_id: str, partition: int, fingerprint: str) -> bytes:
    """
    Key of an item's partial on `item-features`: feature sets must not compact each other away.

    >>> item_key("film", 3, "0123456789abcdef")
    b'film\\x003\\x0001234567'
    """
    return old_item_key(item_id, partition) + b"\0" + fingerprint[:8].encode()


def old_item_key(item_id: str, partition: int) -> bytes:
    """
    The key before it named the feature set; topics may hold it still.

    >>> old_item_key("film", 3)
    b'film\\x003'
    """
    return item_id.encode() + b"\0" + str(partition).encode()


def transactional_id(topic: str, fingerprint: str, partition: int) -> str:
    """One name for all publishers of a partition, so that a younger fences an older one."""
    return f"{topic}-{fingerprint[:8]}-{partition}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishTarget:
    """Where partials go, and under which feature set."""

    topic: str
    fingerprint: str
    codec: Codec[ItemFeatures]
    open_producer: Callable[[str], TransactionalProducer]  # takes the transactional id


class Publisher:
    """Publishes what is unpublished of some partitions; owned by one thread."""

    def __init__(
        self, outbox: PartialOutbox, target: PublishTarget, owns: Callable[[int], bool]
    ) -> None:
        """`owns` says whether this process still is a partition's worker."""
        self._outbox = outbox
        self._target = target
        self._writer = ColumnWriter(target.codec, ItemFeatures)
        self._owns = owns
        self._producers: dict[int, TransactionalProducer] = {}

    def publish(self, partition: int) -> int:
        """
        Send up to MAX_ITEMS partials, oldest changes first, and return their number.

        1. read what is unpublished, 2. send and commit it, 3. settle what has not changed since.

        Raises:
            PositionMoved: a younger publisher owns the partition.
            Retryable: nothing was published; try again.
        """
        waiting = self._outbox.unpublished(partition, MAX_ITEMS)
        if not waiting.partials:
            return 0
        try:
            self._send(partition, self._records(partition, waiting))
        except PositionMoved:
            # A zombie that began late fences its heir, who may well go on: the next try fences it.
            if not self._owns(partition):
                raise
            log.warning("item_features.fenced", partition=partition)
            return 0
        self._outbox.settle(partition, waiting.mark, list(waiting.partials))
        return len(waiting.partials)

    def close(self) -> None:
        """Give up the producers. Idempotent."""
        for partition in list(self._producers):
            self._drop(partition)

    def _records(self, partition: int, waiting: Unpublished) -> list[Outgoing]:
        items, fingerprint = list(waiting.partials), self._target.fingerprint
        values = self._writer.encode(
            {
                "item_id": items,
                "partition": Same(partition),
                "fingerprint": Same(fingerprint),
                "events_offset": Same(waiting.events_offset),
                "partial": list(waiting.partials.values()),
            },
            len(items),
        )
        return [
            Outgoing(
                topic=self._target.topic, key=item_key(item, partition, fingerprint), value=value
            )
            for item, value in zip(items, values, strict=True)
        ]

    def _send(self, partition: int, records: Sequence[Outgoing]) -> None:
        producer = self._producer(partition)
        try:
            producer.begin()
            for record in records:
                producer.send(record)
            producer.commit({}, None)
        except BaseException:
            self._drop(partition)
            raise

    def _producer(self, partition: int) -> TransactionalProducer:
        if partition not in self._producers:
            if not self._owns(partition):
                raise PositionMoved(f"partition {partition} was taken over by another worker")
            name = transactional_id(self._target.topic, self._target.fingerprint, partition)
            self._producers[partition] = self._target.open_producer(name)
        return self._producers[partition]

    def _drop(self, partition: int) -> None:
        self._producers.pop(partition).close()


class PublisherThread:
    """
    Runs a publisher beside the worker, each partition every EVERY_S, and once more at the end.

    The partitions take turns: their transactions one after the other would keep the broker from
    the events for so long.
    """

    def __init__(
        self,
        publisher: Publisher,
        partitions: Sequence[int],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._publisher = publisher
        self._partitions = tuple(partitions)
        self._on_failure = on_failure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="item-features", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Publish what is left and end; an error then is left for the next start."""
        self._stop.set()
        self._thread.join(LAST_ROUND_S)

    def _run(self) -> None:
        try:
            turns = itertools.cycle(self._partitions)
            while not self._stop.wait(EVERY_S / len(self._partitions)):
                self._publish(next(turns))
            for partition in self._partitions:
                self._publish(partition)
        except Exception as error:  # noqa: BLE001 - handed to the owner, who ends the process
            self._on_failure(error)
        finally:
            self._publisher.close()

    def _publish(self, partition: int) -> None:
        try:
            while self._publisher.publish(partition) == MAX_ITEMS:
                pass
        except Retryable as error:
            log.warning("item_features.retry", partition=partition, error=str(error))
