"""One question, one answer: produces a request and waits for its recommendation."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from ingest.clock import Clock, SystemClock
from ingest.kafka import KafkaLog, KafkaProducer, KafkaSource
from ingest.log import Log, Outgoing, Source, TopicPartition
from ingest.metrics import MemoryMetrics
from ingest.placement import partition_of
from ingest.settings import Settings
from ingest.topics import Topics
from ingest.tracing import Kind, Span, Trace, open_tracer
from schemas.codec import Codec, Decoder
from schemas.errors import BrokerUnavailable, Rejected
from schemas.events import Item, Offset, Recommendation, RecommendationRequest
from schemas.registry import Registry, RemoteRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """For whom, how many, and after which event."""

    user_id: str
    k: int = 10
    after_offset: Offset | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The answer, the titles of its items that are known, and how long it took."""

    answer: Recommendation
    titles: dict[str, str]
    took_ms: int  # from sending the request to reading the answer
    trace_id: str = ""  # empty: tracing is off


def ask(settings: Settings, question: Question) -> Told:
    """
    Raises:
        BrokerUnavailable: no answer came in time; the message says what to look at.
    """
    clock, topics = SystemClock(), Topics(settings.topic_prefix)
    registry = RemoteRegistry(settings.registry_url, settings.timeout_s)
    known = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    source = KafkaSource(settings.bootstrap_servers, timeout_s=settings.timeout_s)
    try:
        # From here on: the answer is after what stands there now.
        key = question.user_id.encode()
        bounds = known.bounds(topics.recommendations)
        partition = partition_of(key, len(bounds))
        place = TopicPartition(topics.recommendations, partition)
        source.assign({place: bounds[partition][1]})
        start_s = clock.monotonic_s()
        with _traced(settings, clock, topics) as trace:
            request_id = _send(settings, registry, topics, question, trace)
            decoder = Decoder(registry, Recommendation)
            answer = _awaited(source, decoder, request_id, clock, settings.timeout_s)
        took_ms = round(1000 * (clock.monotonic_s() - start_s))
        wanted = {item.item_id for item in answer.items}
        # Another consumer, made only now: one that is given a topic later than at its start, or
        # another topic, looks for it once a second.
        with closing(KafkaSource(settings.bootstrap_servers, timeout_s=settings.timeout_s)) as of:
            titles = titles_of(of, known, topics.item_updates, registry, wanted)
    finally:
        source.close()
    trace_id = trace.trace_id if trace is not None else ""
    return Told(answer=answer, titles=titles, took_ms=took_ms, trace_id=trace_id)


@contextmanager
def _traced(settings: Settings, clock: Clock, topics: Topics) -> Iterator[Trace | None]:
    """Whoever asks by hand wants to see: every question is followed, if anything is."""
    tracer = open_tracer(replace(settings, trace_ratio=1.0), "request", clock, MemoryMetrics())
    trace = tracer.begin(())
    start_s = clock.monotonic_s()
    error = "no answer"
    try:
        yield trace
        error = ""
    finally:
        if trace is not None:
            line = trace.on(clock)
            root = Span(
                name=f"send {topics.requests}",
                kind=Kind.PRODUCER,
                context=trace.own,
                start_ns=line.ns(start_s),
                end_ns=line.ns(clock.monotonic_s()),
                attributes={
                    "messaging.system": "kafka",
                    "messaging.operation.name": "send",
                    "messaging.operation.type": "send",
                    "messaging.destination.name": topics.requests,
                },
                error=error,
            )
            tracer.record([root])
        tracer.close()


def titles_of(
    source: Source, known: Log, topic: str, registry: Registry, wanted: Collection[str]
) -> dict[str, str]:
    """Titles of some items, from the partitions of item-updates that hold them."""
    if not wanted:
        return {}
    bounds, decoder = known.bounds(topic), Decoder(registry, Item)
    keys = {item_id.encode(): item_id for item_id in wanted}
    places = {TopicPartition(topic, partition_of(key, len(bounds))) for key in keys}
    at = {place: bounds[place.partition][0] for place in places}
    ends = {place: bounds[place.partition][1] for place in places}
    source.assign(at)
    newest: dict[bytes, bytes | None] = {}
    while any(at[place] < end for place, end in ends.items()):
        batch = source.poll(10_000, 5.0)
        if batch is None:
            break  # a title is a nicety: go on with what there is
        newest |= {
            key: value
            for key, value in zip(batch.keys, batch.values, strict=True)
            if key is not None and key in keys
        }
        at[TopicPartition(batch.topic, batch.partition)] = batch.next_offset
    titles = {}
    for key, value in newest.items():
        try:
            titles[keys[key]] = decoder.decode(value).title if value is not None else ""
        except Rejected:
            continue
    return titles


def _send(
    settings: Settings,
    registry: Registry,
    topics: Topics,
    question: Question,
    trace: Trace | None,
) -> str:
    request = RecommendationRequest(
        request_id=str(uuid.uuid4()),
        user_id=question.user_id,
        k=question.k,
        after_offset=question.after_offset,
        surface="cli",
    )
    codec = Codec(registry, RecommendationRequest, topics.requests)
    producer = KafkaProducer(settings.bootstrap_servers, timeout_s=settings.timeout_s)
    try:
        value = codec.encode(request)
        key = question.user_id.encode()
        headers = () if trace is None else trace.own.headers()
        producer.send(Outgoing(topic=topics.requests, key=key, value=value, headers=headers))
        producer.flush(settings.timeout_s)
    finally:
        producer.close()
    return request.request_id


def _awaited(
    source: Source,
    decoder: Decoder[Recommendation],
    request_id: str,
    clock: Clock,
    timeout_s: float,
) -> Recommendation:
    end_s = clock.monotonic_s() + timeout_s
    while (left_s := end_s - clock.monotonic_s()) > 0:
        batch = source.poll(1_000, min(left_s, 0.5))
        for value in batch.values if batch else ():
            try:
                answer = decoder.decode(value)
            except Rejected:
                continue
            if answer.request_id == request_id:
                return answer
    raise BrokerUnavailable(
        f"no answer within {timeout_s:g} s: is `millstream serve` running on these topics?"
    )
