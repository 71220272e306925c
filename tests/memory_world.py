"""A log of events in memory, a store, and the splits and rebuilds between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from features.catalog import CATALOG
from features.hot_rows import HotRows
from features.outlets import NoOutlets
from features.refold import RebuildParts
from features.split import Closing, Split, SplitParts
from features.store import Lease, Update
from features.store_memory import MemoryStore
from features.worker import FeatureWorker, FoldRules
from ingest.clock import Clock, ManualClock
from ingest.log import Outgoing
from ingest.memory import MemoryLog, MemorySource
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.events import EventType, UserEvent
from schemas.registry import MemoryRegistry

NOW = 1_700_000_000_000
PARTITIONS = 2
USERS = [f"user-{i}" for i in range(20)]


class World:
    """A log of events, a store, and the splits and rebuilds between them."""

    def __init__(self, store: Any = None) -> None:
        self.registry = MemoryRegistry()
        self.codec = Codec(self.registry, UserEvent, "events")
        self.store = MemoryStore() if store is None else store
        self.clock: Clock = ManualClock()
        self.create_log()

    def in_peace(self) -> World:
        """The same log, folded into a store of its own."""
        other = World()
        other.registry, other.codec, other.log = self.registry, self.codec, self.log
        other.fold()
        return other

    def create_log(self) -> None:
        self.log = MemoryLog()
        self.log.create_topic("events", PARTITIONS)

    def put(self, numbers: Iterable[int]) -> None:
        for i in numbers:
            event = UserEvent(
                event_id=f"e{i}",
                user_id=USERS[i % len(USERS)],
                item_id=f"item-{i % 7}",
                event_type=EventType.CLICK,
                event_time=NOW + i,
            )
            self.log.append(
                Outgoing(
                    topic="events",
                    key=event.user_id.encode(),
                    value=self.codec.encode(event),
                    timestamp_ms=NOW + i,
                )
            )

    def split(
        self, *, from_earliest: bool = False, beside: Callable[[Split], Closing] | None = None
    ) -> Split:
        rules = FoldRules(features=CATALOG, partitions=PARTITIONS)
        reader = ColumnReader(self.registry, UserEvent)
        writer = HotRows(self.store)
        return Split(
            SplitParts(
                topic="events",
                partitions=tuple(range(PARTITIONS)),
                source=MemorySource(self.log),
                log=self.log,
                writer=writer,
                reader=self.store,
                worker=FeatureWorker(writer, reader, NoOutlets(), rules),
                clock=self.clock,
                from_earliest=from_earliest,
                beside=beside,
            )
        )

    def fold(self) -> None:
        split = self.split()
        split.open()
        while batches := split.poll(0):
            split.handle(batches)

    def parts(self) -> RebuildParts:
        return RebuildParts(
            topic="events",
            log=self.log,
            store=self.store,
            features=CATALOG,
            open_source=lambda: MemorySource(self.log),
            open_reader=lambda: ColumnReader(self.registry, UserEvent),
            open_outlets=NoOutlets,
            clock=self.clock,
            timeout_s=5,
        )

    def spoil(self, rows: dict[str, bytes], partials: dict[str, bytes]) -> Lease:
        """Overwrite stored values behind the worker's back."""
        lease = self.store.claim(0, None)
        at = lease.position.next_offset
        return self.store.write(lease, Update(rows=rows, partials=partials, next_offset=at))

    def contents(self) -> dict[object, bytes | None]:
        found: dict[object, bytes | None] = {}
        for p in range(PARTITIONS):
            users, items = sorted(self.store.keys(p).users), sorted(self.store.keys(p).items)
            rows = self.store.snapshots({p: users})[p].rows
            partials = self.store.partials(p, items).rows
            found |= dict(zip(((p, "u", u) for u in users), rows, strict=True))
            found |= dict(zip(((p, "i", i) for i in items), partials, strict=True))
        return found
