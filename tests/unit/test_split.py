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
        self.fail_before = self.fail_after = 0

    def write(self, lease: Lease, update: Update) -> Lease:
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
    while (batch := split.poll(0)) is not None:
        split.handle(batch)
        count += len(batch)
    return count


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
    batch = split.poll(0)
    assert batch is not None
    split.stop()
    with pytest.raises(StoreUnavailable):
        split.handle(batch)


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
