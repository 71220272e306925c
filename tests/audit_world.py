"""Events, rows, item table, answers: the whole way to what a user is served, in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from features.audit import AuditParts, AuditReport, audit
from features.audit_answers import UserSample
from features.catalog import CATALOG, TARGETS
from features.items import ItemTable
from features.outlets import NoOutlets
from features.publish import Publisher, PublishTarget
from features.refold import RebuildParts
from features.skew import SkewPolicy
from features.split import Split, SplitParts
from features.store import Snapshot
from features.store_memory import MemoryStore
from features.worker import FeatureWorker, FoldRules
from inference.fallback import Popular
from inference.items_feed import NEVER_STOP, ItemsFeed
from inference.live import Live
from inference.lookup import RowLookup
from inference.requests import Asked
from inference.service import Parts, Service, ServicePolicy
from ingest.clock import ManualClock
from ingest.dead_letter import DeadLetters
from ingest.log import Outgoing, RecordBatch
from ingest.memory import MemoryLog, MemoryProducer, MemorySource, MemoryTransactionalProducer
from ingest.metrics import MemoryMetrics
from ingest.placement import partition_of
from ingest.topics import Topics, topic_specs
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.events import (
    DeadLetter,
    EventType,
    Item,
    ItemFeatures,
    Recommendation,
    RecommendationRequest,
    UserEvent,
)
from schemas.registry import MemoryRegistry

PARTITIONS = 2
USERS = [f"user-{i}" for i in range(12)]
KINDS = (EventType.IMPRESSION, EventType.CLICK, EventType.VIEW)
ITEMS = [f"item-{i}" for i in range(15)]
# Half past an hour: what happens within minutes stays in one bucket.
START_MS = 1_700_002_200_000
POLICY = SkewPolicy(least_answers=10, table_lag_ms=2_000)
HOUR_S = 3600.0

Change = Callable[[Recommendation], Recommendation]


def home(user: str) -> int:
    """A user's partition."""
    return partition_of(user.encode(), PARTITIONS)


class MisreadStore(MemoryStore):
    """A store whose readers may be given other rows than they asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.reads_as: dict[str, str] = {}
        self.reads_at: int | None = None  # the position that snapshots claim to stand at

    def snapshots(self, users: Any) -> dict[int, Snapshot]:
        wanted = {p: [self.reads_as.get(u, u) for u in names] for p, names in users.items()}
        found = super().snapshots(wanted)
        if self.reads_at is None:
            return found
        return {
            p: replace(s, position=replace(s.position, next_offset=self.reads_at))
            for p, s in found.items()
            if s.position is not None
        }


class World:
    """Everything between a user's events and the answers, to be disturbed by a test."""

    def __init__(self) -> None:
        self.clock = ManualClock(START_MS)
        self.log = MemoryLog(self.clock)
        self.topics = Topics("")
        self.log.create_topics(topic_specs("", PARTITIONS, replay=False))
        self.registry = MemoryRegistry()
        self.producer = MemoryProducer(self.log)
        self.store = MisreadStore()
        self.table = ItemTable(CATALOG.fingerprint)
        self.metrics = MemoryMetrics()
        self._sent = 0
        self._codecs: dict[str, Codec[Any]] = {
            topic: Codec(self.registry, kind, topic)
            for topic, kind in (
                (self.topics.user_events, UserEvent),
                (self.topics.item_updates, Item),
                (self.topics.item_features, ItemFeatures),
                (self.topics.recommendations, Recommendation),
                (self.topics.dead_letters, DeadLetter),
            )
        }
        for number, item in enumerate(ITEMS):
            self.catalogue(Item(item_id=item, title=item, categories=(f"c{number % 4}",)))
        self._split = self._new_split()
        self._publisher = self._new_publisher()
        self._feed = self._new_feed()
        self._service = self._new_service()

    def catalogue(self, item: Item) -> None:
        self._send(self.topics.item_updates, item.item_id, item)

    def act(self, count: int, **changes: Any) -> None:
        """So many events, a tenth of a second apart, of all users on all items in turn."""
        for i in range(self._sent, self._sent + count):
            given: dict[str, Any] = {
                "event_id": f"e{i}",
                "user_id": USERS[i % len(USERS)],
                "item_id": ITEMS[(7 * i + i // len(USERS)) % len(ITEMS)],
                "event_type": KINDS[(i + i // len(USERS)) % len(KINDS)],
                "event_time": self.clock.now_ms(),
            }
            event = UserEvent(**(given | changes))
            self._send(self.topics.user_events, event.user_id, event)
            self.clock.advance(0.1)
        self._sent += count

    def fold(self) -> None:
        """Bring the rows up to the log."""
        while batches := self._split.poll(0):
            self._split.handle(batches)

    def publish(self) -> None:
        """Bring the item table up to the rows."""
        for partition in range(PARTITIONS):
            self._publisher.publish(partition)
        while self._feed.step(0):
            pass

    def ask(self, *users: str, change: Change = lambda answer: answer) -> None:
        """An answer for each user; `change` is what goes wrong on its way to the log."""
        requests = [
            RecommendationRequest(
                request_id=f"r{self.log.bounds(self.topics.recommendations)}-{user}",
                user_id=user,
                k=5,
                candidates=tuple(ITEMS[:6]),
                surface="home",
            )
            for user in users
        ]
        batch = RecordBatch(
            topic="requests",
            partition=0,
            start_offset=0,
            next_offset=len(requests),
            offsets=np.arange(len(requests)),
            timestamps_ms=np.full(len(requests), self.clock.now_ms()),
            keys=[r.user_id.encode() for r in requests],
            values=[b""] * len(requests),
            headers={},
        )
        asked = [Asked(batch=batch, index=i, request=r) for i, r in enumerate(requests)]
        for answer in self._service.answer(asked).answers:
            self._send(self.topics.recommendations, answer.user_id, change(answer))
        self.clock.advance(0.1)

    def live(self, rounds: int = 4) -> None:
        """Users act and are answered, as they are where nothing goes wrong."""
        for _ in range(rounds):
            self.act(30)
            self.fold()
            self.publish()
            self.ask(*USERS)
            self.clock.advance(3.0)

    def audit(self, sample: UserSample | None = None, **policy: Any) -> AuditReport:
        self.metrics = MemoryMetrics()
        parts = AuditParts(
            log=self.log,
            source=MemorySource(self.log),
            registry=self.registry,
            topics=self.topics,
            features=CATALOG,
            refold=self.rebuild_parts(),
            metrics=self.metrics,
        )
        since_ms = policy.pop("since_ms", 0)
        return audit(parts, sample or UserSample(), replace(POLICY, **policy), since_ms=since_ms)

    def rebuild_parts(self) -> RebuildParts:
        return RebuildParts(
            topic=self.topics.user_events,
            log=self.log,
            store=MemoryStore(),  # an audit trusts the log alone
            features=CATALOG,
            open_source=lambda: MemorySource(self.log),
            open_reader=lambda: ColumnReader(self.registry, UserEvent),
            open_outlets=NoOutlets,
            clock=ManualClock(),
            timeout_s=5,
        )

    def _send(self, topic: str, key: str, value: Any) -> None:
        data = self._codecs[topic].encode(value)
        self.producer.send(Outgoing(topic=topic, key=key.encode(), value=data))

    def _new_split(self) -> Split:
        reader = ColumnReader(self.registry, UserEvent)
        rules = FoldRules(features=CATALOG, partitions=PARTITIONS)
        split = Split(
            SplitParts(
                topic=self.topics.user_events,
                partitions=tuple(range(PARTITIONS)),
                source=MemorySource(self.log),
                log=self.log,
                writer=self.store,
                reader=self.store,
                worker=FeatureWorker(self.store, reader, NoOutlets(), rules),
                clock=self.clock,
            )
        )
        split.open()
        return split

    def _new_publisher(self) -> Publisher:
        target = PublishTarget(
            topic=self.topics.item_features,
            fingerprint=CATALOG.fingerprint,
            codec=self._codecs[self.topics.item_features],
            open_producer=lambda name: MemoryTransactionalProducer(self.log, name),
        )
        return Publisher(self.store, target, lambda _: True)

    def _new_feed(self) -> ItemsFeed:
        letters = self._codecs[self.topics.dead_letters]
        dead = DeadLetters(self.producer, letters, self.topics.dead_letters, self.clock, NEVER_STOP)
        feed = ItemsFeed(
            MemorySource(self.log), self.table, self.registry, self.topics, self.clock, dead
        )
        feed.open(self.log)
        return feed

    def _new_service(self) -> Service:
        lookup = RowLookup(
            self.store, partitions=PARTITIONS, fingerprint=CATALOG.fingerprint, clock=self.clock
        )
        parts = Parts(
            features=CATALOG,
            lookup=lookup,
            items=self.table,
            popular=Popular(CATALOG.fingerprint, self.table, TARGETS, self.clock),
            live=Live(self.clock),
        )
        return Service(parts, self.clock, MemoryMetrics(), ServicePolicy(exclude_seen=False))
