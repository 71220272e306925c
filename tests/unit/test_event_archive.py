"""The event archive: every record of the log once, whole, and enough to rebuild the log from."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from features import archive
from features.disk import Disk, LocalDisk, Place, disk_of, place
from features.event_archive import ArchiveParts, ArchivePolicy, EventArchiver, read_events
from features.join_worker import Rotation
from ingest.clock import ManualClock
from ingest.log import Outgoing, RecordBatch, TopicPartition
from ingest.memory import Crash, MemoryLog, MemoryProducer, MemorySource
from ingest.metrics import MemoryMetrics
from ingest.placement import partition_of
from ingest.topics import Topics, topic_specs
from schemas.errors import ArchiveUnavailable
from tests.faulty_disk import FaultyDisk
from tests.join_world import Stop

Entry = tuple[int, bytes | None, bytes | None, int, tuple[tuple[str, bytes], ...]]


@pytest.fixture
def log() -> MemoryLog:
    made = MemoryLog()
    made.create_topics(topic_specs("", 2, replay=True))
    producer = MemoryProducer(made)
    for i in range(60):
        for topic in ("user-events", "recommendations"):
            producer.send(
                Outgoing(
                    topic=topic,
                    key=f"u{i % 7}".encode(),
                    value=None if i % 11 == 0 else f"{topic} {i}".encode(),
                    timestamp_ms=1_700_000_000_000 + i,
                    headers=(("h", b"\x00"),) if i % 5 == 0 else (),
                )
            )
    return made


def run(
    log: MemoryLog,
    root: Place,
    disk: Disk | None = None,
    max_records: int = 9,
    rotation: Rotation | None = None,
) -> None:
    clock = ManualClock(0)
    parts = ArchiveParts(
        log=log,
        source=MemorySource(log),
        topics=Topics(),
        root=root,
        clock=clock,
        metrics=MemoryMetrics(),
        disk=disk,
    )
    policy = ArchivePolicy(
        rotation=rotation or Rotation(max_bytes=300),
        max_records=max_records,
        poll_s=0.0,
        max_attempts=1,
    )
    ends = {
        TopicPartition(topic, p): end
        for topic in ("user-events", "recommendations")
        for p, (_, end) in log.bounds(topic).items()
    }
    EventArchiver(parts, policy).run(Stop(clock), ends)


def places(batches: Iterator[RecordBatch]) -> list[Entry]:
    return [
        (int(b.offsets[i]), b.keys[i], b.values[i], int(b.timestamps_ms[i]), b.headers.get(i, ()))
        for b in batches
        for i in range(len(b))
    ]


def logged(log: MemoryLog, topic: str, partition: int) -> list[Entry]:
    source = MemorySource(log)
    source.assign({TopicPartition(topic, partition): 0})
    return places(iter(lambda: source.poll(1_000, 0.0), None))  # type: ignore[arg-type]


def everything(log: MemoryLog, root: Place) -> None:
    for kind in ("user-events", "recommendations"):
        assert list(archive.verify(root, kind)) == []
        for p in (0, 1):
            assert places(read_events(root, kind, p)) == logged(log, kind, p)


def test_what_is_archived_is_the_log(log: MemoryLog, tmp_path: Path) -> None:
    run(log, tmp_path)
    assert len(logged(log, "user-events", 0)) > 10
    everything(log, tmp_path)
    assert len(archive.files(tmp_path, "user-events")) > 2, "files are rotated"


def test_a_file_counts_when_it_is_old_enough_or_the_end_is_reached(
    log: MemoryLog, tmp_path: Path
) -> None:
    # The clock moves by 0.01 s a step, and one batch is read in each.
    run(log, tmp_path / "old", max_records=1, rotation=Rotation(max_age_s=0.1))
    run(log, tmp_path / "ends", max_records=1, rotation=Rotation(max_age_s=1_000.0))
    for root in (tmp_path / "old", tmp_path / "ends"):
        everything(log, root)
    assert len(archive.files(tmp_path / "old", "user-events")) > 4
    assert len(archive.files(tmp_path / "ends", "user-events")) == 2, "one a partition"


def test_reading_starts_at_any_offset_in_contiguous_batches(log: MemoryLog, tmp_path: Path) -> None:
    run(log, tmp_path)
    whole = logged(log, "user-events", 0)
    for start in (0, 1, 17, len(whole)):
        batches = list(read_events(tmp_path, "user-events", 0, start, batch_records=4))
        assert places(iter(batches)) == whole[start:]
        bounds = [(b.start_offset, b.next_offset) for b in batches]
        assert [a for a, _ in bounds] == [start, *[b for _, b in bounds[:-1]]][: len(bounds)]
    assert list(read_events(tmp_path, "user-events", 7)) == []


def test_a_misplaced_original_is_left_out(tmp_path: Path) -> None:
    log = MemoryLog()
    log.create_topics(topic_specs("", 2, replay=True))
    home = partition_of(b"u", 2)
    MemoryProducer(log).send(
        Outgoing(topic="user-events", key=b"u", value=b"lost", partition=1 - home)
    )
    MemoryProducer(log).send(Outgoing(topic="user-events", key=b"u", value=b"found"))
    run(log, tmp_path)
    assert places(read_events(tmp_path, "user-events", 1 - home)) == []
    assert [v for _, _, v, _, _ in places(read_events(tmp_path, "user-events", home))] == [b"found"]


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.usefixtures("no_waiting_for_the_disk")
@pytest.mark.parametrize("after", [False, True])
def test_a_disk_that_is_full_or_fails_at_any_step_loses_and_repeats_nothing(
    log: MemoryLog, tmp_path: Path, after: bool
) -> None:
    at, failed = 1, True
    while failed:
        root = tmp_path / str(at)
        disk = FaultyDisk(LocalDisk(), at, after=after)
        said = "Input/output error" if after else "the disk is full"
        try:
            run(log, root, disk)
        except ArchiveUnavailable as error:
            found = str(error)
        failed = disk.failed
        if failed:
            assert said in found
            run(log, root)
        everything(log, root)
        at += 1 if at < 12 else 7
    assert at > 40


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_an_object_store_holds_the_same(log: MemoryLog) -> None:
    root = place(f"memory://{uuid.uuid4().hex}")
    for at in (1, 5, 9, 20):
        with pytest.raises(ArchiveUnavailable):
            run(log, root, FaultyDisk(disk_of(root), at))
    run(log, root)
    everything(log, root)


def test_a_crash_of_the_reader_loses_and_repeats_nothing(log: MemoryLog, tmp_path: Path) -> None:
    for at in (3, 11, 20):
        log._partition(TopicPartition("user-events", 0)).faults[at] = [Crash()]
    for _ in range(3):
        with pytest.raises(Crash):
            run(log, tmp_path, max_records=2)
    run(log, tmp_path)
    everything(log, tmp_path)


def test_a_damaged_file_is_an_error_when_read(log: MemoryLog, tmp_path: Path) -> None:
    run(log, tmp_path)
    path = archive.files(tmp_path, "user-events")[0]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArchiveUnavailable, match="not a whole Avro container"):
        list(read_events(tmp_path, "user-events", 0))
