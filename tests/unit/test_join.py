"""The label join: what is a label, when a list closes, and what a crash changes (nothing)."""

from __future__ import annotations

from pathlib import Path

import pytest

from features import archive
from features.disk import LocalDisk
from features.join_worker import KIND
from ingest.log import TopicPartition
from ingest.memory import Crash
from ingest.origin import ORIGIN_HEADER
from schemas.errors import ArchiveUnavailable, PositionMoved
from schemas.events import EventType, Status
from tests.faulty_disk import FaultyDisk
from tests.join_world import T0, Stop, World, answer, counted, event

CLICK = counted(EventType.CLICK)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def labels(world: World) -> list[tuple[tuple[int, int], ...]]:
    return [row.labels for row in world.rows()]


def finish(world: World, at_ms: int = 1_100) -> None:
    """An event of somebody else that closes the lists shown at 0."""
    world.do(event(f"end-{at_ms}", "other", None, at_ms, event_type=EventType.VIEW))


def test_an_example_a_list_and_item_with_what_followed(world: World) -> None:
    world.show(answer("r", "u", 0))
    world.do(event("1", "u", "b", 10))
    world.do(event("2", "u", "b", 20, event_type=EventType.PURCHASE))
    world.do(event("3", "u", "x", 20))
    world.do(event("4", "somebody", "a", 20))
    finish(world)
    world.join()
    assert [(r.item_id, r.position, r.labels) for r in world.rows()] == [
        ("a", 0, ()),
        ("b", 1, counted(EventType.CLICK, EventType.PURCHASE)),
        ("c", 2, ()),
    ]
    assert {(r.request_id, r.user_id, r.rate) for r in world.rows()} == {("r", "u", 0.25)}


@pytest.mark.parametrize(
    ("at_ms", "counts"), [(-1, False), (0, True), (1_000, True), (1_001, False)]
)
def test_the_window_includes_both_its_ends(world: World, at_ms: int, counts: bool) -> None:
    world.show(answer("r", "u", 0))
    world.do(event("1", "u", "a", at_ms))
    finish(world)
    world.join()
    assert labels(world)[0] == (CLICK if counts else ())


def test_an_event_that_the_served_row_held_is_no_label(world: World) -> None:
    world.do(event("1", "u", "a", 5))
    world.show(answer("r", "u", 0, events_offset=world.events_end("u")))
    world.do(event("2", "u", "b", 6))
    finish(world)
    world.join()
    assert labels(world) == [(), CLICK, ()]


def test_a_row_that_was_behind_the_log_gets_the_events_it_lacked(world: World) -> None:
    world.do(event("1", "u", "a", 5))
    world.show(answer("r", "u", 0, events_offset=0))
    finish(world)
    world.join()
    assert labels(world) == [CLICK, (), ()]


def test_a_request_id_ties_an_event_to_its_list(world: World) -> None:
    world.show(answer("r1", "u", 0))
    world.show(answer("r2", "u", 1))
    world.do(event("1", "u", "a", 5, request_id="r2"))
    world.do(event("2", "u", "b", 5))
    finish(world, 1_200)
    world.join()
    assert labels(world) == [(), CLICK, (), CLICK, CLICK, ()]


def test_an_event_repeated_counts_once(world: World) -> None:
    world.show(answer("r", "u", 0))
    for _ in range(3):
        world.do(event("1", "u", "a", 5))
    finish(world)
    world.join()
    assert labels(world)[0] == CLICK


def test_a_list_closes_when_event_time_has_passed_window_and_lateness(world: World) -> None:
    world.show(answer("r", "u", 0))
    finish(world, 1_099)
    world.do(event("late", "u", "a", 900))
    finish(world, 1_100)
    world.do(event("too late", "u", "b", 900))
    world.join()
    assert labels(world) == [CLICK, (), ()]
    assert world.metrics.value("join.late_labels") == 1


@pytest.mark.parametrize("max_records", [1, 100])
def test_a_late_label_says_how_long_its_event_was_under_way(world: World, max_records: int) -> None:
    world.show(answer("r0", "u", 0))
    finish(world, 1_200)
    world.do(event("1", "u", "a", 100), timestamp_ms=T0 + 90_000)
    world.do(event("2", "u", "x", 100), timestamp_ms=T0 + 90_000)  # no label of anything
    world.show(answer("r1", "v", 1_500, events_offset=world.events_end("v")))
    finish(world, 3_000)
    world.join(max_records=max_records)
    assert world.metrics.observed("join.late_label_s") == [89.9]
    assert world.metrics.value("join.late_labels") == 1


def test_an_event_that_names_a_request_and_becomes_no_label_is_unmatched(world: World) -> None:
    for i in range(4):
        world.show(answer(f"r{i}", "u", 5_000 * i, events_offset=world.events_end("u")))
        at_ms = 5_000 * i + 10
        world.do(event(f"in-{i}", "u", "a", at_ms, request_id=f"r{i}"))
        world.do(event(f"other-{i}", "u", "b", at_ms, request_id="nobody's"))
        world.do(event(f"item-{i}", "u", "x", at_ms, request_id=f"r{i}"))
        world.do(event(f"own-{i}", "u", "x", at_ms))  # names none: it need not match
    finish(world, 30_000)
    world.join(max_records=2, spare_events=0)
    assert [len(row) for row in labels(world)] == [1, 0, 0] * 4
    assert world.metrics.value("join.late_labels") == 0
    assert world.metrics.value("join.unmatched") == 2 * 4


def test_a_late_label_is_not_unmatched(world: World) -> None:
    world.show(answer("r0", "u", 0))
    finish(world, 1_200)
    world.do(event("late", "u", "a", 100, request_id="r0"))
    world.show(answer("r1", "u", 1_500, events_offset=world.events_end("u")))
    finish(world, 3_000)
    world.join(max_records=1, spare_events=0)
    assert world.metrics.value("join.late_labels") == 1
    assert world.metrics.value("join.unmatched") == 0


def test_examples_come_in_the_order_of_the_lists(world: World) -> None:
    world.show(answer("r1", "u", 50))
    world.show(answer("r2", "v", 0))
    finish(world, 1_120)
    finish(world, 1_200)
    world.join()
    assert [r.request_id for r in world.rows()] == ["r1"] * 3 + ["r2"] * 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "another"}, "another feature set"),
        ({"status": Status.INVALID, "items": ()}, "no list"),
        ({"status": Status.EXPIRED}, "no list"),
        ({"events_offset": -1}, "without position"),
        ({"user_longs": ()}, "without features"),
        ({"event_time": 1_700_000_000_000 + 86_400_000}, "in the future"),
    ],
)
def test_an_answer_that_gives_no_example_is_skipped_and_counted(
    world: World, changes: dict[str, object], reason: str
) -> None:
    world.show(answer("bad", "u", 0, **changes), timestamp_ms=1_700_000_000_000)
    world.show(answer("good", "u", 1))
    finish(world, 1_101)
    world.join()
    assert {r.request_id for r in world.rows()} == {"good"}
    assert world.metrics.value("join.skipped", reason=reason) == 1


def test_an_answer_copied_from_another_topic_is_not_joined_again(world: World) -> None:
    """Its position counts in the log where it was served, and where it was joined."""
    came_from = ((ORIGIN_HEADER, b"old-recommendations/0/3"),)
    world.show(answer("copied", "u", 0), headers=came_from)
    world.show(answer("good", "u", 1), headers=((ORIGIN_HEADER, b"w-recommendations/1/3"),))
    finish(world, 1_101)
    world.join()
    assert {r.request_id for r in world.rows()} == {"good"}
    assert world.metrics.value("join.skipped", reason="of another log") == 1


def test_records_that_do_not_decode_are_passed_over(world: World) -> None:
    world.show(answer("r", "u", 0))
    world.do(event("1", "u", "a", 5), value=b"rubbish")
    world.do(event("2", "u", "b", 5), value=None)
    world.do(
        event("3", "u", "c", 86_400_000 * 2), timestamp_ms=1_700_000_000_000
    )  # from the future
    world.show(answer("x", "u", 0), value=b"rubbish")
    finish(world)
    world.join()
    assert labels(world) == [(), (), ()]


def test_records_in_a_wrong_partition_are_passed_over(tmp_path: Path) -> None:
    world = World(tmp_path, partitions=2)
    home = world.partition("u")
    world.show(answer("r", "u", 0, events_partition=home))
    world.show(answer("lost", "u", 0, events_partition=home), partition=1 - home)
    world.do(event("1", "u", "a", 5), partition=1 - home)
    for p in (0, 1):
        key = next(f"k{i}" for i in range(99) if world.partition(f"k{i}") == p)
        world.do(event(f"end{p}", key, None, 1_100))
    world.join()
    assert [(r.request_id, r.labels) for r in world.by_partition()[home]] == [("r", ())] * 3
    assert world.by_partition()[1 - home] == []


def test_an_idle_partition_closes_by_wall_clock_and_says_where(world: World) -> None:
    world.show(answer("r", "u", 0))
    world.do(event("1", "u", "a", 5))
    world.join()
    assert labels(world) == [CLICK, (), ()]
    assert world.clock.now_ms() >= 1_700_000_000_000 + 1_100
    manifest = archive.manifests(world.root, KIND)[0]
    assert manifest.notes == ({"recommendations": 1, "user-events": 1},)
    assert world.metrics.value("join.closed_idle") == 1


def test_a_repeated_join_closes_an_idle_list_where_it_was_closed(
    world: World, tmp_path: Path
) -> None:
    world.show(answer("r", "u", 0))
    world.do(event("1", "u", "a", 5))
    world.join()
    world.do(event("2", "u", "b", 6))  # too late
    finish(world)
    first = archive.manifests(world.root, KIND)[0]
    again = tmp_path / "again"
    start = archive.Manifest(
        kind=KIND,
        partition=0,
        sequence=0,
        generation=0,
        position={"recommendations": 0, "user-events": 0},
        log=first.log,
        fingerprint=first.fingerprint,
    )
    archive.claim(again, start, ".tfrecord.gz").commit(start.position, first.notes)
    world.join(again)
    assert world.rows(again) == world.rows()


def test_a_list_served_behind_the_others_finds_its_events(world: World) -> None:
    world.do(event("1", "u", "a", 5))
    for i in range(50):
        world.do(event(f"x{i}", "other", None, 6))
    world.show(answer("r1", "v", 6, events_offset=world.events_end("v")))
    world.show(answer("r2", "u", 4, events_offset=0))
    finish(world, 1_200)
    world.join(max_records=7)
    assert labels(world) == [(), (), (), CLICK, (), ()]


def test_a_list_of_an_earlier_time_finds_events_that_were_passed_over(world: World) -> None:
    for i in range(10):
        world.do(event(f"x{i}", "other", None, 9_000))
    end = world.events_end("u")
    world.show(answer("r1", "v", 9_000, events_offset=end))
    world.show(answer("r2", "w", 9_001, events_offset=end))
    world.show(answer("r3", "u", 0, events_offset=end))
    world.do(event("1", "u", "a", 5))  # far older than r1: not kept at first
    finish(world, 20_000)
    world.join(max_records=1, max_lists=2, spare_events=3)
    assert labels(world)[-3:] == [CLICK, (), ()]


def test_a_second_worker_takes_over_and_the_first_is_refused(world: World) -> None:
    world.show(answer("r", "u", 0))
    finish(world)
    first = world.worker()
    first._claim()  # as after its first step
    world.join()
    with pytest.raises(PositionMoved):
        first.run(Stop(world.clock), world.ends())
    assert len(world.rows()) == 3


def busy(world: World) -> None:
    for i in range(40):
        user = f"u{i % 5}"
        world.show(answer(f"r{i}", user, 100 * i, events_offset=world.events_end(user)))
        world.do(event(f"e{i}", user, "abc"[i % 3], 100 * i + 10))
        world.do(event(f"f{i}", user, "abc"[i % 2], 100 * i + 20, request_id=f"r{i - 1}"))
    finish(world, 6_000)


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_step_of_the_disk_gives_the_same_examples_once(
    world: World, tmp_path: Path, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    busy(world)
    world.join(tmp_path / "calm")
    expected = world.rows(tmp_path / "calm")
    assert len(expected) == 120
    assert sum(len(row.labels) for row in expected) > 40
    sizes = {"max_records": 9, "take_lists": 3}
    for at in range(1 + after, 66, 5):
        root = tmp_path / f"crash-{at}"
        try:
            world.join(root, FaultyDisk(LocalDisk(), at, after=after), **sizes)
        except ArchiveUnavailable:
            world.join(root, **sizes)
        assert world.rows(root) == expected
        assert list(archive.verify(root, KIND)) == []


def test_a_crash_at_any_record_gives_the_same_examples_once(world: World, tmp_path: Path) -> None:
    busy(world)
    world.join(tmp_path / "calm")
    for topic in (world.topics.recommendations, world.topics.user_events):
        for at in (1, 7, 20, 33):
            world.log._partition(TopicPartition(topic, 0)).faults[at] = [Crash()]
    crashes = 0
    while True:
        try:
            world.join(max_records=4, take_lists=2)
            break
        except Crash:
            crashes += 1
    assert crashes == 8
    assert world.rows() == world.rows(tmp_path / "calm")
