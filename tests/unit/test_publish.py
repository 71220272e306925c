from typing import Any

import pytest

from features.publish import MAX_ITEMS, Publisher, PublishTarget, item_key, transactional_id
from features.store import Lease, Position, Update
from features.store_memory import MemoryStore
from ingest.log import TopicPartition
from ingest.memory import Crash, MemoryLog, MemorySource, MemoryTransactionalProducer
from schemas.codec import Codec
from schemas.errors import PositionMoved
from schemas.events import ItemFeatures
from schemas.registry import MemoryRegistry

START = Position(cluster_id="c", topic_id="t", epoch=1, next_offset=0)


class World:
    """A store with one partition, and the topic that its partials are published to."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.lease: Lease = self.store.claim(3, START)
        self.log = MemoryLog()
        self.log.create_topic("item-features", 1)
        self.owner = "worker"
        self.codec = Codec(MemoryRegistry(), ItemFeatures, "item-features")

    def publisher(self, name: str = "worker", dying: tuple[str, bool] | None = None) -> Publisher:
        """Of a process; it owns the partition while it is `self.owner`."""

        def fragile(part: Any) -> Any:
            return part if dying is None else Dying(part, dying[0], after=dying[1])

        target = PublishTarget(
            topic="item-features",
            fingerprint="f" * 16,
            codec=self.codec,
            open_producer=lambda name: fragile(MemoryTransactionalProducer(self.log, name)),
        )
        return Publisher(fragile(self.store), target, lambda _: name == self.owner)

    def change(self, partials: dict[str, bytes], next_offset: int) -> None:
        update = Update(rows={}, partials=partials, next_offset=next_offset)
        self.lease = self.store.write(self.lease, update)

    def published(self) -> list[tuple[bytes | None, ItemFeatures]]:
        source = MemorySource(self.log)
        source.assign({TopicPartition("item-features", 0): 0})
        found = []
        while (batch := source.poll(10_000, 0)) is not None:
            values = map(self.codec.decode, batch.values)
            found += list(zip(batch.keys, values, strict=True))
        return found


def test_changed_partials_are_published_once_with_their_position() -> None:
    world = World()
    world.change({"film": b"F"}, 7)
    publisher = world.publisher()
    assert publisher.publish(3) == 1
    assert publisher.publish(3) == 0
    expected = ItemFeatures(
        item_id="film", partition=3, fingerprint="f" * 16, events_offset=7, partial=b"F"
    )
    assert world.published() == [(item_key("film", 3, "f" * 16), expected)]


def test_more_partials_than_fit_a_transaction_take_several() -> None:
    world = World()
    world.change({f"item-{i}": b"x" for i in range(MAX_ITEMS + 5)}, 1)
    publisher = world.publisher()
    assert [publisher.publish(3) for _ in range(3)] == [MAX_ITEMS, 5, 0]
    assert len(world.published()) == MAX_ITEMS + 5


class Dying:
    """An outbox, or a producer, that dies at one step of its work, before or after doing it."""

    def __init__(self, inner: Any, step: str, *, after: bool) -> None:
        self._inner, self._step, self._after = inner, step, after
        self._dead = False

    def __getattr__(self, name: str) -> Any:
        if self._dead:
            return lambda *_: None  # a killed process aborts and closes nothing
        do = getattr(self._inner, name)
        if name != self._step:
            return do

        def dies(*given: Any) -> None:
            if self._after:
                do(*given)
            self._dead = True
            raise Crash

        return dies


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["begin", "send", "commit", "unpublished", "settle"])
def test_a_publisher_killed_at_any_step_leaves_readers_as_if_it_had_not_been(
    step: str, after: bool
) -> None:
    world = World()
    world.change({"film": b"F", "song": b"S"}, 7)
    world.publisher().publish(3)
    world.change({"film": b"G", "book": b"B"}, 9)
    with pytest.raises(Crash):
        world.publisher(dying=(step, after)).publish(3)
    world.change({"poem": b"P"}, 11)
    heir = world.publisher()
    while heir.publish(3):
        pass
    newest = {features.item_id: features.partial for _, features in world.published()}
    assert newest == {"film": b"G", "song": b"S", "book": b"B", "poem": b"P"}
    assert world.store.unpublished(3, 10).partials == {}
    assert world.publisher().publish(3) == 0


def test_a_zombie_is_fenced_and_settles_nothing() -> None:
    world = World()
    world.change({"film": b"F"}, 1)
    zombie, heir = world.publisher("zombie"), world.publisher("heir")
    world.owner = "zombie"
    zombie.publish(3)
    world.owner = "heir"
    world.change({"film": b"G"}, 2)
    heir.publish(3)
    world.change({"film": b"H"}, 3)
    with pytest.raises(PositionMoved):
        zombie.publish(3)
    with pytest.raises(PositionMoved):
        zombie.publish(3)  # nor does it begin anew
    assert world.store.unpublished(3, 10).partials == {"film": b"H"}
    assert heir.publish(3) == 1
    assert [features.partial for _, features in world.published()] == [b"F", b"G", b"H"]


def test_an_owner_that_a_zombie_fenced_goes_on() -> None:
    world = World()
    world.change({"film": b"F"}, 1)
    owner = world.publisher("worker")
    owner.publish(3)
    world.change({"film": b"G"}, 2)
    MemoryTransactionalProducer(world.log, transactional_id("item-features", "f" * 16, 3))
    assert [owner.publish(3), owner.publish(3)] == [0, 1]
    assert [features.partial for _, features in world.published()] == [b"F", b"G"]
