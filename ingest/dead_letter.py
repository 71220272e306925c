"""
Dead letters: what was refused, why, and all that is needed to look at it or send it again.

They are on the log before the position moves past the record. A crash in between repeats one: its
identity is (topic, partition, offset) of the original, and readers drop repeats. Where too large a
share is refused, the fault is not in single records: the consumer stops instead of draining its
topic into dead letters.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import structlog

from ingest.clock import Clock
from ingest.log import Log, Outgoing, Producer, RecordBatch, Source, TopicPartition
from schemas.errors import BrokerUnavailable, Misconfigured, Rejected
from schemas.events import DeadLetter, Header

if TYPE_CHECKING:
    from ingest.metrics import Metrics


class LetterCodec(Protocol):
    """The part of `schemas.codec.Codec[DeadLetter]` that is needed here."""

    def encode(self, value: DeadLetter) -> bytes: ...

    def decode(self, data: bytes | None) -> DeadLetter: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterPolicy:
    """How much is kept back before it is sent, and how much is too much."""

    max_share: float = 0.2  # of the records in the window
    min_refused: int = 100  # fewer in the window never stop a consumer
    window_s: float = 60.0
    max_buffered: int = 1000  # letters; more are sent at once
    flush_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share must be in (0, 1], got {self.max_share}")


@dataclass(frozen=True, slots=True)
class _Refusals:
    """Refusals in one batch, for the window."""

    at_s: float
    tp: TopicPartition
    start_offset: int
    next_offset: int
    reasons: Counter[str]


class _Window:
    """
    Refusals of the last seconds, and how many records they came from.

    Records are counted by offsets, from the first refusal's batch to the last one's: so batches
    without a refusal, of which nobody tells us, count too.
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._refusals: deque[_Refusals] = deque()

    def add(self, now_s: float, batch: RecordBatch, reason: str) -> None:
        tp = TopicPartition(batch.topic, batch.partition)
        last = self._refusals[-1] if self._refusals else None
        if last is None or (last.tp, last.start_offset) != (tp, batch.start_offset):
            last = _Refusals(now_s, tp, batch.start_offset, batch.next_offset, Counter())
            self._refusals.append(last)
        last.reasons[reason] += 1
        while self._refusals[0].at_s < now_s - self._span_s:
            self._refusals.popleft()

    def reasons(self) -> Counter[str]:
        """Refusals by reason."""
        return sum((r.reasons for r in self._refusals), Counter())

    def records(self) -> int:
        """Records among which they were."""
        first: dict[TopicPartition, int] = {}
        end: dict[TopicPartition, int] = {}
        for r in self._refusals:
            first[r.tp] = min(first.get(r.tp, r.start_offset), r.start_offset)
            end[r.tp] = max(end.get(r.tp, r.next_offset), r.next_offset)
        return sum(end[tp] - first[tp] for tp in first)


class DeadLetters:
    """Collects the refused records of a worker and puts them on the dead-letter topic."""

    def __init__(
        self,
        producer: Producer,
        codec: LetterCodec,
        topic: str,
        clock: Clock,
        policy: DeadLetterPolicy | None = None,
        *,
        metrics: Metrics | None = None,
    ) -> None:
        self._producer = producer
        self._codec = codec
        self._topic = topic
        self._clock = clock
        self._policy = policy or DeadLetterPolicy()
        self._metrics = metrics
        self._window = _Window(self._policy.window_s)
        self._buffer: list[DeadLetter] = []
        self._unjudged = False

    def add(self, batch: RecordBatch, index: int, rejected: Rejected) -> None:
        """
        Refuse the record at `index` of `batch`.

        Raises:
            BrokerUnavailable: the buffer was full and could not be sent.
        """
        self._buffer.append(letter(batch, index, rejected))
        self._window.add(self._clock.monotonic_s(), batch, rejected.reason)
        self._unjudged = True
        if self._metrics is not None:
            self._metrics.count("dead_letters.records", topic=batch.topic, reason=rejected.reason)
        if len(self._buffer) >= self._policy.max_buffered:
            self.flush()

    def flush(self) -> None:
        """
        Return when every refused record is on the dead-letter topic. Call it before the position
        moves.

        Raises:
            Misconfigured: too large a share was refused; the records stay where they are.
            BrokerUnavailable: not delivered; the letters are kept for the next flush.
        """
        self._judge()
        if not self._buffer:
            return
        for one in self._buffer:
            self._send(one)
        self._producer.flush(self._policy.flush_timeout_s)
        self._buffer.clear()

    def _judge(self) -> None:
        if not self._unjudged:
            return
        self._unjudged = False
        reasons = self._window.reasons()
        refused, records = reasons.total(), self._window.records()
        if refused < self._policy.min_refused or refused <= self._policy.max_share * records:
            return
        self._unjudged = True  # and so would the next flush
        counts = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        raise Misconfigured(
            f"{refused} of the last {records} records were refused ({counts}), more than the "
            f"allowed share of {self._policy.max_share:.0%} in {self._policy.window_s:g} s; last: "
            f"{self._buffer[-1].topic}[{self._buffer[-1].partition}] offset "
            f"{self._buffer[-1].offset}: {self._buffer[-1].detail}. Nothing was moved past. "
            "Mend the producer, or see `millstream dead-letters list`"
        )

    def _send(self, one: DeadLetter) -> None:
        try:
            self._producer.send(self._outgoing(one))
        except Rejected:
            size = len(one.value or b"")
            detail = f"{one.detail} (the value of {size} bytes is too large to be kept)"
            self._producer.send(self._outgoing(replace(one, detail=detail, value=None)))

    def _outgoing(self, one: DeadLetter) -> Outgoing:
        return Outgoing(topic=self._topic, key=one.key, value=self._codec.encode(one))


def letter(batch: RecordBatch, index: int, rejected: Rejected) -> DeadLetter:
    """The refused record with its reason, origin, bytes and headers."""
    headers = batch.headers.get(index, ())
    return DeadLetter(
        reason=str(rejected.reason),
        detail=rejected.detail,
        topic=batch.topic,
        partition=batch.partition,
        offset=int(batch.offsets[index]),
        timestamp=int(batch.timestamps_ms[index]),
        key=batch.keys[index],
        value=batch.values[index],
        headers=tuple(Header(name=name, value=value) for name, value in headers),
    )


def original(one: DeadLetter, *, topic: str | None = None) -> Outgoing:
    """The refused record as it was, to be produced again: placed anew by its key."""
    return Outgoing(
        topic=topic or one.topic,
        key=one.key,
        value=one.value,
        timestamp_ms=one.timestamp,
        headers=tuple((h.name, h.value) for h in one.headers),
    )


def without_repeats(letters: Iterable[DeadLetter], remember: int = 100_000) -> Iterator[DeadLetter]:
    """
    Letters whose identity is not among the last `remember` ones.

    A repeat comes from a restart, soon after its original: memory may be bounded.
    """
    seen: OrderedDict[tuple[str, int, int], None] = OrderedDict()
    for one in letters:
        identity = (one.topic, one.partition, one.offset)
        if identity in seen:
            continue
        seen[identity] = None
        if len(seen) > remember:
            seen.popitem(last=False)
        yield one


def read_dead_letters(
    source: Source, log: Log, codec: LetterCodec, topic: str, *, patience_s: float = 10.0
) -> Iterator[DeadLetter]:
    """
    Every dead letter that is on the topic now, each once, partition by partition.

    Raises:
        BrokerUnavailable: nothing came for `patience_s` although there is more.
        Misconfigured: no such topic.
    """
    return without_repeats(_stored(source, log, codec, topic, patience_s))


def _stored(
    source: Source, log: Log, codec: LetterCodec, topic: str, patience_s: float
) -> Iterator[DeadLetter]:
    for partition, (first, end) in sorted(log.bounds(topic).items()):
        at = first
        if at < end:
            source.assign({TopicPartition(topic, partition): at})
        while at < end:
            batch = source.poll(500, patience_s)
            if batch is None:
                raise BrokerUnavailable(f"{topic}[{partition}] gives nothing from {at} to {end}")
            yield from _decoded(codec, batch)
            at = batch.next_offset


def _decoded(codec: LetterCodec, batch: RecordBatch) -> Iterator[DeadLetter]:
    for offset, value in zip(batch.offsets, batch.values, strict=True):
        try:
            yield codec.decode(value)
        except Rejected as error:
            structlog.get_logger("dead-letters").warning(
                "dead_letters.unreadable",
                topic=batch.topic,
                partition=batch.partition,
                offset=int(offset),
                error=str(error),
            )
