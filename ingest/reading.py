"""Reading topics once, from their start to where they end now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ingest.log import Log, RecordBatch, Source, TopicPartition

POLL_S = 0.1


def until_end(log: Log, source: Source, topics: Iterable[str]) -> Iterator[RecordBatch]:
    """Every batch of some topics from their first offset to their present end."""
    starts, ends = {}, {}
    for topic in topics:
        for p, (start, end) in log.bounds(topic).items():
            if end > start:
                starts[TopicPartition(topic, p)] = start
                ends[TopicPartition(topic, p)] = end
    source.assign(starts)
    while ends:
        batch = source.poll(1_000, POLL_S)
        if batch is None:
            continue
        yield batch
        place = TopicPartition(batch.topic, batch.partition)
        if batch.next_offset >= ends.get(place, 0):
            ends.pop(place, None)
