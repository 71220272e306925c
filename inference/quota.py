"""
How often a client may call: a sliding window counter in Redis, which all instances share, and in
this process while Redis does not answer. The one importer of `limits`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import structlog
from limits import RateLimitItem, parse_many
from limits.aio.storage import MemoryStorage, RedisClusterStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError, StorageError

from ingest.clock import Clock
from ingest.settings import masked
from schemas.errors import Misconfigured, QuotaExceeded

log = structlog.get_logger(__name__)

TIMEOUT_S = 0.25  # a call waits for Redis no longer than this, once
PAUSE_S = 1.0  # then Redis is left alone for so long


def parsed(text: str) -> tuple[RateLimitItem, ...]:
    """
    Quotas as a person writes them.

    Raises:
        Misconfigured: they are not.

    >>> [str(one) for one in parsed("100/second; 5000/hour")]
    ['100 per 1 second', '5000 per 1 hour']
    """
    try:
        return tuple(parse_many(text))
    except ValueError as error:
        raise Misconfigured(f"{text!r} is no quota such as '100/second; 5000/hour'") from error


class Quotas:
    """The quotas of every client. For one event loop."""

    def __init__(
        self, quotas: Sequence[RateLimitItem], redis_url: str, clock: Clock, *, prefix: str
    ) -> None:
        """
        `prefix`: before the keys in Redis.

        Raises:
            Misconfigured: the URL is no address of a store.
        """
        self._quotas = tuple(quotas)
        self._clock = clock
        self._storage = _storage(redis_url, f"{prefix}quota")
        self._shared = SlidingWindowCounterRateLimiter(self._storage)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._rest_until_s = float("-inf")

    async def take(self, client_id: str) -> None:
        """
        One call of this client.

        Raises:
            QuotaExceeded: it has had its share; the error says when there is more.
        """
        if self._clock.monotonic_s() >= self._rest_until_s:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await self._take(self._shared, client_id)
            except (StorageError, TimeoutError) as error:
                log.warning("quota.no_store", error=f"{type(error).__name__}: {error}")
                self._rest_until_s = self._clock.monotonic_s() + PAUSE_S
            else:
                return
        await self._take(self._own, client_id)

    async def close(self) -> None:
        """Give the connections up."""
        bridge: Any = self._storage.bridge
        await bridge.get_connection().aclose()

    async def _take(self, limiter: SlidingWindowCounterRateLimiter, client_id: str) -> None:
        for quota in self._quotas:
            if not await limiter.hit(quota, client_id):
                window = await limiter.get_window_stats(quota, client_id)
                wait_s = max(0.0, window.reset_time - self._clock.now_ms() / 1000)
                raise QuotaExceeded(f"the quota of {quota} is used up", wait_s)


def _storage(url: str, prefix: str) -> RedisStorage:
    """Redis as `MILLSTREAM_REDIS_URL` names it, in the words of `limits`."""
    scheme = urlsplit(url).scheme
    options: dict[str, Any] = {
        "implementation": "redispy",
        "wrap_exceptions": True,
        "key_prefix": prefix,
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
    }
    try:
        match scheme:
            case "redis" | "rediss":
                return RedisStorage(f"async+{url}", **options)
            case "unix":
                return RedisStorage(f"async+redis+{url}", **options)
            case "redis+cluster" | "rediss+cluster":
                address = url.replace("rediss+", "redis+", 1)
                options |= dict(parse_qsl(urlsplit(url).query))
                options |= {"ssl": True} if scheme.startswith("rediss") else {}
                return RedisClusterStorage(f"async+{address}", **options)
    except (ConfigurationError, ValueError) as error:
        raise Misconfigured(f"no store for quotas at {masked(url)}: {error}") from error
    raise Misconfigured(f"no store for quotas at {masked(url)}: unknown scheme {scheme!r}")
