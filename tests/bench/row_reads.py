"""Rows read for serving: the store's reads beside redis-py's, and beside the bytes alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import redis

from features.catalog import CATALOG
from features.job import open_store
from features.redis_link import packed
from features.redis_store import RedisStore
from ingest.settings import Settings
from tests.bench.figures import Figure, figure
from tests.bench.measure import chunks, own_cpu_s, profiled, quantiles_ms, rate, seconds
from tests.bench.to_rows import ensure_rows
from tests.bench.world import PARTITIONS, World

AIM_ROWS = 300_000.0
AIM_P99_MS = 2.0
SMALL, LARGE = 64, 4_096
SIZES = (16, SMALL, 256, 1_024, LARGE)
ROWS = 65_536  # read by one pass
BATCHES = 2_000  # of SMALL, timed one by one
READ_BYTES = 1 << 20

Asked = Mapping[int, Sequence[str]]


def run(world: World) -> Iterator[Figure]:
    """What serving does for each of its batches, from rows that the fold has made."""
    yield from figures(ensure_rows(world))


def figures(settings: Settings) -> Iterator[Figure]:
    """Reads by one client of whatever rows stand there, users chosen at random."""
    store = open_store(settings)
    users = _users(store)
    by_size = {size: _asked(users, size, ROWS // size) for size in SIZES}
    per_s = {size: rate(ROWS, partial(_read, store, by_size[size])) for size in SIZES}
    large = by_size[LARGE]
    used_s = own_cpu_s()
    _read(store, large)
    used_s = own_cpu_s() - used_s
    with redis.Redis.from_url(settings.redis_url, protocol=2) as client:
        plain = rate(ROWS, lambda: _read_plainly(client, large))
    drain = Drain(settings.redis_url, large)
    limit = rate(ROWS, drain.read)
    drain.close()
    yield figure(
        "rows read for serving",
        per_s[LARGE],
        "rows/s",
        aim=AIM_ROWS,
        peer=("redis-py's pipeline of MGET", plain),
        limits={"the same bytes, asked for and thrown away": limit},
        batch=LARGE,
        by_batch={size: round(found) for size, found in per_s.items()},
        row_bytes=round(_mean_bytes(store, large[0])),
        users=sum(map(len, users)),
        client_cpu_us_per_row=round(1e6 * used_s / ROWS, 2),  # hardly moved by what else runs
        **({} if per_s[LARGE] >= AIM_ROWS else {"profile": profiled(lambda: _read(store, large))}),
    )
    small = _asked(users, SMALL, BATCHES)
    _read(store, small[:100])
    found = quantiles_ms([seconds(partial(store.snapshots, asked)) for asked in small])
    yield figure(
        f"a batch of {SMALL} users read, p99",
        found["p99_ms"],
        "ms",
        aim=AIM_P99_MS,
        smaller_is_better=True,
        quantiles=found,
        note="rows and positions of all partitions, in one round trip, nothing else going on",
    )
    store.close()


def _users(store: RedisStore) -> list[list[str]]:
    """Who has a row, by partition."""
    found = [sorted(store.keys(partition).users) for partition in range(PARTITIONS)]
    if not all(found):
        raise RuntimeError("a partition has no rows")
    return found


def _asked(users: list[list[str]], size: int, batches: int) -> list[Asked]:
    """Batches of users chosen at random, by partition, as serving has them."""
    chance = np.random.default_rng(5)
    everyone = [(p, user) for p, part in enumerate(users) for user in part]
    chosen = chance.integers(0, len(everyone), size * batches).tolist()
    found: list[Asked] = []
    for part in chunks(chosen, size):
        asked: dict[int, list[str]] = {}
        for at in part:
            partition, user = everyone[at]
            asked.setdefault(partition, []).append(user)
        found.append(asked)
    return found


def _read(store: RedisStore, batches: Sequence[Asked]) -> None:
    for asked in batches:
        store.snapshots(asked)


def _mean_bytes(store: RedisStore, asked: Asked) -> float:
    found = store.snapshots(asked).values()
    return float(np.mean([len(row) for one in found for row in one.rows if row is not None]))


def _commands(asked: Asked) -> list[list[str]]:
    name = CATALOG.fingerprint[:8]
    return [
        ["MGET", f"pos{name}:{{p{p}}}", *(f"u{name}:{{p{p}}}:{user}" for user in users)]
        for p, users in asked.items()
    ]


def _read_plainly(client: redis.Redis, batches: Sequence[Asked]) -> None:
    for asked in batches:
        pipe = client.pipeline(transaction=False)
        for command in _commands(asked):
            pipe.mget(command[1:])
        pipe.execute()


class Drain:
    """Asks for batches, and only looks for the end of what comes: server and loopback alone."""

    END = b"+PONG\r\n"

    def __init__(self, url: str, batches: Sequence[Asked]) -> None:
        with redis.Redis.from_url(url) as client:
            where = client.connection_pool.connection_kwargs
        self._line = socket.create_connection((where["host"], where["port"]))
        self._requests = [packed([*_commands(asked), ["PING"]]) for asked in batches]
        self._buffer = bytearray(READ_BYTES)
        self._await(packed([["SELECT", where.get("db", 0)], ["PING"]]))

    def read(self) -> None:
        for request in self._requests:
            self._await(request)

    def close(self) -> None:
        self._line.close()

    def _await(self, request: bytes) -> None:
        self._line.sendall(request)
        last = b""
        while last != self.END:
            size = self._line.recv_into(self._buffer)
            last = (last + self._buffer[max(0, size - len(self.END)) : size])[-len(self.END) :]
