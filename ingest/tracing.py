"""
Traces: which requests are followed, and the spans that tell of them.

A span is handed over when it has ended, with the times that it has on the caller's clock: nothing
is open in between, so what a crash leaves undone leaves no half of a span. `ingest.otlp` sends
spans away; without an endpoint nothing of it is loaded.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol, TypeAlias

from ingest.clock import Clock
from ingest.log import Headers
from ingest.metrics import MemoryMetrics, Metrics
from ingest.settings import Settings
from ingest.trace_context import SAMPLED, SpanContext, read

Value: TypeAlias = str | int | float | bool


class Kind(StrEnum):
    """OpenTelemetry's kinds of spans."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"
    PRODUCER = "producer"
    CONSUMER = "consumer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that was done for one request."""

    name: str
    kind: Kind = Kind.INTERNAL
    context: SpanContext
    parent: SpanContext | None = None  # None: the trace begins here
    start_ns: int  # since the epoch
    end_ns: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str = ""  # why it failed; empty: it did not

    def __post_init__(self) -> None:
        if self.end_ns < self.start_ns:
            raise ValueError(f"{self.name} ends before it starts: {self.end_ns - self.start_ns} ns")


class Ids(Protocol):
    """Names of traces and spans."""

    def trace_id(self) -> str: ...

    def span_id(self) -> str: ...


class RandomIds:
    """As OpenTelemetry makes them."""

    def __init__(self) -> None:
        self._random = random.Random()  # noqa: S311 - a name, not a secret

    def trace_id(self) -> str:
        return f"{self._random.getrandbits(128) or 1:032x}"

    def span_id(self) -> str:
        return f"{self._random.getrandbits(64) or 1:016x}"


class CountedIds:
    """
    For tests: 1, 2, 3, ...

    >>> CountedIds().span_id()
    '0000000000000001'
    """

    def __init__(self) -> None:
        self._last = 0

    def trace_id(self) -> str:
        return f"{self._next():032x}"

    def span_id(self) -> str:
        return f"{self._next():016x}"

    def _next(self) -> int:
        self._last += 1
        return self._last


class Timeline:
    """
    From the monotonic clock to nanoseconds since the epoch, by one look at both clocks: what
    follows one another in a trace does so on it, even if the wall clock jumps. Two of them differ
    by as much as the wall clock is coarse.

    >>> from ingest.clock import ManualClock
    >>> clock = ManualClock(now_ms=1_000)
    >>> clock.advance(2.0)
    >>> Timeline(clock).ns(0.5)
    1500000000
    """

    def __init__(self, clock: Clock) -> None:
        self._zero_ns = clock.now_ms() * 1_000_000 - round(clock.monotonic_s() * 1e9)

    def ns(self, monotonic_s: float) -> int:
        """Since the epoch."""
        return self._zero_ns + round(monotonic_s * 1e9)


@dataclass(slots=True, kw_only=True, eq=False)
class Trace:
    """
    What is known of one request's trace while it is served. One thread at a time.

    Where it is not sampled, `own` and `out` are the caller's: it is passed on as it came.
    """

    own: SpanContext  # the span of this request here
    out: SpanContext  # whoever gets the answer goes on from this one
    parent: SpanContext | None
    sampled: bool
    ids: Ids
    cause: str = ""  # why its batch was handed on
    error: str = ""  # why it was not answered as it should be
    children: list[Span] = field(default_factory=list)
    line: Timeline | None = None  # of all its spans here, once there is one

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.own.trace_id

    def on(self, clock: Clock) -> Timeline:
        """The timeline of all its spans here, from the first look on."""
        if self.line is None:
            self.line = Timeline(clock)
        return self.line

    def child(
        self,
        name: str,
        times_ns: tuple[int, int],
        attributes: Mapping[str, Value] | None = None,
        error: str = "",
    ) -> None:
        """Note a step that was taken for this request."""
        context = SpanContext(self.own.trace_id, self.ids.span_id(), self.own.flags, self.own.state)
        start_ns, end_ns = times_ns
        self.children.append(
            Span(
                name=name,
                context=context,
                parent=self.own,
                start_ns=start_ns,
                end_ns=max(start_ns, end_ns),
                attributes=attributes or {},
                error=error,
            )
        )


class Tracer(Protocol):
    """
    Decides which requests are followed, and takes their spans. Thread-safe; never blocks, and
    raises nothing that the outside has to do with.

    Implementations must pass `tests.contracts.tracing.TracerContract`.
    """

    @property
    def starts(self) -> bool:
        """Whether a request without a caller's trace may begin one."""

    def begin(self, headers: Headers) -> Trace | None:
        """
        The trace of a request with these headers; None: it has none.

        Malformed headers are counted and ignored. A caller's decision not to sample is respected.
        """

    def record(self, spans: Sequence[Span]) -> None:
        """Take spans that have ended."""

    def close(self) -> None:
        """Send what waits, within a bound. Idempotent."""


class Limit:
    """
    At most so many in a second, at once if need be: a token bucket. Thread-safe.

    >>> from ingest.clock import ManualClock
    >>> limit = Limit(2, ManualClock())
    >>> limit.passes(), limit.passes(), limit.passes()
    (True, True, False)
    """

    def __init__(self, per_s: float, clock: Clock) -> None:
        if per_s < 1:
            raise ValueError(f"at least 1 in a second, got {per_s}")
        self._per_s, self._clock = per_s, clock
        self._lock = threading.Lock()
        self._left, self._at_s = per_s, clock.monotonic_s()

    def passes(self) -> bool:
        """Whether one more may."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            gained = (now_s - self._at_s) * self._per_s
            self._left, self._at_s = min(self._per_s, self._left + gained), now_s
            if self._left < 1:
                return False
            self._left -= 1
            return True


class Sampler:
    """
    The part of a Tracer that decides: the caller, where there is one; else by the trace's id.

    The id decides as OpenTelemetry's `TraceIdRatioBased` lets it. Callers decide for themselves,
    and must not be able to slow down others: what is over the limit is passed on as it came.
    """

    def __init__(
        self, ratio: float, ids: Ids, metrics: Metrics, limit: Limit | None = None
    ) -> None:
        """`ratio`: of requests without a caller's trace that begin one. `limit` None: no limit."""
        if not 0 <= ratio <= 1:
            raise ValueError(f"the ratio of traces is between 0 and 1, got {ratio}")
        self._limit = limit
        self._bound = round(ratio * 2**64)
        self._ids = ids
        self._metrics = metrics
        self.starts = self._bound > 0

    def begin(self, headers: Headers) -> Trace | None:
        """As `Tracer.begin`."""
        parent = caller(headers, self._metrics) if headers else None
        if parent is not None:
            if parent.sampled and self._passes():
                return self._followed(parent, parent)
            return _passed_on(parent)
        if not self.starts:
            return None
        trace_id = self._ids.trace_id()
        if int(trace_id[16:], 16) >= self._bound or not self._passes():
            return None
        return self._followed(SpanContext(trace_id, "", SAMPLED), None)

    def _passes(self) -> bool:
        passes = self._limit is None or self._limit.passes()
        if not passes:
            self._metrics.count("tracing.limited")
        return passes

    def _followed(self, of: SpanContext, parent: SpanContext | None) -> Trace:
        own, out = (
            SpanContext(of.trace_id, self._ids.span_id(), of.flags, of.state) for _ in range(2)
        )
        return Trace(own=own, out=out, parent=parent, sampled=True, ids=self._ids)


def caller(headers: Headers, metrics: Metrics) -> SpanContext | None:
    """The caller's span. What is malformed is counted, and as if it were not there."""
    found, ignored = read(headers)
    for one in ignored:
        metrics.count("tracing.malformed", header=one.header)
    return found


def _passed_on(parent: SpanContext) -> Trace:
    return Trace(own=parent, out=parent, parent=parent, sampled=False, ids=_NO_IDS)


class NoTracer:
    """Follows nothing; a caller's trace goes through it unchanged, from request to answer."""

    starts = False

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or MemoryMetrics()

    def begin(self, headers: Headers) -> Trace | None:
        parent = caller(headers, self._metrics) if headers else None
        return None if parent is None else _passed_on(parent)

    def record(self, spans: Sequence[Span]) -> None:
        """Nobody asked for them."""

    def close(self) -> None:
        """Nothing waits."""


class MemoryTracer:
    """
    Spans to look at in a test.

    >>> tracer = MemoryTracer(ratio=1.0)
    >>> trace = tracer.begin(())
    >>> trace.child("read", (0, 5))
    >>> tracer.record(trace.children)
    >>> [span.name for span in tracer.spans]
    ['read']
    """

    def __init__(self, ratio: float = 0.0, metrics: Metrics | None = None) -> None:
        self._sampler = Sampler(ratio, CountedIds(), metrics or MemoryMetrics())
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    @property
    def starts(self) -> bool:
        return self._sampler.starts

    @property
    def spans(self) -> list[Span]:
        """In the order in which they were recorded."""
        with self._lock:
            return list(self._spans)

    def begin(self, headers: Headers) -> Trace | None:
        return self._sampler.begin(headers)

    def record(self, spans: Sequence[Span]) -> None:
        with self._lock:
            self._spans += spans

    def close(self) -> None:
        """They stay."""


_NO_IDS: Final = CountedIds()
NO_TRACER: Final = NoTracer()


def open_tracer(settings: Settings, instance: str, clock: Clock, metrics: Metrics) -> Tracer:
    """What the settings ask for. `instance`: of this process. The caller closes it."""
    if not settings.otlp_endpoint:
        return NoTracer(metrics)
    from ingest.otlp import OtlpTracer  # noqa: PLC0415 - costs 0.3 s and is rarely wanted

    limit = Limit(settings.trace_per_s, clock)
    sampler = Sampler(settings.trace_ratio, RandomIds(), metrics, limit)
    return OtlpTracer(settings.otlp_endpoint, instance, sampler, metrics)
