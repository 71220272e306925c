"""The point-in-time check passes what is right, and a planted leak is caught by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features import rows
from features.assemble import UserFeatures, assemble_users
from features.backfill import BackfillPolicy, make_examples
from features.catalog import CATALOG
from features.declare import UserContext
from features.examples import Examples, ExampleSource, concat
from features.fold import fold
from features.history import History, HistoryItems
from features.point_in_time import PointInTime
from features.tiles import Window
from schemas.events import EventType
from tests.past import HOUR_MS, ITEMS, history, story

POLICIES = {
    "impressions": BackfillPolicy(window_ms=HOUR_MS),
    "interactions": BackfillPolicy.of_interactions(),
}


@pytest.fixture(scope="module")
def past() -> History:
    return history(story(300, users=9))


def made(
    past: History, policy: BackfillPolicy, table: type[HistoryItems] = HistoryItems
) -> Examples:
    items = table(CATALOG.fingerprint, ITEMS)
    return concat([e for e in make_examples(past, items, CATALOG, policy) if len(e)])


def check(past: History) -> PointInTime:
    return PointInTime(past, CATALOG, ITEMS)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_backfills_examples_hold_nothing_from_after_them(
    past: History, policy: BackfillPolicy
) -> None:
    found = made(past, policy)
    assert len(found) > 40
    assert list(check(past).leaks(found)) == []


def test_a_row_that_had_folded_the_click_is_caught(past: History) -> None:
    """The leak of a join that looks a user up when the click comes, not when the item is shown."""
    found = made(past, POLICIES["impressions"])
    n = next(n for n in range(len(found)) if found.labels[n, EventType.CLICK])
    leaky = with_users(found, n, row_after_the_click(past, found, n))
    (leak,) = check(past).leaks(leaky)
    assert (leak.request_id, leak.offset) == (found.request_id[n], int(found.events_offset[n]))
    assert {"history_items", "history_types"} <= set(leak.features)


def test_a_row_that_had_folded_the_impression_itself_is_caught(past: History) -> None:
    found = made(past, POLICIES["impressions"])
    n = len(found) // 2
    at = int(found.events_offset[n])
    leaky = with_users(found, n, row_up_to(past, found, n, at + 1))
    (leak,) = check(past).leaks(leaky)
    assert leak.offset == at
    assert "user_impressions_24h" in leak.features


class Leaky(HistoryItems):
    """A table with a planted leak: the hour of now is counted."""

    def window_tables(
        self, index: np.ndarray, now_ms: np.ndarray, windows: tuple[Window, ...]
    ) -> np.ndarray:
        return super().window_tables(index, now_ms + HOUR_MS, windows)


def test_an_item_that_counts_the_hour_of_now_is_caught(past: History) -> None:
    leaks = list(check(past).leaks(made(past, POLICIES["interactions"], Leaky)))
    assert leaks
    assert all(name.startswith("item_") for leak in leaks for name in leak.features)


def test_served_examples_are_judged_by_the_position_of_their_row(past: History) -> None:
    found = made(past, POLICIES["impressions"])
    served = replace(found, source=[ExampleSource.SERVED.value] * len(found))
    assert list(check(past).leaks(served)) == []
    # A row that had come further than the answer says.
    behind = replace(served, events_offset=np.maximum(found.events_offset - 9, 0))
    assert len(list(check(past).leaks(behind))) > len(found) // 4


def row_after_the_click(past: History, found: Examples, n: int) -> rows.Rows:
    frame = past.frame
    clicked = (
        (frame["partition"] == int(found.events_partition[n]))
        & (frame["offset"] > int(found.events_offset[n]))
        & (frame["user_id"] == found.user_id[n])
        & (frame["item_id"] == found.item_id[n])
        & (frame["event_type"] == int(EventType.CLICK))
    )
    return row_up_to(past, found, n, int(frame["offset"].filter(clicked)[0]) + 1)


def row_up_to(past: History, found: Examples, n: int, end: int) -> rows.Rows:
    """The user's row of all events before an offset."""
    mine = (past.frame["user_id"] == found.user_id[n]) & (past.frame["offset"] < end)
    events = past.events.take(np.flatnonzero(mine.fill_null(value=False).to_numpy()))
    events = replace(events, row=np.zeros(len(events), np.int64))
    return fold(rows.empty(1), events, CATALOG.row).rows


def with_users(found: Examples, n: int, row: rows.Rows) -> Examples:
    """The examples, one of them with its user's features from another row."""
    none = np.zeros(1, np.uint64)
    now = found.event_time[n : n + 1]
    context = UserContext(rows=row, now_ms=now, surface=none, device=none, country=none)
    other = assemble_users(CATALOG, context)
    longs, floats = found.users.longs.copy(), found.users.floats.copy()
    longs[n], floats[n] = other.longs[0], other.floats[0]
    return replace(found, users=UserFeatures(longs=longs, floats=floats))
