from dataclasses import replace

import pytest

from features import rows
from features.catalog import CATALOG
from features.rebuild import (
    Compared,
    RebuildReport,
    home_of,
    rebuild_partition,
    rebuild_user,
    verify,
    verify_user,
)
from ingest.log import Outgoing, TopicPartition
from ingest.placement import partition_of
from schemas.errors import Misconfigured, PositionMoved
from tests.memory_world import PARTITIONS, USERS, World


@pytest.fixture
def world() -> World:
    found = World()
    found.put(range(200))
    found.fold()
    return found


def in_partition(number: int) -> list[str]:
    return [u for u in USERS if partition_of(u.encode(), PARTITIONS) == number]


def test_undisturbed_rows_equal_the_log(world: World) -> None:
    report = verify(world.parts())
    assert report.ok
    assert report.rows == Compared(equal=len(USERS))
    assert report.partials.equal > 0


def test_rows_are_compared_at_the_offset_they_stand_at(world: World) -> None:
    world.put(range(200, 300))  # on the log, not yet folded
    assert verify(world.parts()).ok


def test_every_kind_of_difference_is_counted_and_named(world: World) -> None:
    ann = in_partition(0)[0]
    world.spoil({ann: b"rubbish", "ghost": b"x"}, {"item-0": b"rubbish"})
    report = verify(world.parts())
    assert not report.ok
    assert (report.rows.different, report.rows.extra, report.rows.missing) == (1, 1, 0)
    assert report.partials.different == 1
    assert set(report.partitions[0].named) == {
        f"{ann}: different",
        "ghost: extra",
        "item-0: different",
    }


def test_a_rebuild_puts_rows_and_partials_right_without_moving_the_position(world: World) -> None:
    before, positions = world.contents(), world.store.positions([0])
    ann = in_partition(0)[0]
    world.spoil({ann: b"rubbish"}, {"item-0": b"rubbish"})
    report = rebuild_partition(world.parts(), 0)
    assert (report.rows.different, report.partials.different) == (1, 1)
    assert world.contents() == before
    assert verify(world.parts()).ok
    moved, former = world.store.positions([0])[0], positions[0]
    assert moved is not None
    assert former is not None
    assert (moved.next_offset, moved.counts) == (former.next_offset, former.counts)


def test_an_extra_row_is_emptied(world: World) -> None:
    world.spoil({"ghost": b"x"}, {})
    rebuild_partition(world.parts(), 0)
    assert verify(world.parts()).ok


def test_one_users_row_is_rebuilt_alone(world: World) -> None:
    before = world.contents()
    ann = in_partition(0)[0]
    world.spoil({ann: b"rubbish"}, {})
    assert verify_user(world.parts(), ann).found == "different"
    assert world.contents() != before  # only looked at
    assert rebuild_user(world.parts(), ann).found == "different"
    assert world.contents() == before
    assert rebuild_user(world.parts(), ann).ok
    assert verify_user(world.parts(), ann).ok


def test_a_user_that_the_log_does_not_know_is_extra_and_emptied(world: World) -> None:
    ghost = next(f"ghost-{i}" for i in range(9) if home_of(world.parts(), f"ghost-{i}") == 0)
    assert verify_user(world.parts(), ghost).ok  # no row, and none expected
    world.spoil({ghost: b"x"}, {})
    assert rebuild_user(world.parts(), ghost).found == "extra"
    assert verify_user(world.parts(), ghost).ok


def test_a_rebuild_tells_how_far_it_has_come(world: World) -> None:
    told: list[int] = []
    parts = replace(world.parts(), tell=told.append)
    end = world.store.positions([0])[0].next_offset
    verify(parts, [0])
    assert told[-1] == end
    told.clear()
    world.store.lose()
    rebuild_partition(parts, 0)
    assert told == sorted(told)
    assert told[-1] == end


def test_a_lost_store_is_folded_afresh(world: World) -> None:
    before = world.contents()
    world.store.lose()
    for partition in range(PARTITIONS):
        rebuild_partition(world.parts(), partition)
    assert world.contents() == before
    assert RebuildReport(partitions=()).ok


def test_an_erased_user_stays_erased_in_a_rebuild(world: World) -> None:
    world.log.append(Outgoing(topic="events", key=USERS[0].encode(), value=None))
    world.fold()
    before = world.contents()
    world.store.lose()
    world.fold()
    assert world.contents() == before
    home = partition_of(USERS[0].encode(), PARTITIONS)
    stored = world.store.snapshots({home: [USERS[0]]})[home].rows
    assert rows.decode(stored, CATALOG.fingerprint).rows.history_item.tolist() == []


def test_a_store_of_another_log_is_refused_and_rebuilt(world: World) -> None:
    world.create_log()  # the topic was deleted and created again
    world.put(range(50))
    with pytest.raises(Misconfigured, match="features rebuild --partition 0"):
        world.split().open()
    for partition in range(PARTITIONS):
        rebuild_partition(world.parts(), partition)
    assert verify(world.parts()).ok
    world.put(range(50, 80))
    world.fold()
    assert verify(world.parts()).rows.equal == len(USERS)


def test_verifying_a_lost_store_names_the_command(world: World) -> None:
    world.store.lose()
    with pytest.raises(Misconfigured, match="features rebuild --partition 0"):
        verify(world.parts())


def test_a_split_resumes_where_the_store_stands(world: World) -> None:
    world.put(range(200, 260))
    world.fold()
    report = verify(world.parts())
    assert report.ok
    assert sum(p.offset for p in report.partitions) == 260


def test_a_split_that_starts_afresh_clears_what_a_lost_position_left_over(world: World) -> None:
    before = world.contents()
    held = world.store._partitions
    for partition in held.values():
        partition.position = None  # as if it alone had been lost
    world.fold()
    assert world.contents() == before


def test_a_log_without_its_head_is_folded_only_when_told(world: World) -> None:
    world.store.lose()
    world.log.delete_records(TopicPartition("events", 0), 5)
    with pytest.raises(Misconfigured, match="--from-earliest"):
        world.split().open()
    split = world.split(from_earliest=True)
    split.open()
    with pytest.raises(Misconfigured, match="earlier events are gone"):
        verify(world.parts(), [0])


def test_a_rebuild_fences_the_running_worker(world: World) -> None:
    split = world.split()
    split.open()
    world.put(range(200, 260))
    rebuild_partition(world.parts(), 0)
    assert [split.owns(p) for p in (0, 1)] == [False, True]
    refused = [batch for batch in split.poll(0) if batch.partition == 0]
    with pytest.raises(PositionMoved):
        split.handle(refused)
