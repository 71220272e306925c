"""The stored rows as a repartition sees them: what they have passed, and their rebuild."""

from __future__ import annotations

import pytest

from features.refold import RebuildParts
from features.repartitioned import StoredRows
from features.store import Position, Update
from ingest.settings import Settings
from tests.memory_world import PARTITIONS, World

ELSEWHERE = Position(cluster_id="another", topic_id="another", epoch=1, next_offset=0)


@pytest.fixture
def world() -> World:
    made = World()
    made.put(range(60))
    return made


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def rows(world: World, asked: list[str]) -> StoredRows:
    def open_parts(settings: Settings) -> RebuildParts:
        asked.append(settings.topic_prefix)
        return world.parts()

    return StoredRows(Settings(), open_parts)


def test_rows_have_passed_what_they_have_folded_of_this_log(
    world: World, rows: StoredRows, asked: list[str]
) -> None:
    assert rows.passed("t-") == {}
    world.fold()
    ends = {p: end for p, (_, end) in world.log.bounds("events").items()}
    assert rows.passed("t-") == ends
    assert asked == ["t-", "t-"]
    world.create_log()
    assert rows.passed("t-") == {}


def test_a_rebuild_leaves_nothing_of_the_former_partitions(world: World, rows: StoredRows) -> None:
    for partition in range(4):  # there were more of them, and of another topic
        lease = world.store.claim(partition, ELSEWHERE)
        old = {f"old-{partition}": b"row"}
        world.store.write(lease, Update(rows=old, partials=old, next_offset=9))
    rows.rebuild("t-g2-", 4)
    same = World()
    same.put(range(60))
    same.fold()
    assert world.contents() == same.contents()
    found = world.store.positions(range(4))
    assert [found[p] is None for p in range(4)] == [p >= PARTITIONS for p in range(4)]
    assert all(not world.store.keys(p).users for p in range(PARTITIONS, 4))
