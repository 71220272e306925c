"""Archive and log read as one log, joined at whatever offset the log begins by now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from features.event_archive import ArchiveParts, ArchivePolicy, EventArchiver
from features.join_worker import Rotation
from features.past_log import PastLog, PastSource
from ingest.clock import ManualClock
from ingest.log import Outgoing, RecordBatch, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.metrics import MemoryMetrics
from ingest.topics import Topics, topic_specs
from schemas.errors import ArchiveUnavailable, Misconfigured, PositionForeign
from tests.contracts import log as contracts
from tests.join_world import Stop
from tests.unit.test_memory_log import MemoryWorld

TOPIC = TopicPartition("user-events", 0)
RECORDS = 12


class PastWorld(MemoryWorld):
    """Nothing is archived: then it is the log as it is."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def source(self, *, read_committed: bool = True) -> PastSource:  # type: ignore[override]
        return PastSource(super().source(read_committed=read_committed), self.log())

    def log(self) -> PastLog:  # type: ignore[override]
        return PastLog(super().log(), self._root, Topics())


class TestPastLog(contracts.LogContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> PastWorld:  # type: ignore[override]
        return PastWorld(tmp_path)


def new_log() -> MemoryLog:
    log = MemoryLog()
    log.create_topics(topic_specs("", 1, replay=True))
    return log


def produce(log: MemoryLog, start: int, stop: int) -> None:
    producer = MemoryProducer(log)
    for i in range(start, stop):
        headers = (("h", b"x"),) if i % 3 == 0 else ()
        producer.send(
            Outgoing(
                topic=TOPIC.topic,
                key=b"u",
                value=f"{i}".encode(),
                timestamp_ms=1_700_000_000_000 + i,
                headers=headers,
            )
        )


def archive(log: MemoryLog, root: Path) -> None:
    clock = ManualClock(0)
    parts = ArchiveParts(
        log=log,
        source=MemorySource(log),
        topics=Topics(),
        root=root,
        clock=clock,
        metrics=MemoryMetrics(),
    )
    policy = ArchivePolicy(rotation=Rotation(max_bytes=1), max_records=4, poll_s=0.0)
    ends = {TOPIC: log.bounds(TOPIC.topic)[0][1]}
    EventArchiver(parts, policy).run(Stop(clock), ends)


def read(log: MemoryLog, root: Path, offset: int = 0, max_records: int = 3) -> list[RecordBatch]:
    past = PastLog(log, root, Topics())
    source = PastSource(MemorySource(log), past)
    source.assign({TOPIC: offset})
    return list(until_silent(source, max_records))


def until_silent(source: PastSource, max_records: int) -> Iterator[RecordBatch]:
    while (batch := source.poll(max_records, 0.0)) is not None:
        yield batch


def values(batches: list[RecordBatch]) -> list[tuple[int, bytes | None, object]]:
    """Every record with its offset; the batches are contiguous."""
    for a, b in pairwise(batches):
        assert a.next_offset == b.start_offset
    return [
        (int(b.offsets[i]), b.values[i], b.headers.get(i)) for b in batches for i in range(len(b))
    ]


@pytest.fixture
def log(tmp_path: Path) -> MemoryLog:
    """Eight records are archived; four more are on the log alone."""
    made = new_log()
    produce(made, 0, 8)
    archive(made, tmp_path)
    produce(made, 8, RECORDS)
    return made


@pytest.mark.parametrize("before", range(9))
def test_wherever_the_log_begins_the_records_are_the_same(
    log: MemoryLog, tmp_path: Path, before: int
) -> None:
    whole = values(read(log, tmp_path / "none"))
    assert len(whole) == RECORDS
    log.delete_records(TOPIC, before)
    assert PastLog(log, tmp_path, Topics()).bounds(TOPIC.topic) == {0: (0, RECORDS)}
    for start in range(RECORDS):
        batches = read(log, tmp_path, start)
        assert values(batches) == whole[start:]
        assert (batches[0].start_offset, batches[-1].next_offset) == (start, RECORDS)


def test_records_deleted_while_they_are_read_come_from_the_archive(
    log: MemoryLog, tmp_path: Path
) -> None:
    whole = values(read(log, tmp_path))
    log.delete_records(TOPIC, 2)
    past = PastLog(log, tmp_path, Topics())
    source = PastSource(MemorySource(log), past)
    source.assign({TOPIC: 0})
    found = [source.poll(3, 0.0)]
    log.delete_records(TOPIC, 7)
    found += until_silent(source, 3)
    assert values([batch for batch in found if batch is not None]) == whole


def test_lost_offsets_are_named(log: MemoryLog, tmp_path: Path) -> None:
    log.delete_records(TOPIC, 10)
    with pytest.raises(Misconfigured, match=r"user-events\[0\]: offsets 8 to 9 are lost"):
        PastLog(log, tmp_path, Topics()).bounds(TOPIC.topic)
    with pytest.raises(Misconfigured, match="offsets 8 to 9 are lost"):
        read(log, tmp_path)
    assert len(values(read(log, tmp_path, 10))) == 2, "what is there can be read"


def test_what_is_neither_here_nor_there_is_refused(log: MemoryLog, tmp_path: Path) -> None:
    log.delete_records(TOPIC, 3)
    assert PastLog(log, tmp_path / "none", Topics()).bounds(TOPIC.topic) == {0: (3, RECORDS)}
    with pytest.raises(PositionForeign, match="offset 2 is neither on the log"):
        read(log, tmp_path / "none", 2)


def test_the_archive_of_another_log_is_not_read(log: MemoryLog, tmp_path: Path) -> None:
    other = new_log()
    produce(other, 0, 8)
    other.delete_records(TOPIC, 3)
    assert PastLog(other, tmp_path, Topics()).bounds(TOPIC.topic) == {0: (3, 8)}


def test_a_damaged_file_is_named_by_whoever_reads_the_past(log: MemoryLog, tmp_path: Path) -> None:
    log.delete_records(TOPIC, 8)
    path = max(tmp_path.glob("user-events/date=*/*.avro"))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ArchiveUnavailable, match=path.name):
        read(log, tmp_path)


def test_only_files_with_records_that_are_wanted_are_opened(log: MemoryLog, tmp_path: Path) -> None:
    log.delete_records(TOPIC, 8)
    first = min(tmp_path.glob("user-events/date=*/*.avro"))
    first.unlink()
    assert [offset for offset, _, _ in values(read(log, tmp_path, 5))] == list(range(5, RECORDS))


def test_several_partitions_are_read_in_turn(tmp_path: Path) -> None:
    log = MemoryLog()
    log.create_topics([replace(s, partitions=2) for s in topic_specs("", 1, replay=True)])
    for i in range(20):
        MemoryProducer(log).send(Outgoing(topic=TOPIC.topic, key=f"u{i}".encode(), value=b"v"))
    ends = {p: end for p, (_, end) in log.bounds(TOPIC.topic).items()}
    archive(log, tmp_path)
    for partition, end in ends.items():
        log.delete_records(TopicPartition(TOPIC.topic, partition), min(end, 3))
    source = PastSource(MemorySource(log), PastLog(log, tmp_path, Topics()))
    source.assign({TopicPartition(TOPIC.topic, p): 0 for p in ends})
    batches = list(until_silent(source, 2))
    assert {batch.partition for batch in batches[:2]} == {0, 1}
    for partition, end in ends.items():
        found = values([b for b in batches if b.partition == partition])
        assert [offset for offset, _, _ in found] == list(range(end))
