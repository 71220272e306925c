"""What rows cost in the store: made-up users, folded and written, and INFO's used_memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import redis
from numpy.typing import NDArray

from deploy import ports, valkey
from deploy.supervise import Supervisor
from features import rows
from features.catalog import CATALOG
from features.declare import DAY_MS, HOUR_MS
from features.event_columns import EventColumns
from features.fold import fold
from features.redis_store import RedisStore
from features.rows import Rows
from features.store import Position, Update
from schemas.events import EventType
from tests.bench.figures import Figure, figure
from tests.bench.world import Sizes, World

NOW_MS = 1_750_000_000_000
USERS = 1_000_000
_CHUNK = 20_000  # users folded at a time
_BATCH = 2_000  # rows written at a time
# What an interaction is followed by, on the same item; else another item is viewed.
_FUNNEL = (EventType.CLICK, EventType.LIKE, EventType.CART, EventType.PURCHASE, EventType.RATING)
_FUNNEL_SHARES = (0.6, 0.12, 0.14, 0.08, 0.06)
_VALUED = (EventType.CART, EventType.PURCHASE, EventType.RATING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """
    Users with a log-normal number of interactions, in sessions, over the last weeks.

    The spread (standard deviation of the logarithm) of 1 means: a sixth of the users have less
    than 8, a sixth more than 54.
    """

    users: int
    median: int = 20
    spread: float = 1.0
    items: int = 1_000_000
    followed: float = 0.35  # share of interactions with the item of the one before
    impressions: float = 0.0  # shown items an interaction
    seed: int = 5

    def chunks(self) -> Iterator[tuple[int, Rows]]:
        """The number of the first user of each chunk, and the chunk's rows."""
        for first in range(0, self.users, _CHUNK):
            chance = np.random.default_rng([self.seed, first])
            n = min(_CHUNK, self.users - first)
            yield first, fold(rows.empty(n), self._events(n, chance), CATALOG.row).rows

    def _events(self, n: int, chance: np.random.Generator) -> EventColumns:
        wanted = np.exp(chance.normal(np.log(self.median), self.spread, n))
        counts = np.maximum(1, np.rint(wanted * (1 + self.impressions))).astype(np.int64)
        row = np.repeat(np.arange(n), counts)
        m = len(row)
        # A session has 6 events half a minute apart, and the next one begins within days.
        pause = chance.random(m) < 1 / 6
        gap = np.where(
            pause, chance.exponential(30 * HOUR_MS, m), chance.exponential(30_000, m)
        ).astype(np.int64)
        time = NOW_MS - np.cumsum(gap[::-1])[::-1]
        ends = np.cumsum(counts)
        # Each user's newest event lies within the last week.
        newest = NOW_MS - (chance.random(n) ** 2 * 7 * DAY_MS).astype(np.int64)
        time += np.repeat(newest - time[ends - 1], counts)
        time = np.maximum(time, 1)
        kind, item = self._interactions(m, chance)
        shown = chance.random(m) < self.impressions / (1 + self.impressions)
        kind[shown] = EventType.IMPRESSION
        value = np.where(np.isin(kind, _VALUED), np.rint(chance.random(m) * 4_000) / 100, np.nan)
        return EventColumns(
            row=row,
            event_id=_hashes(chance, m),
            item=item,
            event_type=kind,
            event_time_ms=time,
            value=value.astype(np.float32),
            erase=np.zeros(m, np.bool_),
        )

    def _interactions(
        self, m: int, chance: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Types and items: a view, or what follows the interaction before on its item."""
        follows = chance.random(m) < self.followed
        follows[:1] = False
        after = chance.choice([int(t) for t in _FUNNEL], m, p=_FUNNEL_SHARES)
        kind = np.where(follows, after, int(EventType.VIEW)).astype(np.uint8)
        hashes = _hashes(chance, self.items)
        picked = hashes[(self.items ** chance.random(m)).astype(np.int64) - 1]  # zipf, exponent 1
        viewed = np.maximum.accumulate(np.where(follows, 0, np.arange(m)))
        return kind, picked[viewed]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMemory:
    """What was measured."""

    users: int
    median_history: float  # interactions that a row holds
    row_bytes: float  # of a stored value, mean
    used_bytes: float  # growth of the store's used_memory a user


def run(world: World) -> Iterator[Figure]:
    """A crowd's rows in a store of their own."""
    users = max(31_250, round(USERS * world.sizes.events / Sizes().events))
    with Supervisor() as supervisor, ports.reserve(1) as reserved:
        options = valkey.ValkeyOptions(
            directory=world.directory / "row-memory", port=reserved.numbers[0], durable=False
        )
        supervisor.start(valkey.service(options))
        found = measured(options.url, Crowd(users=users))
    yield figure(
        "memory of rows, a million users with a median of 20 interactions",
        found.used_bytes * USERS / 2**30,
        "GiB",
        aim=0.5,
        smaller_is_better=True,
        users=found.users,
        row_bytes=round(found.row_bytes),
        used_bytes_per_user=round(found.used_bytes),
        note="growth of used_memory, keys and lifetimes included; no impressions",
    )


def measured(url: str, crowd: Crowd) -> RowMemory:
    """Write a crowd's rows into an empty store, as a worker writes them, and ask for its memory."""
    store = RedisStore(url, CATALOG.fingerprint, lifetime_ms=CATALOG.row.lifetime_ms)
    client = redis.Redis.from_url(url)
    start = Position(cluster_id="bench", topic_id="bench", epoch=0, next_offset=0)
    lease = store.claim(0, start)
    before = _used(client)
    sizes, histories = [], []
    for first, chunk in crowd.chunks():
        histories.append(np.diff(chunk.history_splits))
        stored = rows.encode(chunk, CATALOG.fingerprint)
        sizes += [len(row) for row in stored]
        for at in range(0, len(stored), _BATCH):
            named = {f"user-{first + at + i:07}": r for i, r in enumerate(stored[at : at + _BATCH])}
            after = lease.position.next_offset + len(named)
            lease = store.write(lease, Update(rows=named, partials={}, next_offset=after))
    grown = _used(client) - before
    client.close()
    store.close()
    return RowMemory(
        users=crowd.users,
        median_history=float(np.median(np.concatenate(histories))),
        row_bytes=float(np.mean(sizes)),
        used_bytes=grown / crowd.users,
    )


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def _hashes(chance: np.random.Generator, n: int) -> NDArray[np.uint64]:
    return chance.integers(1, 2**64, n, np.uint64)
