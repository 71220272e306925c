"""The fold's rules, one by one, each by columns and event by event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from features.declare import DAY_MS, HOUR_MS, RowPolicy
from features.fold import EventColumns, Folded, fold, fold_one_by_one
from features.hashing import hash_id
from features.rows import Rows, empty, encode
from features.tiles import window_counts
from schemas.events import EventType

MINE = "0123456789abcdef"
NOW = 20_000 * DAY_MS + 12 * HOUR_MS
CLICK = EventType.CLICK
Fold = Callable[[Rows, EventColumns, RowPolicy], Folded]


@pytest.fixture(params=[fold, fold_one_by_one], ids=["columns", "one-by-one"])
def folding(request: pytest.FixtureRequest) -> Fold:
    found: Fold = request.param
    return found


def events(*given: dict[str, Any]) -> EventColumns:
    """Clicks on item 1 by user 0 at NOW, but for what is said."""
    full = [
        {"row": 0, "id": 100 + i, "item": 1, "type": CLICK, "at": NOW, "erase": False} | e
        for i, e in enumerate(given)
    ]
    return columns(full)


def columns(full: Sequence[dict[str, Any]]) -> EventColumns:
    return EventColumns(
        row=np.array([e["row"] for e in full], np.int64),
        event_id=np.array([e["id"] for e in full], np.uint64),
        item=np.array([e["item"] for e in full], np.uint64),
        event_type=np.array([e["type"] for e in full], np.uint8),
        event_time_ms=np.array([e["at"] for e in full], np.int64),
        value=np.array([e.get("value", np.nan) for e in full], np.float32),
        erase=np.array([e["erase"] for e in full], np.bool_),
        profile_event=np.array(
            [i for i, e in enumerate(full) for _ in e.get("profile", {})], np.int64
        ),
        profile_name=np.array([hash_id(n) for e in full for n in e.get("profile", {})], np.uint64),
        profile_value=np.array(
            [hash_id(v) for e in full for v in e.get("profile", {}).values()], np.uint64
        ),
    )


def clicks(rows: Rows, now_ms: int = NOW, **window: int) -> list[int]:
    now = np.full(len(rows), now_ms)
    return window_counts(rows, [CLICK], now, **window).tolist()


def test_a_repeated_id_is_counted_once(folding: Fold) -> None:
    folded = folding(empty(2), events({"id": 7}, {"id": 7}, {"id": 7, "row": 1}), RowPolicy())
    assert folded.duplicate.tolist() == [False, True, False]
    assert clicks(folded.rows, hours=24) == [1, 1]


def test_ids_that_agree_in_32_bits_are_taken_for_one(folding: Fold) -> None:
    """What a ring stores decides, in a batch and between two: cuts change nothing."""
    rows = folding(empty(1), events({"id": 7}), RowPolicy()).rows
    assert folding(rows, events({"id": 2**32 + 7}), RowPolicy()).duplicate.tolist() == [True]
    both = folding(empty(1), events({"id": 7}, {"id": 2**32 + 7}), RowPolicy())
    assert both.duplicate.tolist() == [False, True]


def test_an_id_is_forgotten_with_the_ring_length_th_push_after_it(folding: Fold) -> None:
    policy = RowPolicy(ring_length=5)
    rows = folding(empty(1), events(*[{"id": i} for i in range(1, 6)]), policy).rows
    # The ring holds 1..5. One push evicts 1; 2 is there still, until its own turn comes.
    assert folding(rows, events({"id": 1}), policy).duplicate.tolist() == [True]
    assert folding(rows, events({"id": 6}, {"id": 1}), policy).duplicate.tolist() == [False] * 2
    assert folding(rows, events({"id": 6}, {"id": 2}), policy).duplicate.tolist() == [False, True]
    within = folding(rows, events(*[{"id": i} for i in (6, 7, 8, 9, 10, 6, 11, 6)]), policy)
    assert within.duplicate.tolist() == [False] * 5 + [True, False, False]


def test_events_beyond_the_horizon_are_late_and_their_ids_known(folding: Fold) -> None:
    edge = NOW - DAY_MS
    folded = folding(empty(1), events({}, {"at": edge}, {"id": 9, "at": edge - 1}), RowPolicy())
    assert folded.late.tolist() == [False, False, True]
    assert clicks(folded.rows) == [2]
    assert int(folded.rows.first_seen_ms[0]) == edge
    again = folding(folded.rows, events({"id": 9, "at": edge - 1}), RowPolicy())
    assert again.duplicate.tolist() == [True]


def test_a_gap_longer_than_the_lifetime_starts_the_row_afresh(folding: Fold) -> None:
    policy = RowPolicy()
    rows = folding(empty(1), events({"id": 1}), policy).rows
    edge = NOW + policy.lifetime_ms
    assert clicks(folding(rows, events({"id": 2, "at": edge}), policy).rows) == [2]
    folded = folding(rows, events({"id": 2, "at": edge + 1}, {"id": 1, "at": edge + 2}), policy)
    assert folded.restarted.sum() == 1
    assert folded.accepted.all()
    assert clicks(folded.rows) == [2]
    assert folded.rows.first_seen_ms.tolist() == [edge + 1]


def test_erasure_empties_the_row_and_keeps_its_ring(folding: Fold) -> None:
    folded = folding(
        empty(1),
        events({"id": 1}, {"id": 50, "erase": True, "at": 0}, {"id": 1}, {"id": 2}),
        RowPolicy(),
    )
    assert folded.duplicate.tolist() == [False, False, True, False]
    assert (~(folded.accepted | folded.duplicate | folded.late)).sum() == 1
    assert clicks(folded.rows) == [1]
    assert folded.rows.ring.tolist() == [1, 50, 2]
    again = folding(folded.rows, events({"id": 50, "erase": True, "at": 0}), RowPolicy())
    assert again.duplicate.tolist() == [True]
    assert encode(again.rows, MINE) == encode(folded.rows, MINE)


def test_an_erased_user_is_a_user_without_events(folding: Fold) -> None:
    folded = folding(empty(1), events({}, {"id": 50, "erase": True, "at": 0}), RowPolicy())
    assert folded.rows.first_seen_ms.tolist() == [0]
    assert folded.rows.last_seen_ms.tolist() == [0]
    assert len(folded.rows.history_item) == len(folded.rows.tile_key) == 0


def test_history_holds_interactions_with_items_in_log_order(folding: Fold) -> None:
    folded = folding(
        empty(1),
        events(
            {"item": 1, "value": 4.5},
            {"item": 2, "type": EventType.IMPRESSION},
            {"item": 0},
            {"item": 3, "at": NOW - 1},
        ),
        RowPolicy(history_length=2),
    )
    assert folded.rows.history_item.tolist() == [1, 3]
    assert folded.rows.history_time_ms.tolist() == [NOW, NOW - 1]
    assert folded.rows.history_value[0] == 4.5
    assert np.isnan(folded.rows.history_value[1])


def test_tiles_leave_the_row_when_the_newest_event_moves_on(folding: Fold) -> None:
    rows = folding(empty(1), events({}), RowPolicy()).rows
    later = NOW + 23 * HOUR_MS
    assert clicks(
        folding(rows, events({"id": 1, "at": later}), RowPolicy()).rows, later, hours=24
    ) == [2]
    latest = NOW + 40 * DAY_MS
    rows = folding(rows, events({"id": 1, "at": latest}), RowPolicy()).rows
    assert len(rows.tile_key) == 3
    assert clicks(rows, latest) == [2]


def test_only_declared_attributes_are_kept_and_the_newest_wins(folding: Fold) -> None:
    policy = RowPolicy(attributes=("age", "job"))
    kind = {"type": EventType.PROFILE, "item": 0}
    folded = folding(
        empty(1),
        events(
            kind | {"profile": {"age": "20", "shoe": "42"}},
            kind | {"profile": {"age": "21"}, "at": NOW - 5},
            kind | {"profile": {"age": "99"}, "at": NOW - 2 * DAY_MS},  # late
            kind | {"profile": {"job": "miller"}},
        ),
        policy,
    )
    found = dict(
        zip(folded.rows.profile_name.tolist(), folded.rows.profile_value.tolist(), strict=True)
    )
    assert found == {hash_id("age"): hash_id("21"), hash_id("job"): hash_id("miller")}


def test_unknown_types_are_counted_and_not_in_the_history(folding: Fold) -> None:
    folded = folding(empty(1), events({"type": EventType.UNKNOWN}), RowPolicy())
    assert window_counts(folded.rows, [EventType.UNKNOWN], np.array([NOW]), days=7).tolist() == [1]
    assert len(folded.rows.history_item) == 0


def test_one_hot_user_and_many_users_fold_as_one_by_one_does() -> None:
    """Real lengths: rings of 256 turn over, users by the thousand."""
    rng = np.random.default_rng(7)
    for users, n in ((1, 3_000), (700, 3_000)):
        rows_a = rows_b = empty(users)
        for batch in range(2):
            given = EventColumns(
                row=np.minimum(rng.zipf(1.2, n) - 1, users - 1),
                event_id=rng.integers(1, n * 20, n).astype(np.uint64) + np.uint64(batch),
                item=rng.integers(0, 50, n).astype(np.uint64),
                event_type=rng.integers(0, 11, n).astype(np.uint8),
                event_time_ms=NOW + np.cumsum(rng.integers(-1_000_000, 1_200_000, n)),
                value=rng.random(n).astype(np.float32),
                erase=rng.random(n) < 0.0005,
            )
            a, b = fold(rows_a, given, RowPolicy()), fold_one_by_one(rows_b, given, RowPolicy())
            rows_a, rows_b = a.rows, b.rows
            assert encode(rows_a, MINE) == encode(rows_b, MINE)
            for fate in ("accepted", "duplicate", "late", "restarted"):
                assert getattr(a, fate).tolist() == getattr(b, fate).tolist()


def cut(given: EventColumns, size: int) -> list[EventColumns]:
    return [
        given.take(np.arange(at, min(at + size, len(given)))) for at in range(0, len(given), size)
    ]


def crowd(n: int, users: int, step_ms: int) -> EventColumns:
    """n interactions with one hot item, `step_ms` apart, by users of whom the first is hot."""
    rng = np.random.default_rng(17)
    return EventColumns(
        row=np.where(rng.random(n) < 0.5, 0, rng.integers(0, users, n)),
        event_id=rng.permutation(n).astype(np.uint64) + np.uint64(1),
        item=np.full(n, 7, np.uint64),
        event_type=rng.integers(1, 10, n).astype(np.uint8),
        event_time_ms=NOW + np.arange(n) * step_ms,
        value=rng.random(n).astype(np.float32),
        erase=np.zeros(n, np.bool_),
    )


@pytest.mark.parametrize("users", [1, 2_000])
def test_a_hundred_thousand_events_of_one_second_are_all_counted(users: int) -> None:
    given = crowd(100_000, users, 0)
    whole = fold(empty(users), given, RowPolicy())
    assert whole.accepted.all()
    assert int(window_counts(whole.rows, range(11), np.full(users, NOW), hours=1).sum()) == 100_000
    rows = empty(users)
    for some in cut(given, 8_192):
        rows = fold(rows, some, RowPolicy()).rows
    assert encode(rows, MINE) == encode(whole.rows, MINE)


def test_a_row_stays_small_however_much_its_user_does() -> None:
    """60,000 events of 170 bytes are 10 MB of the log."""
    rows, most = empty(1), 0
    for some in cut(crowd(60_000, 1, 60_000), 4_096):
        rows = fold(rows, some, RowPolicy()).rows
        most = max(most, len(encode(rows, MINE)[0]))
    assert most < 4_096
    assert int(window_counts(rows, range(11), rows.last_seen_ms).sum()) == 60_000


def test_batches_of_one_user_and_empty_ones_fold_as_the_whole() -> None:
    given = crowd(300, 5, 1_000)
    whole = fold(empty(5), given, RowPolicy()).rows
    alone = []
    for user in range(5):
        mine = given.take(np.flatnonzero(given.row == user))
        mine = replace(mine, row=np.zeros(len(mine), np.int64))
        rows = fold(empty(1), mine.take(np.arange(0)), RowPolicy()).rows
        for some in cut(mine, 1):
            rows = fold(rows, some, RowPolicy()).rows
        alone += encode(fold(rows, mine.take(np.arange(0)), RowPolicy()).rows, MINE)
    assert alone == encode(whole, MINE)


def test_far_more_rows_than_a_running_maximum_of_times_can_hold() -> None:
    """2**62 ms times rows overflow 64 bits: ranks take over."""
    late = (2**26 - 2) * HOUR_MS
    users = 2**16 + 10
    given = events({"row": users - 1, "at": late}, {"row": 3}, {"row": users - 1, "at": late - 5})
    folded = fold(empty(users), given, RowPolicy())
    assert folded.accepted.all()
    assert folded.rows.last_seen_ms[[3, users - 1]].tolist() == [NOW, late]
    assert folded.rows.first_seen_ms[[3, users - 1]].tolist() == [NOW, late - 5]


@pytest.mark.parametrize("at", [0, -1, 2**26 * HOUR_MS])
def test_times_that_no_tile_can_hold_are_refused(at: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        events({"at": at})


def test_no_events_change_nothing(folding: Fold) -> None:
    rows = fold(empty(1), events({}), RowPolicy()).rows
    assert encode(folding(rows, events(), RowPolicy()).rows, MINE) == encode(rows, MINE)


@pytest.mark.parametrize("name", ["history_length", "ring_length", "hour_tiles", "day_tiles"])
def test_a_policy_that_keeps_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be from 1 to 1000, got 0"):
        RowPolicy(**{name: 0})  # type: ignore[arg-type]


def test_more_attributes_than_a_row_can_count_are_refused() -> None:
    with pytest.raises(ValueError, match="255 attributes at most, got 256"):
        RowPolicy(attributes=tuple(f"a{n}" for n in range(256)))
