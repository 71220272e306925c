"""
Who gets in, and what is written down of it: token, scope, quota; metrics, and an audit log of
what was refused, in which a client is a hash and what it sent is a size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import structlog

from inference.auth import Client, Scope, Tokens, hashed
from inference.outcome import Outcome, outcome
from inference.quota import Quotas
from ingest.clock import Clock
from ingest.metrics import Metrics
from schemas.errors import Overloaded, Unauthenticated

log = structlog.get_logger(__name__)

Protocol = Literal["http", "grpc"]
OK: Final = "ok"
ALL_SCOPES: Final = frozenset(Scope)


@dataclass(slots=True, kw_only=True)
class Call:
    """One call, as far as it is known."""

    protocol: Protocol
    route: str  # of a closed set: it labels metrics
    address: str  # of the peer
    start_s: float
    client_id: str = ""
    size_bytes: int = 0


class Admission:
    """Lets calls in, and notes how they end. For one event loop."""

    def __init__(
        self,
        tokens: Tokens | None,
        quotas: Quotas | None,
        clock: Clock,
        metrics: Metrics,
        max_waiting_bytes: int = 64 << 20,
    ) -> None:
        """`tokens` None: everybody may do everything. `max_waiting_bytes`: of all bodies held."""
        self._tokens = tokens
        self._quotas = quotas
        self._clock = clock
        self._metrics = metrics
        self._max_bytes = max_waiting_bytes
        self._bytes = 0

    def call(self, protocol: Protocol, route: str, address: str) -> Call:
        """A call that has just come."""
        return Call(
            protocol=protocol, route=route, address=address, start_s=self._clock.monotonic_s()
        )

    async def admit(self, call: Call, authorization: str | None, scope: Scope | None) -> None:
        """
        Let the call in. `scope` None: any client may.

        Raises:
            Unauthenticated, Forbidden, QuotaExceeded: it may not.
        """
        call.client_id = f"address {call.address}"
        client = Client(client_id=call.client_id, scopes=ALL_SCOPES)
        if self._tokens is not None:
            try:
                client = self._tokens.client(authorization)
            except Unauthenticated:
                await self._take(call.client_id)  # so guessing has a quota too
                raise
        call.client_id = client.client_id
        if scope is not None:
            client.check(scope)
        await self._take(call.client_id)

    def hold(self, call: Call, size_bytes: int) -> None:
        """
        Count bytes that the call keeps in memory until it has ended.

        Raises:
            Overloaded: all calls together hold as many as may be.
        """
        if self._bytes + size_bytes > self._max_bytes:
            raise Overloaded(f"calls of {self._bytes} bytes wait already, come back later")
        self._bytes += size_bytes
        call.size_bytes += size_bytes

    def answered(self, call: Call) -> None:
        """The call has its answer."""
        self._ended(call, OK)

    def refused(self, call: Call, error: Exception, told: Outcome | None = None) -> Outcome:
        """
        How the call's error is answered; it is counted and written down.

        `told`: where the protocol knows it better.
        """
        told = told or outcome(error)
        if told.reason == "internal":
            log.error("network.internal_error", route=call.route, exc_info=error)
        self._ended(call, told.code)
        self._metrics.count("network.refused", protocol=call.protocol, reason=told.reason)
        log.warning(
            "audit.refused",
            protocol=call.protocol,
            route=call.route,
            client=hashed(call.client_id or f"address {call.address}"),
            reason=told.reason,
            size_bytes=call.size_bytes,
        )
        return told

    def dropped(self, address: str, reason: str, size_bytes: int) -> None:
        """A connection that was closed before it made a call."""
        self._metrics.count("network.refused", protocol="http", reason=reason)
        log.warning(
            "audit.dropped",
            client=hashed(f"address {address}"),
            reason=reason,
            size_bytes=size_bytes,
        )

    async def close(self) -> None:
        """Give the connections up."""
        if self._quotas is not None:
            await self._quotas.close()

    async def _take(self, client_id: str) -> None:
        if self._quotas is not None:
            await self._quotas.take(hashed(client_id))

    def _ended(self, call: Call, code: str) -> None:
        self._bytes -= call.size_bytes
        took_s = self._clock.monotonic_s() - call.start_s
        protocol, route = call.protocol, call.route
        self._metrics.count("network.requests", protocol=protocol, route=route, code=code)
        self._metrics.observe("network.latency_s", took_s, protocol=protocol, route=route)
