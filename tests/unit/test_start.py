"""What does not fit is refused at the start, with the command that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from features import archive
from features.archive import Manifest
from features.event_archive import ArchiveParts, EventArchiver
from features.split import check_rows
from features.store import Position
from features.store_memory import MemoryStore
from ingest.log import Outgoing, TopicPartition
from ingest.memory import MemorySource
from ingest.topics import check_offset
from schemas.errors import Misconfigured, PositionForeign
from tests.join_world import Stop, World
from tests.memory_world import World as Rows

PLACE = TopicPartition("w-user-events", 0)


def past_the_end(world: World, kind: str, position: dict[str, int], suffix: str) -> None:
    """An archive that has read more than the log holds."""
    names = {"user-events": "w-user-events", "recommendations": "w-recommendations"}
    ids = {kind: world.log.topic_id(names[kind]) for kind in position}
    first = Manifest(
        kind="examples" if len(position) > 1 else kind,
        partition=0,
        sequence=0,
        generation=0,
        position=position,
        log={"cluster": world.log.cluster_id(), **ids},
        fingerprint="f",
    )
    archive.claim(world.root, first, suffix)


def archiver(world: World) -> EventArchiver:
    return EventArchiver(
        ArchiveParts(
            log=world.log,
            source=MemorySource(world.log),
            topics=world.topics,
            root=world.root,
            clock=world.clock,
            metrics=world.metrics,
        )
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_join_past_the_end_of_either_topic_is_refused(world: World) -> None:
    past_the_end(world, "examples", {"recommendations": 0, "user-events": 9}, ".tfrecord.gz")
    with pytest.raises(PositionForeign, match=r"offset 9.*spans 0 to 0.*join --archive-dir"):
        world.worker().run(Stop(world.clock))


def test_an_archive_past_the_end_is_refused(world: World) -> None:
    past_the_end(world, "user-events", {"user-events": 9}, ".avro")
    with pytest.raises(PositionForeign, match=r"offset 9.*spans 0 to 0.*archive --archive-dir"):
        archiver(world).run(Stop(world.clock), {PLACE: 0})


def test_what_retention_has_taken_is_not_skipped_in_silence(world: World) -> None:
    archiver(world).run(Stop(world.clock), {PLACE: 0})
    for _ in range(5):
        world.log.append(Outgoing(topic=PLACE.topic, key=b"u", value=b"v"))
    world.log.delete_records(PLACE, 3)
    with pytest.raises(PositionForeign, match=r"offset 0.*spans 3 to 5"):
        archiver(world).run(Stop(world.clock), {PLACE: 0})


def test_unequal_counts_are_refused_by_join_and_archive(world: World) -> None:
    world.log.delete_topics(["w-recommendations"])
    world.log.create_topic("w-recommendations", 3)
    for start in (world.worker, lambda: archiver(world)):
        with pytest.raises(Misconfigured, match="topics repartition --to 3"):
            start()


def test_an_offset_that_the_log_holds_or_ends_with_is_fine() -> None:
    place = TopicPartition("t", 1)
    for offset in (2, 5):
        check_offset(place, offset, (2, 5), "")
    for offset in (1, 6):
        with pytest.raises(PositionForeign, match=rf"t\[1\].*{offset}.*2 to 5. Mend it"):
            check_offset(place, offset, (2, 5), "Mend it")


def test_rows_are_read_only_if_they_are_of_this_log() -> None:
    rows = Rows()
    check_rows(rows.store, rows.log, "events")  # nothing is folded yet
    rows.put(range(50))
    rows.fold()
    check_rows(rows.store, rows.log, "events")
    rows.log.delete_records(TopicPartition("events", 0), 10_000)
    rows.create_log()  # another cluster, another topic
    with pytest.raises(PositionForeign, match="features rebuild"):
        check_rows(rows.store, rows.log, "events")


def test_rows_past_the_end_of_their_log_are_not_read() -> None:
    rows, store = Rows(), MemoryStore()
    ids = {"cluster_id": rows.log.cluster_id(), "topic_id": rows.log.topic_id("events")}
    store.claim(0, Position(**ids, epoch=1, next_offset=7))
    with pytest.raises(PositionForeign, match=r"stands at offset 7.*spans 0 to 0.*rebuild"):
        check_rows(store, rows.log, "events")
