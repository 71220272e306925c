"""A cluster's primary dies with writes that no replica had: noticed, folded again, every byte."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from features.redis_store import RedisStore
from features.split import Split
from ingest.clock import SystemClock
from schemas.errors import PositionMoved, StoreUnavailable
from tests.breakable_cluster import BreakableCluster, breakable_cluster
from tests.memory_world import PARTITIONS, World

pytestmark = [pytest.mark.valkey, pytest.mark.chaos]

Eventually = Callable[..., None]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[BreakableCluster]:
    with breakable_cluster(tmp_path) as made:
        yield made


@pytest.fixture
def world(cluster: BreakableCluster) -> Iterator[World]:
    store = RedisStore(cluster.options.url, uuid.uuid4().hex, timeout_s=2)
    made = World(store)
    made.clock = SystemClock()
    yield made
    store.close()


def fold(world: World, split: Split) -> None:
    while batches := split.poll(0):
        split.handle(batches)


def offsets(world: World) -> list[int]:
    found = world.store.positions(range(PARTITIONS))
    return [0 if found[p] is None else found[p].next_offset for p in range(PARTITIONS)]


def stands_at(world: World, expected: list[int]) -> bool:
    """Whether the store answers again, with these offsets."""
    try:
        return offsets(world) == expected
    except StoreUnavailable:
        return False


def lose_the_last_writes(world: World, cluster: BreakableCluster, eventually: Eventually) -> Split:
    """A worker whose last writes were acknowledged, and are gone."""
    split = world.split()
    split.open()
    world.put(range(200))
    fold(world, split)
    eventually(cluster.caught_up)
    copied = offsets(world)
    cluster.cut()
    world.put(range(200, 300))
    fold(world, split)
    assert sum(offsets(world)) == 300
    cluster.kill_primary()
    cluster.promote()
    eventually(lambda: stands_at(world, copied))
    return split


def test_a_failover_that_loses_the_last_writes_is_noticed_and_folded_again(
    world: World, cluster: BreakableCluster, eventually: Eventually
) -> None:
    split = lose_the_last_writes(world, cluster, eventually)
    before = world.contents()
    world.put(range(300, 350))
    # The worker stands at 300, in memory it has the rows as of 300: nothing of that is written.
    with pytest.raises(PositionMoved):
        fold(world, split)
    assert world.contents() == before
    world.fold()  # a new one asks the store where to go on
    assert sum(offsets(world)) == 350
    # The old one wakes up again, when the store stands further than itself: refused too.
    world.put(range(350, 360))
    with pytest.raises(PositionMoved):
        fold(world, split)
    world.fold()
    assert world.contents() == world.in_peace().contents()


def test_a_primary_that_was_replaced_while_it_hung_misleads_nobody(
    world: World, cluster: BreakableCluster, eventually: Eventually
) -> None:
    """It wakes up, and may for a moment take the old worker's writes: they are lost, no more."""
    split = world.split()
    split.open()
    world.put(range(100))
    fold(world, split)
    eventually(cluster.caught_up)
    copied = offsets(world)
    cluster.process(cluster.primary).send_signal(signal.SIGSTOP)
    cluster.promote()
    heir = World(RedisStore(cluster.options.url, world.store.set_name, timeout_s=2))
    heir.registry, heir.codec, heir.log = world.registry, world.codec, world.log
    world.put(range(100, 150))
    eventually(lambda: stands_at(heir, copied))
    heir.fold()
    cluster.process(cluster.primary).send_signal(signal.SIGCONT)

    def refused() -> bool:
        world.put(range(150, 151))
        try:
            fold(world, split)
        except PositionMoved:
            return True
        return False

    eventually(refused)
    heir.fold()
    assert heir.contents() == heir.in_peace().contents()
    heir.store.close()
