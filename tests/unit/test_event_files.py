"""Event files are the log over again: the archive, and loose container files."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import fastavro
import pytest

from features import archive
from features.counts import Counts
from features.event_archive import SCHEMA, ArchiveParts, ArchivePolicy, EventArchiver
from features.event_files import AvroRecording, archived, container_files
from features.join_worker import Rotation
from features.recording import HeldRecording, Recording
from ingest.log import Outgoing, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.metrics import MemoryMetrics
from ingest.placement import partition_of
from ingest.topics import Topics, topic_specs
from schemas.codec import Codec, ContainerFile, Decoder, read_container, schema_of
from schemas.errors import ArchiveUnavailable, Misconfigured
from schemas.events import EventType, UserEvent
from schemas.registry import MemoryRegistry
from tests.contracts.recording import RecordingContract
from tests.join_world import Stop, World
from tests.past import HOUR_MS, T0, TOPIC, logged, story
from tests.recorded_world import contents, folded, recorded, streamed


def archive_log(log: MemoryLog, root: Path, max_bytes: int = 2_000) -> None:
    """Archive all that a log holds, in files of some kilobytes."""
    if not log.topics(["recommendations"]):
        log.create_topics([s for s in topic_specs("", 2, replay=True) if s.name != TOPIC])
    clock = World(root).clock
    parts = ArchiveParts(
        log=log,
        source=MemorySource(log),
        topics=Topics(),
        root=root,
        clock=clock,
        metrics=MemoryMetrics(),
    )
    policy = ArchivePolicy(
        rotation=Rotation(max_bytes=max_bytes), max_records=9, poll_s=0.0, max_attempts=1
    )
    ends = {
        TopicPartition(topic, p): end
        for topic in (TOPIC, "recommendations")
        for p, (_, end) in log.bounds(topic).items()
    }
    EventArchiver(parts, policy).run(Stop(clock), ends)


class TestHeld(RecordingContract):
    @pytest.fixture
    def recording(self, log: MemoryLog) -> HeldRecording:
        return recorded(log, batch=13)


class TestArchived(RecordingContract):
    @pytest.fixture
    def recording(self, log: MemoryLog, tmp_path: Path) -> AvroRecording:
        archive_log(log, tmp_path)
        found = archived(tmp_path, TOPIC)
        assert len(found.files[0]) > 2
        assert (found.origin.cluster_id, found.origin.topic_id) == (
            log.cluster_id(),
            log.topic_id(TOPIC),
        )
        return found


class TestLooseFiles(RecordingContract):
    @pytest.fixture
    def recording(self, log: MemoryLog, tmp_path: Path) -> AvroRecording:
        archive_log(log, tmp_path)
        files = archive.files(tmp_path, TOPIC)
        random.Random(1).shuffle(files)
        return container_files(files)


@pytest.fixture
def told() -> tuple[MemoryLog, MemoryRegistry]:
    return logged(story(200, users=9), partitions=2)


def test_the_archive_gives_what_streaming_gives(
    told: tuple[MemoryLog, MemoryRegistry], tmp_path: Path
) -> None:
    log, registry = told
    archive_log(log, tmp_path / "archive")
    found = folded(archived(tmp_path / "archive", TOPIC), registry, tmp_path)
    assert found == contents(streamed(log, registry), 2)


def test_misplaced_originals_leave_holes_and_change_nothing(tmp_path: Path) -> None:
    log, registry = logged(story(60, users=9), partitions=2)
    stray = UserEvent(
        event_id="stray", user_id="u1", item_id="i1", event_type=EventType.CLICK, event_time=T0
    )
    home = partition_of(b"u1", 2)
    codec = Codec(registry, UserEvent, TOPIC)
    for at in (1 - home, home):  # where a bad producer put it, and where it is sent on to
        MemoryProducer(log).send(
            Outgoing(
                topic=TOPIC, key=b"u1", value=codec.encode(stray), partition=at, timestamp_ms=T0
            )
        )
    archive_log(log, tmp_path / "archive")
    recording = archived(tmp_path / "archive", TOPIC)
    assert recording.origin.bounds == log.bounds(TOPIC)
    rows = {k: v for k, v in folded(recording, registry, tmp_path).items() if k[1] != "position"}
    expected = contents(streamed(log, registry), 2)
    assert rows == {k: v for k, v in expected.items() if k[1] != "position"}


def test_a_wrong_number_of_partitions_is_told(
    told: tuple[MemoryLog, MemoryRegistry], tmp_path: Path
) -> None:
    archive_log(told[0], tmp_path)
    with pytest.raises(Misconfigured, match=r"is not of partition \d of 3"):
        read(container_files(archive.files(tmp_path, TOPIC), partitions=3))


def test_records_that_come_again_are_passed_over(
    told: tuple[MemoryLog, MemoryRegistry], tmp_path: Path
) -> None:
    log, _ = told
    archive_log(log, tmp_path)
    files = archive.files(tmp_path, TOPIC)
    again = ContainerFile(SCHEMA)  # as a compaction whose inputs are still there
    two = [record for path in files[:2] for record in read_container(io.BytesIO(path.read_bytes()))]
    (tmp_path / "again.avro").write_bytes(again.add(two))
    whole = container_files(files)
    assert read(container_files([*files, tmp_path / "again.avro"])) == read(whole)


def read(recording: Recording) -> list[tuple[int, int]]:
    return [
        (p, offset)
        for p, (first, _) in recording.origin.bounds.items()
        for batch in recording.batches(p, first, 50)
        for offset in batch.offsets.tolist()
    ]


def test_a_damaged_missing_or_altered_file_is_an_error(
    told: tuple[MemoryLog, MemoryRegistry], tmp_path: Path
) -> None:
    archive_log(told[0], tmp_path)
    recording = archived(tmp_path, TOPIC)
    path = recording.files[0][1].path
    whole = path.read_bytes()
    loose = container_files(archive.files(tmp_path, TOPIC))
    path.write_bytes(whole[:-9])
    with pytest.raises(ArchiveUnavailable, match="altered"):
        read(recording)
    with pytest.raises(ArchiveUnavailable, match="not a whole Avro container"):
        read(loose)
    path.unlink()
    with pytest.raises(ArchiveUnavailable, match="No such file"):
        read(recording)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="features archive"):
        archived(tmp_path, TOPIC)
    with pytest.raises(Misconfigured, match="got none"):
        container_files([])
    schema = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "int"}]}
    (tmp_path / "other.avro").write_bytes(ContainerFile(schema).add([{"x": 1}]))
    with pytest.raises(Misconfigured, match="holds no archived records"):
        container_files([tmp_path / "other.avro"])


def test_older_and_newer_writers_are_mixed_in_one_partition_and_batch(tmp_path: Path) -> None:
    """One writer knows less than this reader, one more, a type of event among it."""
    registry = MemoryRegistry()
    ours = json.loads(schema_of(UserEvent))
    newer = json.loads(json.dumps(ours))
    newer["fields"].append({"name": "mood", "type": ["null", "string"], "default": None})
    kind = next(f["type"] for f in newer["fields"] if f["name"] == "event_type")
    kind["symbols"].append("TELEPATHY")
    older = json.loads(json.dumps(ours))
    older["fields"] = [f for f in older["fields"] if f["name"] not in ("country", "surface")]
    schemas = {
        name: (
            registry.register(f"{name}-value", json.dumps(schema)),
            fastavro.parse_schema(schema),
        )
        for name, schema in (("newer", newer), ("older", older))
    }
    log = MemoryLog()
    log.create_topic(TOPIC, 2)
    producer, codec = MemoryProducer(log), Codec(registry, UserEvent, TOPIC)
    for user, event, at_ms in story(120, users=9):
        data = None if event is None else codec.encode(event)
        number = sum(end for _, end in log.bounds(TOPIC).values())
        if event is not None and number % 3:
            schema_id, schema = schemas["newer" if number % 3 == 1 else "older"]
            record = Decoder(registry, UserEvent).plain(codec.encode(event)) | {"mood": "good"}
            if number % 9 == 1:
                record["event_type"] = "TELEPATHY"
            datum = io.BytesIO()
            datum.write(b"\0" + schema_id.to_bytes(4, "big"))
            fastavro.schemaless_writer(datum, schema, record)
            data = datum.getvalue()
        producer.send(Outgoing(topic=TOPIC, key=user.encode(), value=data, timestamp_ms=at_ms))
    archive_log(log, tmp_path / "archive")
    found = folded(archived(tmp_path / "archive", TOPIC), registry, tmp_path)
    assert found == contents(streamed(log, registry, batch=1), 2)
    counts = sum((Counts.of(v[2]) for k, v in found.items() if k[1] == "position"), Counts())  # type: ignore[index]
    assert counts.dead == 0
    assert counts.types[EventType.UNKNOWN] > 5


@pytest.mark.parametrize(("wrong_ms", "fate"), [(HOUR_MS, "dead"), (-HOUR_MS, "folded")])
def test_clocks_an_hour_wrong_meet_the_fate_that_streaming_gives_them(
    wrong_ms: int, fate: str, tmp_path: Path
) -> None:
    """Ahead of the record's timestamp it is refused; behind, it lands in its own hour."""
    told = [
        (user, event and replace(event, event_time=at_ms + wrong_ms * (n % 5 == 0)), at_ms)
        for n, (user, event, at_ms) in enumerate(story(150, users=9))
    ]
    log, registry = logged(told, partitions=2)
    archive_log(log, tmp_path / "archive")
    found = folded(archived(tmp_path / "archive", TOPIC), registry, tmp_path)
    assert found == contents(streamed(log, registry), 2)
    counts = sum((Counts.of(v[2]) for k, v in found.items() if k[1] == "position"), Counts())  # type: ignore[index]
    assert getattr(counts, fate) >= 25
