"""Archived recommendations joined again give what the streaming join wrote, record for record."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from features import archive
from features.batch_job import Work, rejoin_lists
from features.batch_reports import Reports
from features.event_archive import ArchiveParts, ArchivePolicy, EventArchiver
from features.event_files import AvroRecording, archived
from features.join_worker import KIND, Rotation
from features.rejoin import RejoinParts, RejoinStep
from ingest.log import TopicPartition
from ingest.memory import MemorySource
from ingest.metrics import MemoryMetrics
from tests.join_world import FEATURES, POLICY, Stop, World, answer, event
from tests.recorded_world import Opens, in_archive


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Lists and events of some users; the last lists are closed by wall clock alone."""
    made = World(tmp_path / "streamed", partitions=2)
    chance = random.Random(4)
    now = 0
    for n in range(160):
        now += chance.choice((0, 5, 150, 700))
        user = f"u{chance.randrange(9)}"
        if n % 4 == 0:
            end = made.events_end(user)
            shown = answer(
                f"r{n}",
                user,
                now,
                events_partition=made.partition(user),
                events_offset=max(0, end - chance.randrange(3)),
            )
            made.show(shown)
        else:
            late = chance.choice((0, 0, 0, 300))
            number = n - 1 if n % 17 == 0 else n  # some come twice
            made.do(event(f"e{number}", user, chance.choice("abcd"), now - late))
    return made


def archive_of(world: World) -> tuple[AvroRecording, AvroRecording]:
    root = world.root.parent / "events"
    parts = ArchiveParts(
        log=world.log,
        source=MemorySource(world.log),
        topics=world.topics,
        root=root,
        clock=world.clock,
        metrics=MemoryMetrics(),
    )
    ends = {
        TopicPartition(topic, p): end
        for topic in (world.topics.user_events, world.topics.recommendations)
        for p, (_, end) in world.log.bounds(topic).items()
    }
    policy = ArchivePolicy(rotation=Rotation(max_bytes=900), max_records=7, poll_s=0.0)
    EventArchiver(parts, policy).run(Stop(world.clock), ends)
    return (
        archived(root, world.topics.recommendations, "recommendations"),
        archived(root, world.topics.user_events),
    )


def rejoined(
    world: World, root: Path, *, noted: bool = True, work: Work | None = None
) -> list[bytes]:
    """The archived lists joined again."""
    lists, events = archive_of(world)
    parts = RejoinParts(
        lists=lists,
        events=events,
        features=FEATURES,
        policy=POLICY,
        streamed=archive.manifests(world.root, KIND) if noted else {},
    )
    reports = Reports(folder=root / "reports")
    opening = Opens(known=world.registry)
    step = RejoinStep(parts=parts, opening=opening, root=root, reports=reports)
    rejoin_lists(step, work or Work())
    return in_archive(root, KIND)


@pytest.mark.parametrize("runner", ["", "fnapi"])
def test_examples_equal_the_streaming_joins_record_for_record(
    world: World, tmp_path: Path, runner: str
) -> None:
    world.join(max_records=11)
    streamed = in_archive(world.root, KIND)
    notes = [m.notes for m in archive.manifests(world.root, KIND).values()]
    assert any(notes), "some lists are closed by wall clock"
    assert len(streamed) == 40 * 3
    assert rejoined(world, tmp_path / "again", work=Work(runner=runner)) == streamed


def test_what_only_wall_clock_closed_is_left_out_without_the_notes(
    world: World, tmp_path: Path
) -> None:
    world.join()
    streamed = world.by_partition()
    rejoined(world, tmp_path / "again", noted=False)
    found = world.by_partition(tmp_path / "again")
    for partition, rows in found.items():
        assert rows == streamed[partition][: len(rows)]
    assert 0 < sum(map(len, found.values())) < sum(map(len, streamed.values()))


def test_joining_again_replaces_what_was_there(world: World, tmp_path: Path) -> None:
    world.join()
    first = rejoined(world, tmp_path / "again")
    assert rejoined(world, tmp_path / "again") == first
