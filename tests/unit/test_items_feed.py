"""The catalogue and the aggregates on their way into a server's item table."""

from __future__ import annotations

import numpy as np
import pytest

from features.declare import RowPolicy
from features.items import ItemTable, empty_partials, encode_partials, fold_partials
from features.publish import item_key, old_item_key
from inference import items_feed
from inference.items_feed import NEVER_STOP, ItemsFeed
from inference.titles import Titles
from ingest.clock import ManualClock
from ingest.dead_letter import DeadLetters, read_dead_letters
from ingest.log import Outgoing
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.errors import Reason, RegistryUnavailable
from schemas.events import DeadLetter, EventType, Item, ItemFeatures
from schemas.registry import MemoryRegistry

TOPICS = Topics("")
MINE, OTHER = "f" * 16, "0123456789abcdef"
NOW_MS = 1_700_000_000_000


class SilentRegistry(MemoryRegistry):
    """A registry that cannot be asked when a test says so."""

    silent = False

    def schema(self, schema_id: int) -> str:
        if self.silent:
            raise RegistryUnavailable("no answer")
        return super().schema(schema_id)


class World:
    def __init__(self) -> None:
        self.log = MemoryLog()
        for topic in (TOPICS.item_updates, TOPICS.item_features, TOPICS.dead_letters):
            self.log.create_topic(topic, 1)
        self.registry = SilentRegistry()
        self.codec = Codec(self.registry, Item, TOPICS.item_updates)
        self.letters = Codec(self.registry, DeadLetter, TOPICS.dead_letters)
        self.table = ItemTable(MINE)
        dead = DeadLetters(
            MemoryProducer(self.log), self.letters, TOPICS.dead_letters, ManualClock(), NEVER_STOP
        )
        source = MemorySource(self.log)
        self.feed = ItemsFeed(source, self.table, self.registry, TOPICS, ManualClock(), dead)

    def put(self, item_id: str, value: bytes | None = b"*", topic: str = "item-updates") -> None:
        if value == b"*":
            value = self.codec.encode(Item(item_id=item_id, title=item_id.upper()))
        self.log.append(Outgoing(topic=topic, key=item_id.encode(), value=value))

    def aggregate(self, clicks: int, key: bytes, fingerprint: str = MINE) -> None:
        """Put a partial of the item `film` with so many clicks."""
        partials = fold_partials(
            empty_partials(1),
            np.zeros(clicks, np.int64),
            np.full(clicks, EventType.CLICK, np.uint8),
            np.full(clicks, NOW_MS),
            RowPolicy(),
        )
        value = ItemFeatures(
            item_id="film",
            partition=0,
            fingerprint=fingerprint,
            events_offset=0,
            partial=encode_partials(partials, fingerprint)[0],
        )
        codec = Codec(self.registry, ItemFeatures, TOPICS.item_features)
        self.log.append(Outgoing(topic=TOPICS.item_features, key=key, value=codec.encode(value)))

    def clicks(self) -> int:
        index = np.array([self.table.by_id("film")])
        return int(self.table.window_counts(index, [EventType.CLICK], NOW_MS)[0])

    def read(self) -> None:
        self.feed.open(self.log)
        while self.feed.step(0):
            pass

    def dead(self) -> list[DeadLetter]:
        source = MemorySource(self.log)
        return list(read_dead_letters(source, self.log, self.letters, TOPICS.dead_letters))


@pytest.fixture
def world() -> World:
    return World()


def test_a_bad_entry_is_dead_lettered_and_its_neighbours_are_in_the_table(world: World) -> None:
    other = world.codec.encode(Item(item_id="other", title="x"))
    nameless = world.codec.encode(Item(item_id="", title="x"))
    bad = [b"junk", b"\0\0\0\x27\x0fdatum", other, nameless]
    world.put("first")
    for value in bad:
        world.put("bad", value)
    world.put("last")
    world.put("gone", None)
    world.read()
    assert world.feed.ready.is_set()
    assert list(world.table.ids) == ["first", "last", "gone"]
    assert [(d.reason, d.topic, d.offset, d.value) for d in world.dead()] == [
        (reason, TOPICS.item_updates, 1 + at, bad[at])
        for at, reason in enumerate(
            [Reason.NOT_FRAMED, Reason.UNKNOWN_SCHEMA, Reason.KEY_MISMATCH, Reason.MISSING_FIELD]
        )
    ]


def test_a_bad_aggregate_is_dead_lettered_and_a_foreign_one_waits_for_its_successor(
    world: World,
) -> None:
    foreign = ItemFeatures(
        item_id="film", partition=0, fingerprint="other", events_offset=0, partial=b"rubbish"
    )
    codec = Codec(world.registry, ItemFeatures, TOPICS.item_features)
    world.put("film")
    world.put("film", b"junk", TOPICS.item_features)
    world.put("film", codec.encode(foreign), TOPICS.item_features)
    world.read()
    assert list(world.table.ids) == ["film"]
    (letter,) = world.dead()
    assert (letter.reason, letter.topic) == (Reason.NOT_FRAMED, TOPICS.item_features)


def test_entries_wait_for_a_registry_that_is_gone(world: World) -> None:
    world.put("film")
    world.registry.silent = True
    with pytest.raises(RegistryUnavailable):
        world.read()
    assert world.dead() == []
    world.registry.silent = False
    while world.feed.step(0):
        pass
    assert list(world.table.ids) == ["film"]
    assert world.dead() == []


def test_it_is_ready_at_once_where_nothing_stands(world: World) -> None:
    world.feed.open(world.log)
    assert world.feed.ready.is_set()


def test_it_is_ready_only_when_all_that_stood_there_is_in_the_table(world: World) -> None:
    world.put("film")
    world.feed.open(world.log)
    assert not world.feed.ready.is_set()
    world.feed.step(0)
    assert world.feed.ready.is_set()


def test_it_follows_new_prices_and_withdrawals(world: World) -> None:
    world.put("film")
    world.read()
    world.put("film", world.codec.encode(Item(item_id="film", title="film", price=2.0)))
    assert world.feed.step(0)
    assert (world.table.price.tolist(), world.table.available.tolist()) == ([2.0], [True])
    world.put("film", None)
    assert world.feed.step(0)
    assert world.table.available.tolist() == [False]


def test_the_catalogue_comes_before_the_aggregates(world: World) -> None:
    world.aggregate(1, key=item_key("film", 0, MINE))
    world.put("film")
    world.feed.open(world.log)
    world.feed.step(0)
    assert world.table.listed.tolist() == [True]
    assert world.clicks() == 0
    assert not world.feed.ready.is_set()
    world.feed.step(0)
    assert world.clicks() == 1
    assert world.feed.ready.is_set()


def test_feature_sets_share_the_topic(world: World) -> None:
    """Under one key, compaction would leave only one of them."""
    assert item_key("film", 0, MINE) != item_key("film", 0, OTHER)
    world.aggregate(3, key=item_key("film", 0, MINE))
    world.aggregate(5, key=item_key("film", 0, OTHER), fingerprint=OTHER)
    world.put("film")
    world.read()
    assert world.clicks() == 3
    assert world.dead() == []


@pytest.mark.parametrize(
    ("forms", "clicks"),
    [("o", 1), ("oo", 2), ("on", 2), ("no", 1), ("noo", 1), ("ono", 2), ("onn", 3)],
)
@pytest.mark.parametrize("batch", [1, 10])
def test_the_key_of_before_is_read_until_there_is_one_of_now(
    world: World, forms: str, clicks: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may stand on the topic, in other partitions of it, and come in any order."""
    monkeypatch.setattr(items_feed, "BATCH_RECORDS", batch)
    keys = {"o": old_item_key("film", 0), "n": item_key("film", 0, MINE)}
    for count, form in enumerate(forms, 1):
        world.aggregate(count, key=keys[form])
    world.put("film")
    world.read()
    assert world.clicks() == clicks


def test_titles_are_kept_where_they_are_wanted_the_newest_counts():
    world = World()
    world.feed.titles = Titles()
    world.put("film")
    world.put("book")
    world.put("film", world.codec.encode(Item(item_id="film", title="A new title")))
    world.feed.open(world.log)
    while world.feed.step(0):
        pass
    found = world.feed.titles.of(["film", "book", "unknown"])
    assert found == {"film": "A new title", "book": "BOOK"}
