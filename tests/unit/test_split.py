from typing import Any

import pytest

from features.split import Pool, Split
from features.store import Lease, Update
from features.store_memory import MemoryStore
from schemas.errors import PositionMoved, StoreUnavailable
from tests.memory_world import World


class FlakyStore(MemoryStore):
    """Fails some writes: before they happen, or after (the acknowledgement is lost)."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_before = self.fail_after = self.spared = 0

    def fail_second(self, *, told: bool) -> None:
        """The write after the next one fails: before it happens, or after."""
        self.fail_before, self.fail_after, self.spared = int(told), int(not told), 1

    def write(self, lease: Lease, update: Update) -> Lease:
        if self.spared:
            self.spared -= 1
            return super().write(lease, update)
        if self.fail_before:
            self.fail_before -= 1
            raise StoreUnavailable("refused")
        moved = super().write(lease, update)
        if self.fail_after:
            self.fail_after -= 1
            raise StoreUnavailable("no acknowledgement")
        return moved


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
def world(store: FlakyStore) -> World:
    found = World()
    found.store = store
    found.put(range(100))
    return found


def drained(split: Split) -> int:
    count = 0
    while batches := split.poll(0):
        split.handle(batches)
        count += sum(map(len, batches))
    return count


def test_a_poll_gathers_a_batch_of_each_partition_and_holds_back_the_next(world: World) -> None:
    split = world.split()
    split.open()
    split._parts.source.poll = cutting(split._parts.source.poll)
    given: dict[int, list[tuple[int, int]]] = {}
    sizes = []
    while batches := split.poll(0):
        sizes.append(len(batches))
        assert len({batch.partition for batch in batches}) == len(batches)
        for batch in batches:
            given.setdefault(batch.partition, []).append((batch.start_offset, batch.next_offset))
        split.handle(batches)
    assert max(sizes) == 2
    assert sum(spans[-1][1] for spans in given.values()) == 100
    for spans in given.values():
        assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert world.contents() == peaceful().contents()


def cutting(poll: Any) -> Any:
    """Seven records at most, whatever is asked for; a partition may come twice in a row."""
    return lambda most, timeout_s: poll(min(most, 7), timeout_s)


def test_large_batches_are_folded_by_themselves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.split.GATHERED_RECORDS", 10)
    split = world.split()
    split.open()
    assert len(split.poll(0)) == 1


@pytest.mark.parametrize("told", [True, False])
def test_partitions_that_were_written_before_one_failed_are_not_written_again(
    world: World, store: FlakyStore, told: bool
) -> None:
    split = world.split()
    split.open()
    batches = split.poll(0)
    assert len(batches) == 2
    store.fail_second(told=told)
    split.handle(batches)
    assert world.contents() == peaceful().contents()
    folded = (dict(p.counts)["folded"] for p in store.positions([0, 1]).values() if p)
    assert sum(folded) == 100


def peaceful() -> World:
    other = World()
    other.put(range(100))
    other.fold()
    return other


def test_a_store_that_is_gone_for_a_while_holds_the_batch_up(
    world: World, store: FlakyStore
) -> None:
    split = world.split()
    split.open()
    store.fail_before = 5
    assert drained(split) == 100
    assert world.contents() == peaceful().contents()


def test_a_write_whose_acknowledgement_was_lost_is_not_done_twice(
    world: World, store: FlakyStore
) -> None:
    split = world.split()
    split.open()
    store.fail_after = 1
    assert drained(split) == 100
    assert world.contents() == peaceful().contents()
    folded = (dict(p.counts)["folded"] for p in store.positions([0, 1]).values() if p)
    assert sum(folded) == 100


def test_a_stop_ends_the_waiting_with_the_error(world: World, store: FlakyStore) -> None:
    split = world.split()
    split.open()
    store.fail_before = 1_000
    batches = split.poll(0)
    assert batches
    split.stop()
    with pytest.raises(StoreUnavailable):
        split.handle(batches)


def test_a_split_that_failed_is_dropped_and_opened_anew(world: World) -> None:
    pool, opened = Pool(), []

    def open_split() -> Split:
        opened.append(world.split())
        return opened[-1]

    split = pool.get("s", open_split)
    assert pool.get("s", open_split) is split
    with pytest.raises(PositionMoved, match="taken"), pool.using("s"):
        raise PositionMoved("taken")
    assert isinstance(pool.failure, PositionMoved)
    with pytest.raises(PositionMoved, match="read again"), pool.using("s"):
        pass
    assert pool.get("s", open_split) is not split
    pool.reset()
    assert (pool.failure, len(opened)) == (None, 2)


def test_a_split_that_cannot_be_opened_leaves_its_error_behind(
    world: World, store: FlakyStore
) -> None:
    pool = Pool()
    world.fold()
    world.create_log()
    with pytest.raises(Exception, match="features rebuild"):
        pool.get("s", world.split)
    assert pool.failure is not None


class Beside:
    """What runs beside a fold: says when it began and ended."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def close(self) -> None:
        self._told.append("ended")


def test_what_runs_beside_begins_once_the_partitions_are_claimed_and_ends_with_the_split(
    world: World,
) -> None:
    told: list[str] = []

    def begin(split: Split) -> Beside:
        told.append(f"owns {[p for p in split.partitions if split.owns(p)]}")
        return Beside(told)

    split = world.split(beside=begin)
    split.open()
    split.close()
    split.close()
    assert told == ["owns [0, 1]", "ended"]


def test_a_failure_beside_the_fold_is_the_splits_own(world: World) -> None:
    pool = Pool()
    split = pool.get("s", world.split)
    split.fail(PositionMoved("fenced"))
    split.fail(PositionMoved("again"))
    with pytest.raises(PositionMoved, match="fenced"), pool.using("s") as found:
        found.poll(0)
    assert isinstance(pool.failure, PositionMoved)
    # The next one has a new life, as after any other failure: a cluster starts its tasks again.
    assert drained(pool.get("s", world.split)) == 100
    pool.reset()
