"""
Who gets in, and what is written down of it: token, scope, quota; metrics, and an audit log of
what was refused, in which a client is a hash and what it sent is a size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import structlog

from inference.auth import Client, Scope, Tokens, hashed
from inference.outcome import Outcome, outcome
from inference.quota import Quotas
from ingest.clock import Clock
from ingest.log import Headers
from ingest.metrics import Metrics
from ingest.tracing import NO_TRACER, Kind, Span, Trace, Tracer, Value
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
    request_id: str = ""  # as the caller calls it, once that is known
    trace: Trace | None = None
    span: Traced | None = None  # None: it is not followed

    @property
    def names(self) -> dict[str, str]:
        """What log lines call it by, as far as is known."""
        trace_id = "" if self.trace is None else self.trace.trace_id
        known = {"request_id": self.request_id, "trace_id": trace_id}
        return {name: value for name, value in known.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What a call brings for its span."""

    headers: Headers
    name: str
    attributes: Callable[[], Mapping[str, Value]] = dict  # asked for where it is recorded
    status: str = ""  # the attribute that says how it ended


class Admission:
    """Lets calls in, and notes how they end. For one event loop."""

    def __init__(
        self,
        tokens: Tokens | None,
        quotas: Quotas | None,
        clock: Clock,
        metrics: Metrics,
        max_waiting_bytes: int = 64 << 20,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """`tokens` None: everybody may do everything. `max_waiting_bytes`: of all bodies held."""
        self._tokens = tokens
        self._quotas = quotas
        self._clock = clock
        self._metrics = metrics
        self._max_bytes = max_waiting_bytes
        self._tracer = tracer
        self._bytes = 0

    def call(
        self, protocol: Protocol, route: str, address: str, span: Traced | None = None
    ) -> Call:
        """A call that has just come. `span` None: it is not to be followed."""
        return Call(
            protocol=protocol,
            route=route,
            address=address,
            start_s=self._clock.monotonic_s(),
            span=span,
            trace=None if span is None else self._tracer.begin(span.headers),
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
        self._ended(call, OK, 200)

    def refused(self, call: Call, error: Exception, told: Outcome | None = None) -> Outcome:
        """
        How the call's error is answered; it is counted and written down.

        `told`: where the protocol knows it better.
        """
        told = told or outcome(error)
        if told.reason == "internal":
            log.error("network.internal_error", route=call.route, exc_info=error, **call.names)
        self._ended(call, told.code, told.status, told.message)
        self._metrics.count("network.refused", protocol=call.protocol, reason=told.reason)
        log.warning(
            "audit.refused",
            protocol=call.protocol,
            route=call.route,
            client=hashed(call.client_id or f"address {call.address}"),
            reason=told.reason,
            size_bytes=call.size_bytes,
            **call.names,
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

    def _ended(self, call: Call, code: str, status: int, message: str = "") -> None:
        self._bytes -= call.size_bytes
        now_s = self._clock.monotonic_s()
        protocol, route = call.protocol, call.route
        self._metrics.count("network.requests", protocol=protocol, route=route, code=code)
        trace = call.trace if call.trace is not None and call.trace.sampled else None
        self._metrics.observe(
            "network.latency_s",
            now_s - call.start_s,
            trace_id="" if trace is None else trace.trace_id,
            protocol=protocol,
            route=route,
        )
        if trace is not None and call.span is not None:
            # What is the caller's own fault (4xx) is no error of ours.
            error = f"{code}: {message}" if status >= 500 else trace.error
            told = status if protocol == "http" else code.upper()
            self._tracer.record(self._spans(call, trace, call.span, (now_s, told, error)))

    def _spans(
        self, call: Call, trace: Trace, span: Traced, end: tuple[float, Value, str]
    ) -> list[Span]:
        """The span of a call, and all below it."""
        end_s, status, error = end
        line = trace.on(self._clock)
        attributes = dict(span.attributes())
        attributes[span.status] = status
        if call.request_id:
            attributes["millstream.request_id"] = call.request_id
        root = Span(
            name=span.name,
            kind=Kind.SERVER,
            context=trace.own,
            parent=trace.parent,
            start_ns=line.ns(call.start_s),
            end_ns=line.ns(end_s),
            attributes=attributes,
            error=error,
        )
        return [root, *trace.children]
