"""The fold: columns equal the event-by-event rules, and cuts between batches change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.declare import DAY_MS, HOUR_MS, RowPolicy
from features.fold import EventColumns, Folded, fold, fold_one_by_one
from features.hashing import hash_id
from features.rows import Rows, decode, empty, encode

FINGERPRINT = "0123456789abcdef"
START = 20_000 * DAY_MS
# Small enough that rings, histories and tiles overflow, and gaps and lateness happen, all the time.
POLICY = RowPolicy(
    history_length=4,
    ring_length=5,
    hour_tiles=3,
    day_tiles=2,
    horizon_ms=12 * HOUR_MS,
    lifetime_ms=5 * DAY_MS,
    attributes=("age", "gender"),
)
USERS = 3
NAMES = [hash_id(name) for name in ("age", "gender", "not-declared")]

steps = st.one_of(
    st.integers(0, 60_000),
    st.integers(-20, 20).map(lambda h: h * HOUR_MS),
    st.sampled_from([5 * DAY_MS, 5 * DAY_MS + 1, 6 * DAY_MS, -12 * HOUR_MS, -12 * HOUR_MS - 1]),
)
one_event = st.tuples(
    st.integers(0, USERS - 1),
    st.integers(1, 14),  # few ids: repeats at every distance
    st.integers(0, 3),  # item; 0: none
    st.integers(0, 10),
    steps,
    st.sampled_from([float("nan"), 1.0, 4.5]),
    st.integers(0, 19).map(lambda n: n == 0),  # erasure
    st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 3)), max_size=2),
)


@st.composite
def event_lists(draw: st.DrawFn, max_size: int = 40) -> EventColumns:
    """Events of a few users whose times wander."""
    drawn = draw(st.lists(one_event, max_size=max_size))
    # With unique ids now and then: otherwise nearly every row takes the exact way.
    if draw(st.booleans()):
        drawn = [(e[0], 1000 + i, *e[2:6], False, e[7]) for i, e in enumerate(drawn)]
    time = np.maximum(START + np.cumsum([e[4] for e in drawn], dtype=np.int64), 1)
    loose = [(at, *pair) for at, e in enumerate(drawn) for pair in e[7]]
    return EventColumns(
        row=np.array([e[0] for e in drawn], np.int64),
        event_id=np.array([e[1] for e in drawn], np.uint64),
        item=np.array([e[2] for e in drawn], np.uint64),
        event_type=np.array([e[3] for e in drawn], np.uint8),
        event_time_ms=time,
        value=np.array([e[5] for e in drawn], np.float32),
        erase=np.array([e[6] for e in drawn], np.bool_),
        profile_event=np.array([at for at, _, _ in loose], np.int64),
        profile_name=np.array([name for _, name, _ in loose], np.uint64),
        profile_value=np.array([value for _, _, value in loose], np.uint64),
    )


def stored(rows: Rows) -> list[bytes]:
    return encode(rows, FINGERPRINT)


def part(events: EventColumns, start: int, end: int) -> EventColumns:
    return events.take(np.arange(start, end))


def assert_same(a: Folded, b: Folded) -> None:
    for fate in ("accepted", "duplicate", "late", "restarted"):
        np.testing.assert_array_equal(getattr(a, fate), getattr(b, fate), fate)
    assert stored(a.rows) == stored(b.rows)


@settings(max_examples=400, deadline=None)
@given(before=event_lists(), events=event_lists())
def test_columns_equal_one_by_one(before: EventColumns, events: EventColumns) -> None:
    rows = fold_one_by_one(empty(USERS), before, POLICY).rows
    assert_same(fold(rows, events, POLICY), fold_one_by_one(rows, events, POLICY))


@settings(max_examples=300, deadline=None)
@given(events=event_lists(max_size=60), data=st.data())
def test_where_batches_are_cut_changes_nothing(events: EventColumns, data: st.DataObject) -> None:
    whole = fold(empty(USERS), events, POLICY)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=6)))
    rows, fates = empty(USERS), []
    for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True):
        folded = fold(rows, part(events, start, end), POLICY)
        rows = decode(stored(folded.rows), FINGERPRINT).rows  # as between two batches
        fates.append(folded)
    assert stored(rows) == stored(whole.rows)
    for fate in ("accepted", "duplicate", "late"):
        cut = np.concatenate([getattr(f, fate) for f in fates])
        np.testing.assert_array_equal(cut, getattr(whole, fate))


@settings(max_examples=200, deadline=None)
@given(events=event_lists())
def test_what_is_still_in_the_ring_changes_nothing_when_it_comes_again(
    events: EventColumns,
) -> None:
    once = fold(empty(USERS), events, POLICY)
    rings = np.split(once.rows.ring, once.rows.ring_splits[1:-1])
    held = [
        at
        for at, (row, event_id) in enumerate(zip(events.row, events.event_id, strict=True))
        if event_id in rings[row]
    ]
    twice = fold(once.rows, events.take(np.array(held, np.int64)), POLICY)
    assert twice.duplicate.all()
    assert stored(twice.rows) == stored(once.rows)


@settings(max_examples=200, deadline=None)
@given(events=event_lists())
def test_users_do_not_touch_each_other(events: EventColumns) -> None:
    together = stored(fold(empty(USERS), events, POLICY).rows)
    for user in range(USERS):
        mine = events.take(np.flatnonzero(events.row == user))
        assert stored(fold(empty(USERS), mine, POLICY).rows)[user] == together[user]


@settings(max_examples=200, deadline=None)
@given(events=event_lists())
def test_every_event_meets_one_fate(events: EventColumns) -> None:
    folded = fold(empty(USERS), events, POLICY)
    fates = folded.accepted.astype(int) + folded.duplicate + folded.late
    assert fates.max(initial=0) <= 1
    assert fates[~events.erase].min(initial=1) == 1  # an erasure may be a repeat


def own_ids(events: EventColumns) -> EventColumns:
    """The same events, no id twice, none erased, all within the horizon of each other."""
    n = len(events)
    return replace(
        events,
        event_id=np.arange(1, n + 1, dtype=np.uint64),
        event_time_ms=START + events.event_time_ms % (POLICY.horizon_ms + 1),
        erase=np.zeros(n, np.bool_),
    )


@settings(max_examples=200, deadline=None)
@given(events=event_lists())
def test_events_out_of_order_within_the_horizon_fill_the_windows_that_sorted_ones_do(
    events: EventColumns,
) -> None:
    events = own_ids(events)
    came = fold(empty(USERS), events, POLICY)
    order = np.argsort(events.event_time_ms, kind="stable")
    ordered = fold(empty(USERS), events.take(order), POLICY)
    assert came.accepted.all()
    assert ordered.accepted.all()
    columns = ("first_seen_ms", "last_seen_ms", "tile_splits", "tile_key", "tile_count")
    for name in columns:
        np.testing.assert_array_equal(getattr(came.rows, name), getattr(ordered.rows, name), name)


@settings(max_examples=200, deadline=None)
@given(events=event_lists(), data=st.data())
def test_any_prefix_that_comes_again_changes_nothing(
    events: EventColumns, data: st.DataObject
) -> None:
    events = own_ids(events)
    policy = replace(POLICY, ring_length=len(events) + 1)
    once = fold(empty(USERS), events, policy)
    prefix = part(events, 0, data.draw(st.integers(0, len(events))))
    twice = fold(once.rows, prefix, policy)
    assert twice.duplicate.all()
    assert stored(twice.rows) == stored(once.rows)
