"""What serving one feature set takes: its rows, its items with the feed behind them, a service."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import structlog

from features.catalog import CATALOG, TARGETS
from features.declare import FeatureSet
from features.items import ItemTable
from features.redis_store import RedisStore
from features.split import check_rows
from inference.batcher import Cost
from inference.fallback import Popular
from inference.items_feed import NEVER_STOP, ItemsFeed
from inference.live import Live
from inference.lookup import RowLookup
from inference.rules import Rule
from inference.scorer import ScorePolicy
from inference.service import Parts, Service, ServicePolicy
from inference.titles import Titles
from ingest.clock import Clock
from ingest.dead_letter import DeadLetterPolicy, DeadLetters
from ingest.kafka import KafkaLog, KafkaProducer, KafkaSource
from ingest.metrics import Metrics
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.errors import PositionForeign, Refused, StoreUnavailable
from schemas.events import DeadLetter
from schemas.registry import Registry

log = structlog.get_logger(__name__)

STORE_TIMEOUT_S = 1.0  # answers wait for the store no longer than this, once
ITEMS_READY_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the sets of one process share."""

    settings: Settings
    registry: Registry
    log: KafkaLog
    partitions: int
    live: Live
    clock: Clock
    metrics: Metrics
    score_cost: Cost  # of a model call
    answer_cost: Cost  # of a model call, and of committing its answers
    titles: Titles | None = None  # to be kept, where somebody asks for them
    rules: tuple[Rule, ...] = ()

    @property
    def topics(self) -> Topics:
        return Topics(self.settings.topic_prefix)

    def source(self) -> KafkaSource:
        """A reader of its own."""
        return KafkaSource(self.settings.bootstrap_servers, timeout_s=self.settings.timeout_s)

    def dead_letters(
        self, producer: KafkaProducer, policy: DeadLetterPolicy | None = None
    ) -> DeadLetters:
        """Not to be shared between threads."""
        topic = self.topics.dead_letters
        codec = Codec(self.registry, DeadLetter, topic)
        return DeadLetters(producer, codec, topic, self.clock, policy, metrics=self.metrics)


class SetParts:
    """One feature set, served until `close`."""

    def __init__(self, features: FeatureSet, around: Surroundings) -> None:
        """Begins to read the items; `items_ready` says when all are there."""
        self._features, self._around = features, around
        with ExitStack() as stack:
            self.items = ItemTable(features.fingerprint)
            self._feed = self._items_feed(stack)
            self.service = self._service(stack, around.answer_cost)
            self._stack = stack.pop_all()

    @cached_property
    def beside(self) -> Service:
        """Another one on the same items and models: reading rows is one thread's, or one waits."""
        return self._service(self._stack, self._around.score_cost)

    @property
    def items_ready(self) -> threading.Event:
        """Set once everything that stood on the item topics at the start is read."""
        return self._feed.ready

    def wait_items(self, timeout_s: float) -> bool:
        """Whether they are there, in time."""
        return self._feed.ready.wait(timeout_s)

    def close(self) -> None:
        """Give everything up. Idempotent."""
        self._stack.close()

    def _service(self, stack: ExitStack, cost: Cost) -> Service:
        around, fingerprint = self._around, self._features.fingerprint
        store = RedisStore(
            around.settings.redis_url,
            fingerprint,
            lifetime_ms=self._features.row.lifetime_ms,
            timeout_s=STORE_TIMEOUT_S,
        )
        stack.callback(store.close)
        try:
            check_rows(store, around.log, around.topics.user_events)
            if self._features.fingerprint != CATALOG.fingerprint:
                _check_folded(store, around.partitions, fingerprint)
        except StoreUnavailable as error:  # without rows users still get popular items
            log.warning("serve.no_store", error=str(error))
        lookup = RowLookup(
            store, partitions=around.partitions, fingerprint=fingerprint, clock=around.clock
        )
        parts = Parts(
            features=self._features,
            lookup=lookup,
            items=self.items,
            popular=Popular(fingerprint, self.items, TARGETS, around.clock),
            live=around.live,
            score_cost=cost,
        )
        policy = ServicePolicy(score=ScorePolicy(rules=around.rules))
        return Service(parts, around.clock, around.metrics, policy)

    def _items_feed(self, stack: ExitStack) -> ItemsFeed:
        around = self._around
        letters = KafkaProducer(
            around.settings.bootstrap_servers, timeout_s=around.settings.timeout_s
        )
        stack.callback(letters.close)
        source = around.source()
        stack.callback(source.close)
        feed = ItemsFeed(
            source,
            self.items,
            around.registry,
            around.topics,
            around.clock,
            around.dead_letters(letters, NEVER_STOP),
        )
        if self._features.fingerprint == CATALOG.fingerprint:
            feed.titles = around.titles
        feed.open(around.log)
        follow(f"items-{self._features.fingerprint[:8]}", feed.run, stack)
        return feed


def opened_set(features: FeatureSet, around: Surroundings) -> SetParts:
    """
    Another feature set than the catalog's, ready to be served.

    Raises:
        Refused: nothing of it is folded, or its items did not come in time.
    """
    try:
        found = SetParts(features, around)
    except PositionForeign as foreign:
        raise Refused(f"feature set {features.fingerprint}: {foreign}") from foreign
    if not found.wait_items(ITEMS_READY_S):
        found.close()
        raise Refused(
            f"feature set {features.fingerprint}: its items were not read in {ITEMS_READY_S:g} s"
        )
    return found


def follow(name: str, work: Callable[[threading.Event], None], stack: ExitStack) -> None:
    """A thread that is told to stop, and waited for, when the stack unwinds."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), name=name, daemon=True)
    thread.start()
    stack.callback(thread.join, 30.0)
    stack.callback(stop.set)


def _check_folded(store: RedisStore, partitions: int, fingerprint: str) -> None:
    missing = [p for p, one in store.positions(range(partitions)).items() if one is None]
    if missing:
        raise Refused(
            f"feature set {fingerprint} has no rows of partitions {missing}; to have them folded, "
            "run `millstream features migrate`"
        )
