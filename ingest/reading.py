"""Reading topics once, from their start, or a little before their end, to where they end now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ingest.log import Log, RecordBatch, Source, TopicPartition
from schemas.errors import BrokerUnavailable

POLL_S = 0.1


def until_end(log: Log, source: Source, topics: Iterable[str]) -> Iterator[RecordBatch]:
    """Every batch of some topics from their first offset to their present end."""
    starts, ends = {}, {}
    for topic in topics:
        for p, (start, end) in log.bounds(topic).items():
            if end > start:
                starts[TopicPartition(topic, p)] = start
                ends[TopicPartition(topic, p)] = end
    yield from _between(source, starts, ends, math.inf)


def partition_until_end(
    log: Log, source: Source, topic: str, partition: int, timeout_s: float = 10.0
) -> Iterator[RecordBatch]:
    """
    Every batch of one partition from its first offset to its present end.

    Raises:
        BrokerUnavailable: the end was not reached in time.
    """
    first, end = log.bounds(topic)[partition]
    if end > first:
        place = TopicPartition(topic, partition)
        yield from _between(source, {place: first}, {place: end}, timeout_s)


def tail(
    log: Log,
    source: Source,
    topic: str,
    partitions: Sequence[int],
    offsets: int,
    timeout_s: float = 10.0,
) -> Iterator[RecordBatch]:
    """
    The batches of the last so many offsets of some partitions.

    Raises:
        BrokerUnavailable: the end was not reached in time.
    """
    bounds = log.bounds(topic)
    wanted = {p: bounds[p] for p in partitions if bounds[p][1] > bounds[p][0]}
    starts = {
        TopicPartition(topic, p): max(first, end - offsets) for p, (first, end) in wanted.items()
    }
    ends = {TopicPartition(topic, p): end for p, (_, end) in wanted.items()}
    if ends:
        yield from _between(source, starts, ends, timeout_s)


def _between(
    source: Source,
    starts: Mapping[TopicPartition, int],
    ends: dict[TopicPartition, int],
    timeout_s: float,
) -> Iterator[RecordBatch]:
    source.assign(starts)
    quiet = 0.0
    while ends:
        batch = source.poll(1_000, POLL_S)
        if batch is None:
            quiet += POLL_S
            if quiet > timeout_s:
                places = ", ".join(f"{tp.topic}[{tp.partition}]" for tp in ends)
                raise BrokerUnavailable(f"{places} gave nothing for {timeout_s:g} s")
            continue
        quiet = 0.0
        yield batch
        place = TopicPartition(batch.topic, batch.partition)
        if batch.next_offset >= ends.get(place, 0):
            ends.pop(place, None)
