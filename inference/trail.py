"""
Requests on their way, as others can follow them: numbers of every batch, and the spans of those
whose trace is sampled.

A batch is shared by its requests. Each followed one gets spans of its own with the batch's times,
rather than a span of the batch with links to all: a trace is then whole by itself, and whoever
looks for a slow request need not follow links into the traces of strangers.

Spans of a request of the log are recorded once its answer is committed: what was not committed is
read again, and told then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from inference.answers import Answered, Answers
from inference.batcher import Cause
from inference.commits import Step, Written
from inference.observed import sampled, served_by
from inference.requests import Asked, Bad, Entry, place
from inference.service import MODEL_FAULT
from ingest.clock import Clock
from ingest.log import GroupSource, Headers, TopicPartition
from ingest.metrics import Metrics
from ingest.trace_context import SpanContext
from ingest.tracing import NO_TRACER, Kind, Span, Trace, Tracer, Value
from schemas.events import Arm, Status

log = structlog.get_logger(__name__)

LOOK_S: Final = 1.0  # how often the lag is looked at
NAMED: Final = 3  # of the requests of a batch whose model failed: where all fail, the model is bad


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """What the followed requests of a batch have in common, worked out once."""

    reasons: Sequence[str]
    ages_ms: Sequence[int]
    rows: Mapping[tuple[int, str], int]  # by version and arm

    @classmethod
    def of(cls, part: Answered) -> _Batch:
        return cls(
            reasons=part.reasons(),
            ages_ms=part.row_ages().tolist(),
            rows=served_by(part),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What spans call the ends of the pipeline."""

    group: str = ""
    answers_topic: str = "recommendations"


class Trail:
    """
    Watches one pipeline. Each method belongs to some of its threads; none of them waits.

    `traces` and `answered` cost a batch without traces a look at each request.
    """

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        tracer: Tracer = NO_TRACER,
        names: Names | None = None,
        padded: Callable[[int], int] = int,
    ) -> None:
        """`padded`: how many rows a model computes for so many."""
        self._clock = clock
        self._metrics = metrics
        self._tracer = tracer
        self._names = names or Names()
        self._padded = padded
        self._look_at_s = float("-inf")
        self._behind: set[TopicPartition] = set()

    # --- the fetching thread

    def look(self, source: GroupSource) -> None:
        """Tell the lag, now and then."""
        now_s = self._clock.monotonic_s()
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_S
        unread = source.unread()
        # What went to another member is counted there.
        for tp in self._behind - unread.keys():
            self._metrics.gauge("serve.unread", 0, partition=str(tp.partition))
        for tp, count in unread.items():
            self._metrics.gauge("serve.unread", count, partition=str(tp.partition))
        self._behind = set(unread)

    # --- the threads that answer

    def dispatched(self, entries: Sequence[Entry], cause: Cause | None) -> None:
        """A batch was taken."""
        if cause is not None:
            self._metrics.count("serve.batches", cause=cause.value)
        first = entries[0]
        age_ms = self._clock.now_ms() - int(first.batch.timestamps_ms[first.index])
        age_s = max(0, age_ms) / 1e3
        self._metrics.observe("serve.queue_age_s", age_s)
        for one in entries:
            if one.trace is not None and cause is not None:
                one.trace.cause = cause.value

    def answered(self, asked: Sequence[Asked], answers: Answers) -> dict[int, Headers]:
        """
        Note what became of n requests.

        Returns:
            Headers for the answers of those that came with a trace, by place.
        """
        for index, part in answers.parts:
            self._count_padding(part)
            _name_faults([asked[i] for i in index], part)
        traces = {i: one.trace for i, one in enumerate(asked) if one.trace is not None}
        if any(trace.sampled for trace in traces.values()):
            self._note(asked, answers)
        return {i: trace.out.headers() for i, trace in traces.items()}

    # --- the committing thread

    def committed(self, run: Sequence[Step[Written]], since_s: float) -> None:
        """The answers of a run are on their topic. `since_s`: when the commit began."""
        now_ms, now_s = self._clock.now_ms(), self._clock.monotonic_s()
        entries = [one for part in run for one in part.entries]
        followed = {i: trace for i, one in enumerate(entries) if (trace := _followed(one))}
        traces = {i: trace.trace_id for i, trace in followed.items()}
        took_s = np.maximum(0, now_ms - timestamps_ms(entries)) / 1e3
        self._metrics.observe_all("serve.answer_s", took_s, traces=traces)
        shown = next(iter(traces.values()), "")
        self._metrics.observe("serve.latency_s", now_s - since_s, trace_id=shown, stage="commit")
        for i, trace in followed.items():
            line = trace.on(self._clock)
            times_ns = (line.ns(since_s), line.ns(now_s))
            self._tracer.record(self._whole(entries[i], trace, times_ns))

    # --- the thread that records answers given over the network

    def recorded(self, asked: Sequence[Asked], since_s: float) -> None:
        """The answers are on their topic; their callers have had them for a while."""
        now_s = self._clock.monotonic_s()
        for trace in (found for one in asked if (found := _followed(one))):
            line = trace.on(self._clock)
            self._tracer.record([self._sent(trace, (line.ns(since_s), line.ns(now_s)))])

    # --- spans

    def _note(self, asked: Sequence[Asked], answers: Answers) -> None:
        """The steps that were taken for the followed requests."""
        for i, answer in answers.closed.items():
            trace = asked[i].trace
            if trace is not None and answer.status is not Status.OK:
                trace.error = f"{answer.status.value}: {answer.message or ''}"
        for _, part in answers.parts:
            if followed := sampled(part.batch.asked):
                batch = _Batch.of(part)
                for at in followed:
                    self._note_steps(part, at, batch)

    def _note_steps(self, part: Answered, at: int, batch: _Batch) -> None:
        one, times = part.batch.asked[at], part.times
        trace, reason = one.trace, batch.reasons[at]
        if trace is None:
            return
        trace.error = f"fallback: {reason}" if reason else ""
        line = trace.on(self._clock)
        read_ns, score_ns = line.ns(times.read_at_s), line.ns(times.score_at_s)
        assemble_ns = read_ns + 1_000 * times.read
        row: dict[str, Value] = {"millstream.row.stale": bool(part.found.stale[at])}
        if batch.ages_ms[at] >= 0:
            row["millstream.row.age_ms"] = batch.ages_ms[at]
        trace.child("queue", (min(1_000_000 * one.timestamp_ms, read_ns), read_ns))
        trace.child("read", (read_ns, assemble_ns), row, part.found.reasons[at])
        trace.child("assemble", (assemble_ns, assemble_ns + 1_000 * times.assemble))
        trace.child(
            "score",
            (score_ns, score_ns + 1_000 * times.score),
            self._scored(part, at, trace, batch.rows),
            part.served[at].reason,
        )

    def _scored(
        self, part: Answered, at: int, trace: Trace, rows: Mapping[tuple[int, str], int]
    ) -> dict[str, Value]:
        got = part.served[at]
        count = rows[got.ref.version, got.arm.value]
        found: dict[str, Value] = {
            "millstream.model.name": got.ref.name,
            "millstream.model.version": got.ref.version,
            "millstream.arm": got.arm.value,
            "millstream.batch.rows": count,
            "millstream.batch.padded": self._padded(count) if got.arm is not Arm.NONE else count,
        }
        if trace.cause:
            found["millstream.batch.cause"] = trace.cause
        return found

    def _whole(self, entry: Entry, trace: Trace, times_ns: tuple[int, int]) -> list[Span]:
        """The span of a request of the log, and all below it."""
        batch, index = entry.batch, entry.index
        attributes: dict[str, Value] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": batch.topic,
            "messaging.destination.partition.id": str(batch.partition),
            "messaging.kafka.offset": int(batch.offsets[index]),
        }
        if self._names.group:
            attributes["messaging.consumer.group.name"] = self._names.group
        spans = list(trace.children)
        error = trace.error
        if isinstance(entry, Bad):
            error = f"dead letter: {entry.rejected}"
        else:
            attributes["messaging.message.conversation_id"] = entry.request.request_id
            spans.append(self._sent(trace, times_ns))
        start_ns = min(1_000_000 * int(batch.timestamps_ms[index]), times_ns[1])
        root = Span(
            name=f"process {batch.topic}",
            kind=Kind.CONSUMER,
            context=trace.own,
            parent=trace.parent,
            start_ns=start_ns,
            end_ns=times_ns[1],
            attributes=attributes,
            error=error,
        )
        return [root, *spans]

    def _sent(self, trace: Trace, times_ns: tuple[int, int]) -> Span:
        return sent(trace.out, trace.own, self._names.answers_topic, times_ns)

    def _count_padding(self, part: Answered) -> None:
        padding = sum(
            self._padded(rows) - rows
            for (_, arm), rows in served_by(part).items()
            if arm != Arm.NONE.value
        )
        self._metrics.count("serve.padded_rows", padding)


def sent(
    context: SpanContext, parent: SpanContext | None, topic: str, times_ns: tuple[int, int]
) -> Span:
    """The span of a record on its way to its topic."""
    return Span(
        name=f"send {topic}",
        kind=Kind.PRODUCER,
        context=context,
        parent=parent,
        start_ns=times_ns[0],
        end_ns=max(times_ns),
        attributes={
            "messaging.system": "kafka",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
        },
    )


def timestamps_ms(entries: Sequence[Entry]) -> NDArray[np.int64]:
    """[n] Kafka's timestamps; entries of one batch stand together, so it is read by slices."""
    return np.concatenate(list(_slices(entries)) or [np.zeros(0, np.int64)])


def _slices(entries: Sequence[Entry]) -> Iterator[NDArray[np.int64]]:
    for _, group in groupby(entries, key=lambda one: id(one.batch)):
        found = list(group)
        yield found[0].batch.timestamps_ms[[one.index for one in found]]


def _followed(entry: Entry) -> Trace | None:
    """Its trace, if it is one that is recorded."""
    trace = entry.trace
    return trace if trace is not None and trace.sampled else None


def _name_faults(asked: Sequence[Asked], part: Answered) -> None:
    """Which requests a model failed on, where it is about them and not about the model."""
    served = zip(asked, part.served, strict=True)
    failed = [one for one, got in served if got.reason == MODEL_FAULT]
    if 0 < len(failed) <= NAMED:
        for one in failed:
            log.warning("serve.model_failed_on", **one.names, partition=place(one).partition)
