"""Placement is Kafka's; where batches are cut changes nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ingest.batches import part
from ingest.log import Outgoing, RecordBatch, TopicPartition
from ingest.memory import MemoryLog, MemorySource, MemoryTransactionalProducer
from ingest.placement import partition_of, partitions_of

TP = TopicPartition("t", 0)


def plain_murmur2(data: bytes) -> int:
    """org.apache.kafka.common.utils.Utils.murmur2, line by line, unsigned."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    rest = data[whole:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 1000))
def test_partitions_are_those_of_kafkas_own_murmur2(keys: list[bytes], partitions: int) -> None:
    expected = [(plain_murmur2(k) & 0x7FFFFFFF) % partitions for k in keys]
    assert partitions_of(keys, partitions).tolist() == expected
    assert [partition_of(k, partitions) for k in keys] == expected


# A log: plain records, committed and aborted transactions of some records each.
runs = st.lists(
    st.tuples(st.sampled_from(["plain", "committed", "aborted"]), st.integers(0, 4)), max_size=12
)


def written(steps: list[tuple[str, int]]) -> tuple[MemoryLog, list[bytes]]:
    """The log, and the values that a reader must see."""
    log, visible = MemoryLog(), []
    log.create_topic("t", 1)
    producer = MemoryTransactionalProducer(log, "id")
    for i, (kind, n) in enumerate(steps):
        records = [Outgoing(topic="t", key=b"k", value=b"%d-%d" % (i, j)) for j in range(n)]
        if kind == "plain":
            log.script(TP, records)
        else:
            producer.begin()
            for record in records:
                producer.send(record)
            if kind == "committed":
                producer.commit({}, None)
            else:
                producer.abort()
        visible += [r.value or b"" for r in records if kind != "aborted"]
    return log, visible


def read(log: MemoryLog, sizes: list[int]) -> list[RecordBatch]:
    source = MemorySource(log)
    source.assign({TP: 0})
    batches: list[RecordBatch] = []
    while (batch := source.poll(sizes[len(batches) % len(sizes)], 0)) is not None:
        batches.append(batch)
    return batches


@given(runs, st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_batches_of_any_sizes_concatenate_to_the_log(
    steps: list[tuple[str, int]], sizes: list[int]
) -> None:
    log, visible = written(steps)
    batches = read(log, sizes)
    assert [v for b in batches for v in b.values] == visible
    ends = [0, *(b.next_offset for b in batches)]
    assert [b.start_offset for b in batches] == ends[:-1]
    assert ends[-1] == log.bounds("t")[0][1]


@given(runs, st.integers(0, 60))
def test_two_parts_of_a_batch_are_the_batch(steps: list[tuple[str, int]], at: int) -> None:
    log, _ = written(steps)
    for batch in filter(len, read(log, [100])):
        cut = min(at, len(batch))
        left, right = part(batch, 0, cut), part(batch, cut, len(batch))
        assert left.start_offset == batch.start_offset
        assert left.next_offset == right.start_offset
        assert right.next_offset == batch.next_offset
        assert [*left.values, *right.values] == list(batch.values)
        assert np.concatenate([left.offsets, right.offsets]).tolist() == batch.offsets.tolist()
