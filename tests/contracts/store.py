"""What every feature store promises. Subclass and override the fixture `store`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import pytest

from features.store import (
    Lease,
    PartialOutbox,
    Position,
    RowReader,
    RowWriter,
    Update,
)
from schemas.errors import Misconfigured, PositionForeign, PositionMoved

START = Position(cluster_id="cluster", topic_id="topic", epoch=1, next_offset=0)


class Store(RowWriter, RowReader, PartialOutbox, Protocol):
    """All three seams at once."""


def update(
    next_offset: int, rows: dict[str, bytes] | None = None, partials: dict[str, bytes] | None = None
) -> Update:
    return Update(rows=rows or {}, partials=partials or {}, next_offset=next_offset)


class StoreContract:
    """Two stores over one state: `store` is ours, `other` is another process's view of it."""

    @pytest.fixture
    def open_store(self) -> Callable[[], Store]:
        """Each call gives another client of the same, initially empty, state."""
        raise NotImplementedError

    @pytest.fixture
    def lose_everything(self) -> Callable[[], None]:
        """Empties that state, as FLUSHALL does."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_store: Callable[[], Store]) -> Store:
        return open_store()

    @pytest.fixture
    def other(self, store: Store, open_store: Callable[[], Store]) -> Store:
        return open_store()

    @pytest.fixture
    def lease(self, store: Store) -> Lease:
        return store.claim(0, START)

    def test_a_partition_without_position_begins_at_the_explicit_start(self, store: Store) -> None:
        assert store.positions([0, 1]) == {0: None, 1: None}
        assert store.claim(0, START) == Lease(partition=0, position=START)
        assert store.positions([0, 1]) == {0: START, 1: None}

    def test_a_missing_position_without_start_is_an_error_that_names_the_rebuild(
        self, store: Store
    ) -> None:
        with pytest.raises(Misconfigured, match="features rebuild --partition 3"):
            store.claim(3, None)
        assert store.positions([3]) == {3: None}

    def test_a_claim_keeps_the_stored_offset_and_raises_the_epoch(
        self, store: Store, other: Store, lease: Lease
    ) -> None:
        store.write(lease, update(9))
        assert other.claim(0, START).position == Position(
            cluster_id="cluster", topic_id="topic", epoch=2, next_offset=9
        )
        assert other.claim(0, None).position.epoch == 3

    def test_a_position_of_another_log_is_not_claimed(self, store: Store, lease: Lease) -> None:
        foreign = Position(cluster_id="cluster", topic_id="recreated", epoch=1, next_offset=0)
        with pytest.raises(PositionForeign, match="recreated"):
            store.claim(0, foreign)
        assert store.positions([0]) == {0: START}

    def test_concurrent_claims_get_different_epochs(
        self, open_store: Callable[[], Store], lease: Lease
    ) -> None:
        epochs: list[int] = []

        def claim(client: Store) -> None:
            epochs.append(client.claim(0, None).position.epoch)

        threads = [threading.Thread(target=claim, args=(open_store(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(epochs) == [2, 3, 4, 5]

    def test_what_is_written_is_read_in_the_order_asked_for(
        self, store: Store, lease: Lease
    ) -> None:
        moved = store.write(lease, update(5, {"ann": b"A", "bob": b"B"}, {"film": b"F"}))
        assert moved.position == START.at(5)
        values = store.read(moved, ["bob", "nobody", "ann"], ["film", "nothing"])
        assert list(values.rows) == [b"B", None, b"A"]
        assert list(values.partials) == [b"F", None]

    def test_an_empty_update_moves_the_position(self, store: Store, lease: Lease) -> None:
        moved = store.write(lease, update(8))
        assert store.positions([0]) == {0: START.at(8)}
        store.read(moved, [], [])

    def test_the_position_carries_origins_and_counts_until_they_are_replaced(
        self, store: Store, other: Store, lease: Lease
    ) -> None:
        moved = store.write(
            lease,
            Update(rows={}, partials={}, next_offset=3, origins=((2, 9),), counts=(("folded", 3),)),
        )
        assert other.positions([0])[0] == moved.position
        moved = store.write(moved, update(4))
        claimed = other.claim(0, None).position
        assert (claimed.origins, claimed.counts) == (((2, 9),), (("folded", 3),))

    def test_partials_are_read_with_the_position_they_stand_at(
        self, store: Store, other: Store, lease: Lease
    ) -> None:
        moved = store.write(lease, update(5, {}, {"film": b"F"}))
        snapshot = other.partials(0, ["none", "film"])
        assert (snapshot.position, list(snapshot.rows)) == (moved.position, [None, b"F"])

    def test_a_later_row_replaces_the_former(self, store: Store, lease: Lease) -> None:
        moved = store.write(lease, update(1, {"ann": b"old"}))
        store.read(moved, ["ann"], [])
        store.write(moved, update(2, {"ann": b"new"}))
        assert list(store.snapshots({0: ["ann"]})[0].rows) == [b"new"]

    def test_a_zombie_reads_nothing_after_a_takeover(
        self, store: Store, other: Store, lease: Lease
    ) -> None:
        other.claim(0, None)
        with pytest.raises(PositionMoved):
            store.read(lease, ["ann"], [])

    def test_a_zombie_writes_nothing_after_a_takeover(
        self, store: Store, other: Store, lease: Lease
    ) -> None:
        store.read(lease, ["ann"], ["film"])
        taken = other.claim(0, None)
        with pytest.raises(PositionMoved):
            store.write(lease, update(5, {"ann": b"zombie"}, {"film": b"zombie"}))
        snapshot = other.snapshots({0: ["ann"]})[0]
        assert (snapshot.position, list(snapshot.rows)) == (taken.position, [None])
        assert list(other.read(taken, [], ["film"]).partials) == [None]
        assert other.unpublished(0, 10).partials == {}

    def test_an_owner_that_takes_back_reads_what_was_written_meanwhile(
        self, store: Store, other: Store, lease: Lease
    ) -> None:
        store.write(lease, update(1, {"ann": b"mine"}, {"film": b"mine"}))
        other.write(other.claim(0, None), update(2, {"ann": b"theirs"}, {"film": b"theirs"}))
        values = store.read(store.claim(0, None), ["ann"], ["film"])
        assert (list(values.rows), list(values.partials)) == ([b"theirs"], [b"theirs"])

    def test_nothing_is_written_when_the_position_moved_between_read_and_write(
        self, store: Store, other: Store, lease: Lease
    ) -> None:
        store.read(lease, ["ann"], [])
        other.write(lease, update(3, {"ann": b"first"}))  # the same lease, in another process
        with pytest.raises(PositionMoved):
            store.write(lease, update(3, {"ann": b"second"}))
        assert list(other.snapshots({0: ["ann"]})[0].rows) == [b"first"]

    def test_a_lost_position_is_not_written_again(
        self, store: Store, lease: Lease, lose_everything: Callable[[], None]
    ) -> None:
        store.read(lease, ["ann"], [])
        lose_everything()
        with pytest.raises(PositionMoved):
            store.write(lease, update(5, {"ann": b"A"}))
        with pytest.raises(PositionMoved):
            store.read(lease, ["ann"], [])
        snapshot = store.snapshots({0: ["ann"]})[0]
        assert (snapshot.position, list(snapshot.rows)) == (None, [None])

    def test_partitions_are_written_in_turn_by_one_store(self, store: Store) -> None:
        first, second = store.claim(0, START), store.claim(1, START)
        store.read(first, ["ann"], [])
        store.read(second, ["ann"], [])
        store.write(first, update(1, {"ann": b"0"}))
        store.write(second, update(2, {"ann": b"1"}))
        found = store.snapshots({0: ["ann"], 1: ["ann"]})
        assert [list(found[p].rows) for p in (0, 1)] == [[b"0"], [b"1"]]
        assert [found[p].position for p in (0, 1)] == [START.at(1), START.at(2)]

    def test_a_snapshot_never_mixes_two_batches(
        self, store: Store, other: Store, lease: Lease
    ) -> None:
        """Every row says which batch wrote it: all rows of a snapshot say its position."""
        users = [f"user-{i}" for i in range(50)]
        done = threading.Event()
        torn: list[tuple[int, set[bytes | None]]] = []

        def watch() -> None:
            while not done.is_set():
                snapshot = other.snapshots({0: users})[0]
                at = snapshot.position.next_offset if snapshot.position else -1
                found = set(snapshot.rows)
                if at and found != {str(at).encode()}:
                    torn.append((at, found))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for offset in range(1, 200):
                store.read(lease, users, [])
                row = str(offset).encode()
                lease = store.write(lease, update(offset, dict.fromkeys(users, row)))
        finally:
            done.set()
            watcher.join()
        assert torn == []

    def test_bytes_pass_through_untouched(self, store: Store, lease: Lease) -> None:
        odd = {
            "empty": b"",
            "nul": b"\x00\r\n$5\r\n\xff",
            "n\u00e4me {p1}:*?[": bytes(range(256)) * 40,
            "\U0001f600": b"emoji",
        }
        moved = store.write(lease, update(1, odd, odd))
        values = store.read(moved, list(odd), list(odd))
        assert list(values.rows) == list(values.partials) == list(odd.values())
        assert store.keys(0).users == store.keys(0).items == set(odd)

    def test_changed_partials_wait_until_they_are_settled(self, store: Store, lease: Lease) -> None:
        moved = store.write(lease, update(5, {}, {"film": b"F", "song": b"S"}))
        waiting = store.unpublished(0, 10)
        assert waiting.partials == {"film": b"F", "song": b"S"}
        assert (waiting.mark, waiting.events_offset) == (5, 5)
        store.settle(0, waiting.mark, ["film"])
        assert store.unpublished(0, 10).partials == {"song": b"S"}
        store.settle(0, waiting.mark, ["song"])
        assert store.unpublished(0, 10).partials == {}
        assert list(store.read(moved, [], ["film"]).partials) == [b"F"]

    def test_a_change_between_unpublished_and_settle_is_not_forgotten(
        self, store: Store, lease: Lease
    ) -> None:
        moved = store.write(lease, update(5, {}, {"film": b"old", "song": b"S"}))
        waiting = store.unpublished(0, 10)
        store.write(moved, update(6, {}, {"film": b"new"}))
        store.settle(0, waiting.mark, list(waiting.partials))
        again = store.unpublished(0, 10)
        assert (again.partials, again.mark) == ({"film": b"new"}, 6)

    def test_the_oldest_changes_come_first_and_the_limit_holds(
        self, store: Store, lease: Lease
    ) -> None:
        for offset in range(1, 6):
            lease = store.write(lease, update(offset, {}, {f"item-{offset}": b"x"}))
        waiting = store.unpublished(0, 2)
        assert sorted(waiting.partials) == ["item-1", "item-2"]
        assert (waiting.mark, waiting.events_offset) == (2, 5)

    def test_partitions_do_not_share_rows_partials_or_marks(self, store: Store) -> None:
        lease = store.claim(1, START)
        store.claim(10, START)
        store.write(lease, update(3, {"ann": b"A"}, {"film": b"F"}))
        assert list(store.snapshots({10: ["ann"]})[10].rows) == [None]
        assert store.unpublished(10, 5).partials == {}
        assert store.keys(10).users == frozenset()

    def test_clear_deletes_all_but_the_position(self, store: Store, lease: Lease) -> None:
        rows = {f"user-{i}": b"row" for i in range(2_500)}
        neighbour = store.claim(1, START)
        store.write(neighbour, update(1, {"ann": b"A"}))
        moved = store.write(lease, update(4, rows, {"film": b"F"}))
        store.clear(moved)
        assert store.keys(0).users == store.keys(0).items == frozenset()
        assert store.unpublished(0, 5).partials == {}
        assert store.positions([0]) == {0: START.at(4)}
        assert store.keys(1).users == {"ann"}

    def test_clear_deletes_the_position_too_when_told(self, store: Store, lease: Lease) -> None:
        moved = store.write(lease, update(4, {"ann": b"A"}))
        store.clear(moved, position=True)
        assert store.positions([0]) == {0: None}
        assert store.keys(0).users == frozenset()
        assert store.claim(0, START).position == START

    def test_a_zombie_clears_nothing(self, store: Store, other: Store, lease: Lease) -> None:
        store.write(lease, update(4, {"ann": b"A"}))
        taken = other.claim(0, None)
        with pytest.raises(PositionMoved):
            store.clear(lease)
        assert list(other.read(taken, ["ann"], []).rows) == [b"A"]
