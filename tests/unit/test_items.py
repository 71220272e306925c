"""Item partials, their stored form, and the table that sums them beside the catalogue."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from features import tiles as tiling
from features.declare import DAY_MS, HOUR_MS, RowPolicy
from features.hashing import hash_id, hash_ids
from features.items import (
    Counted,
    ItemTable,
    Partials,
    decode_partials,
    empty_partials,
    encode_partials,
    fold_partials,
)
from features.user_features import DAY
from schemas.events import EventType, Item, ItemFeatures

MINE = "0123456789abcdef"
NOW = 20_000 * DAY_MS + 12 * HOUR_MS
CLICK, VIEW = EventType.CLICK, EventType.VIEW


def partial_of(*events: tuple[EventType, int]) -> Partials:
    return fold_partials(
        empty_partials(1),
        np.zeros(len(events), np.int64),
        np.array([kind for kind, _ in events], np.uint8),
        np.array([time for _, time in events], np.int64),
        RowPolicy(),
    )


def record(item_id: str, partition: int, *events: tuple[EventType, int]) -> ItemFeatures:
    return ItemFeatures(
        item_id=item_id,
        partition=partition,
        fingerprint=MINE,
        events_offset=0,
        partial=encode_partials(partial_of(*events), MINE)[0],
    )


@pytest.fixture
def table() -> ItemTable:
    return ItemTable(MINE)


def clicks(table: ItemTable, item_id: str, now_ms: int = NOW, **window: int) -> int:
    index = np.array([table.by_id(item_id)])
    return int(table.window_counts(index, [CLICK], now_ms, **window)[0])


def test_partials_decode_to_what_was_encoded() -> None:
    partials = partial_of((CLICK, NOW), (VIEW, NOW - DAY_MS))
    stored = encode_partials(partials, MINE)
    decoded = decode_partials([None, *stored], MINE)
    assert decoded.corrupt == ()
    assert encode_partials(decoded.partials, MINE)[1:] == stored
    assert decoded.partials.newest_ms.tolist() == [0, NOW]


def test_every_damage_to_a_partial_is_noticed() -> None:
    (stored,) = encode_partials(partial_of((CLICK, NOW)), MINE)
    for at in range(len(stored)):
        bad = bytearray(stored)
        bad[at] ^= 0x10
        assert decode_partials([stored, bytes(bad)], MINE).corrupt == (1,), at
        assert decode_partials([stored, stored[:at]], MINE).corrupt == (1,), at
    assert decode_partials([stored], "f" * 16).corrupt == (0,)


def test_a_closed_day_is_whole_even_when_its_newest_event_is_in_the_hour_of_now(
    table: ItemTable,
) -> None:
    hours = [(CLICK, NOW - h * HOUR_MS) for h in range(26)]
    table.put_partials([record("a", 0, *hours)])
    assert clicks(table, "a", hours=24) == 24
    assert clicks(table, "a", hours=1) == 1


def test_closed_windows_leave_out_the_bucket_of_now(table: ItemTable) -> None:
    table.put_partials([record("a", 0, (CLICK, NOW), (CLICK, NOW - DAY_MS))])
    assert clicks(table, "a", NOW, days=7) == 1
    assert clicks(table, "a", NOW + DAY_MS, days=7) == 2
    assert clicks(table, "a", NOW, hours=24) == 1
    assert clicks(table, "a") == 2  # totals


def test_partitions_are_added_up_and_a_repeat_replaces(table: ItemTable) -> None:
    earlier = NOW - HOUR_MS
    table.put_partials([record("a", 0, (CLICK, earlier)), record("a", 1, (CLICK, earlier))])
    assert clicks(table, "a", hours=24) == 2
    table.put_partials([record("a", 0, (CLICK, earlier), (CLICK, earlier))] * 2)
    assert clicks(table, "a", hours=24) == 3


def test_damaged_partials_are_counted_and_left_out(table: ItemTable) -> None:
    good = record("a", 0, (CLICK, NOW - HOUR_MS))
    damaged = replace(record("b", 0, (CLICK, NOW)), partial=b"rubbish")
    assert table.put_partials([damaged, good]) == 1
    assert list(table.ids) == ["a"]


def test_what_another_feature_set_says_of_an_item_is_passed_over(table: ItemTable) -> None:
    good = record("a", 0, (CLICK, NOW - HOUR_MS))
    foreign = replace(
        good,
        fingerprint="f" * 16,
        partial=encode_partials(partial_of(*[(CLICK, NOW)] * 5), "f" * 16)[0],
    )
    assert table.put_partials([good, foreign]) == 0
    assert clicks(table, "a") == 1


def test_an_item_known_from_events_alone_is_there_and_not_available(table: ItemTable) -> None:
    table.put_partials([record("a", 0, (CLICK, NOW - HOUR_MS))])
    assert (table.listed.tolist(), table.available.tolist()) == ([False], [False])
    table.put_items([Item(item_id="a", title="A", creator="c", price=2.0)])
    assert (table.listed.tolist(), table.available.tolist()) == ([True], [True])
    assert clicks(table, "a", hours=24) == 1


def test_the_catalogue_is_columns(table: ItemTable) -> None:
    many = tuple(f"c{i}" for i in range(10))
    table.put_items(
        [
            Item(item_id="a", title="A", categories=("x", "y"), published_at=NOW),
            Item(item_id="b", title="B", categories=many, creator="z", price=1.5, available=False),
        ]
    )
    assert table.hashes.tolist() == [hash_id("a"), hash_id("b")]
    assert table.categories[0].tolist() == [hash_id("x"), hash_id("y"), 0, 0, 0, 0, 0, 0]
    assert table.categories[1].tolist() == [hash_id(c) for c in many[:8]]
    assert table.creator.tolist() == [0, hash_id("z")]
    assert table.published_ms.tolist() == [NOW, 0]
    assert np.isnan(table.price[0])
    assert table.price[1] == 1.5
    assert table.available.tolist() == [True, False]


def test_of_one_item_the_last_entry_counts_and_its_index_stays(table: ItemTable) -> None:
    table.put_items([Item(item_id=str(i), title="old") for i in range(100)])
    held = table.price
    table.put_items(
        [
            Item(item_id="7", title="newer", price=1.0),
            Item(item_id="new", title="new"),
            Item(item_id="7", title="newest", price=2.0),
        ]
    )
    assert table.by_id("7") == 7
    assert table.price[7] == 2.0
    assert table.by_id("new") == 100
    assert np.isnan(held).all()  # what a reader holds does not change


def test_unknown_items_have_no_index_and_no_events(table: ItemTable) -> None:
    assert table.index(hash_ids(["a", None])).tolist() == [-1, -1]
    assert table.by_id("a") == -1
    assert table.window_counts(np.array([-1]), [CLICK], NOW, days=7).tolist() == [0]


def test_each_candidate_has_its_own_now(table: ItemTable) -> None:
    table.put_partials([record("a", 0, (CLICK, NOW))])
    now = np.array([NOW - DAY_MS, NOW, NOW + DAY_MS, NOW + 9 * DAY_MS])
    assert table.window_counts(np.zeros(4, np.int64), [CLICK], now, days=7).tolist() == [0, 0, 1, 0]


def test_thousands_of_items_are_found_again(table: ItemTable) -> None:
    ids = [f"item-{i}" for i in range(5_000)]
    for at in range(0, len(ids), 700):
        table.put_items([Item(item_id=i, title=i) for i in ids[at : at + 700]])
    assert table.index(hash_ids(ids)).tolist() == list(range(len(ids)))
    assert list(table.ids) == ids


def test_readers_see_whole_partials_while_a_writer_replaces_them(table: ItemTable) -> None:
    """Every version of an item has as many clicks as views: no reader may see a mixture."""
    ids = [f"i{n}" for n in range(20)]
    writes, failures, done = 300, [], threading.Event()
    hour = NOW - HOUR_MS

    def read() -> None:
        while not done.is_set():
            index = table.index(hash_ids(ids))
            windows = table.windows(index, NOW)
            clicked, viewed = (windows.counts((Counted((kind,), DAY),)) for kind in (CLICK, VIEW))
            if (clicked != viewed).any():
                failures.append((clicked, viewed))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(writes):
        events = [(kind, hour) for kind in (CLICK, VIEW)] * (n % 7 + 1)
        table.put_partials([record(i, n % 3, *events) for i in ids])
    done.set()
    reader.join(30)
    assert not failures
    assert not reader.is_alive()


def test_counts_saturate() -> None:
    full = tiling.Tiles(
        np.array([0, 1]), np.array([3], np.uint32), np.array([2**32 - 2], np.uint32)
    )
    partials = Partials(newest_ms=np.array([NOW]), tiles=full)
    grown = fold_partials(
        partials, np.zeros(5, np.int64), np.full(5, CLICK, np.uint8), np.full(5, NOW), RowPolicy()
    )
    assert grown.tiles.count.max() == 2**32 - 1
