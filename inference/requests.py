"""From records of the requests topic to requests that can be answered, or to why they cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from ingest.log import RecordBatch, TopicPartition
from ingest.tracing import NO_TRACER, Trace, Tracer
from schemas.codec import Decoder
from schemas.errors import Reason, Rejected
from schemas.events import RecommendationRequest
from schemas.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request and where it stands on its topic."""

    batch: RecordBatch
    index: int
    request: RecommendationRequest
    trace: Trace | None = field(default=None, compare=False)  # most have none

    @property
    def names(self) -> dict[str, str]:
        """What log lines call it by. No user: lines are kept by people who need not know."""
        named = {"request_id": self.request.request_id}
        return named if self.trace is None else named | {"trace_id": self.trace.trace_id}

    @property
    def timestamp_ms(self) -> int:
        """Kafka's timestamp: deadlines count from it."""
        return int(self.batch.timestamps_ms[self.index])

    @property
    def now_ms(self) -> int:
        """Event time: the "now" of windows."""
        given = self.request.event_time
        return self.timestamp_ms if given is None else given


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A record that is no request."""

    batch: RecordBatch
    index: int
    rejected: Rejected
    trace: Trace | None = field(default=None, compare=False)


Entry: TypeAlias = Asked | Bad


def place(entry: Entry) -> TopicPartition:
    """The partition that the entry came from."""
    return TopicPartition(entry.batch.topic, entry.batch.partition)


def next_offset(entry: Entry) -> int:
    """Where to go on once this entry, and all before it, are answered."""
    following = entry.index + 1
    if following < len(entry.batch):
        return int(entry.batch.offsets[following])
    return entry.batch.next_offset


class RequestReader:
    """
    Decodes batches of requests, one by one: most batches hold a few, for which the column reader's
    fixed cost (0.6 ms) is that of 30 requests. Not thread-safe.
    """

    def __init__(self, registry: Registry, tracer: Tracer = NO_TRACER) -> None:
        self._decoder = Decoder(registry, RecommendationRequest)
        self._tracer = tracer

    def read(self, batch: RecordBatch) -> list[Entry]:
        """
        One entry a record, in offset order.

        Raises:
            RegistryUnavailable: a writer's schema is not known yet and cannot be asked for.
        """
        if not batch.headers and not self._tracer.starts:
            return [self._entry(batch, at, None) for at in range(len(batch))]
        begin, headers = self._tracer.begin, batch.headers
        return [self._entry(batch, at, begin(headers.get(at, ()))) for at in range(len(batch))]

    def _entry(self, batch: RecordBatch, at: int, trace: Trace | None) -> Entry:
        try:
            request = _read(self._decoder, batch.keys[at], batch.values[at])
        except Rejected as rejected:
            return Bad(batch=batch, index=at, rejected=rejected, trace=trace)
        return Asked(batch=batch, index=at, request=request, trace=trace)


def _read(
    decoder: Decoder[RecommendationRequest], key: bytes | None, value: bytes | None
) -> RecommendationRequest:
    if value is None:
        raise Rejected(Reason.MISSING_FIELD, "a request needs a value")
    request = decoder.decode(value)
    if key is None:
        raise Rejected(Reason.NULL_KEY, "a request's key is its user id")
    if key != request.user_id.encode():
        detail = f"key {key!r:.100} is not the user id {request.user_id!r:.100}"
        raise Rejected(Reason.KEY_MISMATCH, detail)
    return request


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one request may ask for."""

    max_k: int = 500
    max_candidates: int = 5_000


def problem(request: RecommendationRequest, limits: Limits) -> str:
    """
    What is wrong with a request, told to its sender; empty: nothing.

    >>> problem(RecommendationRequest(request_id="r", user_id="u", k=0), Limits())
    'k must be between 1 and 500, got 0'
    """
    if _plain(request, limits):
        return ""
    given = len(request.candidates)
    deadline = request.deadline_ms
    found = [
        ("" if request.request_id else "request_id is missing"),
        ("" if request.user_id else "user_id is missing"),
        (
            ""
            if 1 <= request.k <= limits.max_k
            else f"k must be between 1 and {limits.max_k}, got {request.k}"
        ),
        (
            f"at most {limits.max_candidates} candidates can be ranked, got {given}"
            if given > limits.max_candidates
            else ""
        ),
        (
            f"at most {limits.max_candidates} items can be excluded, got {len(request.exclude)}"
            if len(request.exclude) > limits.max_candidates
            else ""
        ),
        ("" if all(request.candidates) else "a candidate's item id is empty"),
        (
            f"deadline_ms must be at least 1, got {deadline}"
            if deadline is not None and deadline < 1
            else ""
        ),
    ]
    return "; ".join(text for text in found if text)


def _plain(request: RecommendationRequest, limits: Limits) -> bool:
    """Whether it is one of the many that ask for nothing special, and for nothing wrong."""
    return bool(
        request.request_id
        and request.user_id
        and 1 <= request.k <= limits.max_k
        and not request.candidates
        and not request.exclude
        and request.deadline_ms is None
    )
