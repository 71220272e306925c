"""A small world to serve: items, rows in memory, models, and the service on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from features import rows as row_format
from features.catalog import CATALOG, TARGETS
from features.declare import FeatureSet
from features.hashing import hash_id, hash_ids
from features.items import ItemTable
from features.store import Position, Update
from features.store_memory import MemoryStore
from inference.answers import Answers
from inference.constant import ConstantModel
from inference.fallback import Popular
from inference.live import Deployment, Live
from inference.lookup import RowLookup
from inference.model import Model, ModelRef
from inference.requests import Asked
from inference.service import Parts, Service, ServicePolicy
from ingest.clock import ManualClock
from ingest.log import RecordBatch
from ingest.metrics import MemoryMetrics
from ingest.placement import partition_of
from schemas.errors import StoreUnavailable
from schemas.events import Item, RecommendationRequest, Release

PARTITIONS = 4
ITEMS = [f"item-{i}" for i in range(60)]


class SlowStore(MemoryStore):
    """A store that can be gone, and whose position moves after some readings."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = False
        self.arrivals: list[tuple[int, Update]] = []  # partition and what the next reading finds

    def snapshots(self, users):
        if self.gone:
            raise StoreUnavailable("gone")
        return super().snapshots(users)

    def positions(self, partitions):
        if self.gone:
            raise StoreUnavailable("gone")
        found = super().positions(partitions)
        if self.arrivals:
            partition, update = self.arrivals.pop(0)
            self.write(self.claim(partition, None), update)
        return found


@dataclass(frozen=True)
class Constant:
    """A cost that does not depend on the rows."""

    seconds: float

    def predict(self, rows: int) -> float:
        return self.seconds


@dataclass
class World:
    """Everything that the service needs, to be changed by a test."""

    clock: ManualClock = field(default_factory=ManualClock)
    metrics: MemoryMetrics = field(default_factory=MemoryMetrics)
    store: SlowStore = field(default_factory=SlowStore)
    policy: ServicePolicy = field(default_factory=ServicePolicy)
    catalogue: list[str] = field(default_factory=lambda: list(ITEMS))
    features: FeatureSet = CATALOG
    live: Live | None = None  # another world's
    call_s: float | None = None  # what a model call is said to take

    def __post_init__(self) -> None:
        fingerprint = self.features.fingerprint
        self.items = ItemTable(fingerprint)
        self.items.put_items([Item(item_id=i, title=i.upper()) for i in self.catalogue])
        self.live = self.live or Live(self.clock)
        for partition in range(PARTITIONS):
            start = Position(cluster_id="c", topic_id="t", epoch=1, next_offset=0)
            self.store.claim(partition, start)
        lookup = RowLookup(
            self.store, partitions=PARTITIONS, fingerprint=fingerprint, clock=self.clock
        )
        popular = Popular(fingerprint, self.items, TARGETS, self.clock)
        parts = Parts(
            features=self.features,
            lookup=lookup,
            items=self.items,
            popular=popular,
            live=self.live,
            score_cost=None if self.call_s is None else Constant(self.call_s),
        )
        self.service = Service(parts, self.clock, self.metrics, self.policy)

    def deploy(self, release: Release, *models: Model) -> None:
        """Let these models serve that release."""
        by_version = {model.ref.version: model for model in models}
        self.live.exchange(Deployment(release=release, models=by_version))

    def row(self, user: str, *history: str, next_offset: int = 1, age_ms: int = 1000) -> None:
        """Store a row whose user has seen these items."""
        now_ms = self.clock.now_ms() - age_ms
        n = len(history)
        row = replace(
            row_format.empty(1),
            first_seen_ms=np.array([now_ms]),
            last_seen_ms=np.array([now_ms]),
            history_splits=np.array([0, n]),
            history_item=hash_ids(history),
            history_time_ms=np.full(n, now_ms),
            history_type=np.full(n, 3, np.uint8),
            history_value=np.full(n, np.nan, np.float32),
        )
        self.raw_row(user, row_format.encode(row, self.features.fingerprint)[0], next_offset)

    def raw_row(self, user: str, row: bytes, next_offset: int = 1) -> None:
        """Store these bytes as a user's row."""
        lease = self.store.claim(place(user), None)
        self.store.write(lease, Update(rows={user: row}, partials={}, next_offset=next_offset))

    def asked(self, *requests: RecommendationRequest, age_ms: int = 0) -> list[Asked]:
        """The requests as one batch that has been on its topic for `age_ms`."""
        n = len(requests)
        batch = RecordBatch(
            topic="requests",
            partition=0,
            start_offset=0,
            next_offset=n,
            offsets=np.arange(n),
            timestamps_ms=np.full(n, self.clock.now_ms() - age_ms),
            keys=[r.user_id.encode() for r in requests],
            values=[b""] * n,
            headers={},
        )
        return [Asked(batch=batch, index=i, request=r) for i, r in enumerate(requests)]

    def answer(self, *requests: RecommendationRequest, age_ms: int = 0):
        """Their answers."""
        return self.service.answer(self.asked(*requests, age_ms=age_ms)).answers


def place(user: str) -> int:
    """Partition of a user."""
    return partition_of(user.encode(), PARTITIONS)


def request(user: str = "ann", **given) -> RecommendationRequest:
    """A request for five items."""
    return RecommendationRequest(**{"request_id": f"r-{user}", "user_id": user, "k": 5, **given})


def model(
    version: int = 1, best: tuple[str, ...] = (), features: FeatureSet = CATALOG
) -> ConstantModel:
    """Ranks the items in their order, `best` before all others."""
    ids = [*best, *(i for i in ITEMS if i not in best)]
    ref = ModelRef(name="m", version=version, fingerprint=features.fingerprint)
    scores = np.linspace(1, 0, len(ids), dtype=np.float32)
    return ConstantModel(ref, np.array([hash_id(i) for i in ids], np.uint64), scores)


@dataclass(frozen=True)
class Whole:
    """Steps of which the last one does everything."""

    answer: Callable[[Sequence[Asked]], Answers]

    def prepare(self, asked):
        return asked

    def score(self, prepared):
        return prepared

    def modelled(self, scored):
        return len(scored)

    def finish(self, scored):
        return self.answer(scored)
