"""The audit: what was served as it should be passes, and every kind of skew is caught and named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features.audit_answers import UserSample
from features.catalog import CATALOG
from features.declare import Level
from features.hashing import hash_ids
from features.skew import AuditReport, Insufficient, Pass, Skewed, judge
from ingest.log import TopicPartition
from schemas.errors import Misconfigured
from schemas.events import EventType, Item, Recommendation
from tests.audit_world import HOUR_S, ITEMS, POLICY, USERS, World, home

ANN = USERS[0]
NEIGHBOUR = next(u for u in USERS[1:] if home(u) == home(ANN))


@pytest.fixture
def world() -> World:
    found = World()
    found.live(2)
    return found


def codes(report: AuditReport) -> set[str]:
    verdict = judge(report, POLICY)
    assert isinstance(verdict, Skewed), verdict
    return {reason.partition(":")[0] for reason in verdict.reasons}


def skew(report: AuditReport, name: str) -> tuple[int, int, int]:
    (found,) = (f for f in report.features if f.name == name)
    return found.different, found.missing, found.extra


def test_what_was_served_as_it_should_be_passes(world: World) -> None:
    world.live(4)
    world.clock.advance(HOUR_S)  # the windows over items hold something now
    world.live(2)
    report = world.audit()
    assert isinstance(judge(report, POLICY), Pass), report.named
    assert (report.answers, report.users) == (8 * len(USERS), len(USERS))
    assert report.entries == 5 * report.answers
    assert {f.skewed for f in report.features} == {0}
    assert {f.name for f in report.features} == {f.name for f in CATALOG.features}
    assert world.metrics.value("audit.answers") == report.answers


def test_item_windows_hold_something_when_they_are_compared(world: World) -> None:
    """So that their being equal says something."""
    world.clock.advance(HOUR_S)
    world.live(1)
    at = world.table.index(hash_ids(ITEMS))
    counts = world.table.window_counts(at, [EventType.CLICK], world.clock.now_ms(), hours=24)
    assert counts.sum() > 10
    assert isinstance(judge(world.audit(), POLICY), Pass)


def test_rows_behind_the_log_are_no_skew(world: World) -> None:
    world.act(40)  # not folded yet
    world.ask(*USERS)
    world.fold()
    assert isinstance(judge(world.audit(), POLICY), Pass)


def test_a_row_of_somebody_else_is_caught(world: World) -> None:
    world.store.reads_as = {ANN: NEIGHBOUR}
    world.live(1)
    report = world.audit()
    assert "row" in codes(report)
    assert report.wrong_answers == 1
    assert skew(report, "history_items")[0] == 1
    assert ANN in report.named[0]
    assert "history_items" in report.named[0]
    assert "at no offset" in report.named[0]


def test_a_row_that_was_not_found_is_missing(world: World) -> None:
    world.store.reads_as = {ANN: "nobody"}
    world.live(1)
    report = world.audit()
    assert skew(report, "history_items") == (0, 1, 0)
    assert "at 0, behind the position" in report.named[0]


def test_an_event_at_or_after_the_recorded_position_is_a_leak(world: World) -> None:
    """The row holds what the log has only behind the position that the answer names."""
    here = world.log.bounds("user-events")
    world.store.reads_at = min(end for _, end in here.values())
    world.act(12)
    world.fold()
    world.ask(*USERS)
    report = world.audit()
    assert codes(report) >= {"row", "leak"}
    assert report.leaks == len(USERS)
    assert "ahead of the position" in report.named[0]


def test_a_leak_of_the_next_event_alone_is_a_leak(world: World) -> None:
    world.act(1, user_id=ANN)
    world.fold()

    def claims_less(answer: Recommendation) -> Recommendation:
        return replace(answer, events_offset=answer.events_offset - 1)

    world.ask(ANN, change=claims_less)
    report = world.audit()
    assert (report.wrong_answers, report.leaks) == (1, 1)
    assert codes(report) >= {"row", "leak"}


def test_one_bit_of_any_user_feature_is_caught(world: World) -> None:
    since_ms = world.clock.now_ms()
    floats = CATALOG.slices(Level.USER, "float32")
    for part in floats.values():

        def tampered(answer: Recommendation, at: int = part.start) -> Recommendation:
            values = list(answer.user_floats)
            values[at] = float(np.nextafter(np.float32(values[at]), np.float32(100)))
            return replace(answer, user_floats=tuple(values))

        world.ask(ANN, change=tampered)
    report = world.audit(since_ms=since_ms)
    assert report.wrong_answers == report.answers == len(floats)
    wrong = {f.name for f in report.features if f.skewed == 1}
    assert wrong == set(floats)
    assert sum(f.skewed for f in report.features) == len(floats)
    assert codes(report) == {"row"}


def test_an_item_feature_that_is_off_is_caught_with_its_size(world: World) -> None:
    at = CATALOG.slices(Level.ITEM, "float32")["item_clicks_24h"].start

    def tampered(answer: Recommendation) -> Recommendation:
        def off(floats: tuple[float, ...]) -> tuple[float, ...]:
            return (*floats[:at], 3 * floats[at] + 1, *floats[at + 1 :])

        items = tuple(replace(item, floats=off(item.floats)) for item in answer.items)
        return replace(answer, items=items)

    world.clock.advance(HOUR_S)
    world.live(1)
    since_ms = world.clock.now_ms()
    world.ask(*USERS, change=tampered)
    report = world.audit(since_ms=since_ms)
    assert codes(report) == {"item"}
    assert report.wrong_entries == 5 * len(USERS)
    (clicks,) = (f for f in report.features if f.name == "item_clicks_24h")
    assert clicks.smape is not None
    assert 0.8 < clicks.smape <= 2
    assert clicks.equal == 0


def test_few_items_out_of_tolerance_are_no_reason_to_stop(world: World) -> None:
    report = replace(world.audit(), entries=1_000, wrong_entries=10)
    assert isinstance(judge(report, POLICY), Pass)
    assert codes(replace(report, wrong_entries=11)) == {"item"}


def test_an_item_table_that_stands_still_is_caught(world: World) -> None:
    for _ in range(3):
        world.act(60)
        world.fold()
        world.clock.advance(HOUR_S)
        world.ask(*USERS)  # nothing was published
    report = world.audit()
    assert codes(report) == {"item"}
    assert sum(skew(report, "item_clicks_24h")) > 0


def test_partials_on_their_way_are_tolerated(world: World) -> None:
    to_the_hour_s = (HOUR_S * 1000 - world.clock.now_ms() % 3_600_000) / 1000
    world.clock.advance(to_the_hour_s - 5.0)
    world.act(30)
    world.fold()
    world.clock.advance(1.0)
    world.ask(*USERS)  # the rows hold the events of this hour, which is over in 0.9 s
    world.clock.advance(1.0)
    world.ask(*USERS)  # and the item table, which now should have them, does not yet
    world.publish()
    world.clock.advance(5.0)
    world.ask(*USERS)
    assert isinstance(judge(world.audit(table_lag_ms=2_000), POLICY), Pass)
    assert codes(world.audit(table_lag_ms=500)) == {"item"}


def test_an_answer_of_another_feature_set_is_caught(world: World) -> None:
    world.ask(ANN, change=lambda a: replace(a, fingerprint="0123456789abcdef"))
    assert codes(world.audit()) == {"fingerprint"}


def test_an_answer_with_the_row_of_another_partition_is_caught(world: World) -> None:
    world.ask(ANN, change=lambda a: replace(a, events_partition=1 - a.events_partition))
    assert codes(world.audit()) == {"place"}


def test_a_position_that_the_log_does_not_have_is_caught(world: World) -> None:
    since_ms = world.clock.now_ms()
    world.ask(ANN, change=lambda a: replace(a, events_offset=10_000))
    report = world.audit(since_ms=since_ms)
    assert codes(report) == {"place"}
    assert (report.answers, report.entries) == (0, 0)


def test_an_answer_without_its_features_is_caught(world: World) -> None:
    world.ask(ANN, change=lambda a: replace(a, user_floats=()))
    assert codes(world.audit()) == {"features"}


def test_a_fallback_that_says_so_is_not_compared(world: World) -> None:
    world.ask(
        ANN,
        change=lambda a: replace(
            a, fallback_reason="corrupt-row", user_floats=(0.0,) * len(a.user_floats)
        ),
    )
    world.ask(ANN, change=lambda a: replace(a, events_offset=-1))
    report = world.audit()
    assert isinstance(judge(report, POLICY), Pass)
    assert report.skipped["corrupt row"] == report.skipped["without position"] == 1


def test_items_that_the_catalogue_changed_later_are_not_compared(world: World) -> None:
    world.catalogue(Item(item_id=ITEMS[0], title="new", categories=("other",)))
    world.publish()
    world.clock.advance(5.0)
    before = world.audit()
    assert isinstance(judge(before, POLICY), Pass)
    assert before.skipped["items changed since"] > 0
    world.catalogue(Item(item_id=ITEMS[0], title="new", categories=("other",)))  # as it was
    since_ms = world.clock.now_ms()
    world.live(1)
    later = world.audit(since_ms=since_ms)
    assert isinstance(judge(later, POLICY), Pass)
    assert "items changed since" not in later.skipped


def test_a_row_past_its_lifetime_is_not_compared(world: World) -> None:
    world.clock.advance(100 * 24 * HOUR_S)
    world.ask(*USERS)
    report = world.audit()
    assert report.skipped["row past its lifetime"] == len(USERS)
    assert isinstance(judge(report, POLICY), Pass)


def test_too_few_answers_are_no_verdict(world: World) -> None:
    report = world.audit(since_ms=world.clock.now_ms())
    verdict = judge(report, POLICY)
    assert verdict == Insufficient(reasons=("answers: 0 compared, at least 10 asked",))


def test_only_the_newest_answers_are_compared(world: World) -> None:
    everything = world.audit()
    some = world.audit(most_answers=10)
    assert some.answers == 10
    assert some.left_out == everything.answers - 10


def test_the_log_must_have_its_beginning(world: World) -> None:
    world.log.delete_records(TopicPartition("user-events", 0), 3)
    with pytest.raises(Misconfigured, match="begins at offset 3"):
        world.audit()


def test_a_share_of_the_users_is_nested_in_a_larger_one() -> None:
    users = hash_ids([f"u{i}" for i in range(20_000)])
    tenth, half = UserSample(share=0.1).holds(users), UserSample(share=0.5).holds(users)
    assert not (tenth & ~half).any()
    assert 0.09 < tenth.mean() < 0.11


def test_so_many_users_are_the_same_ones_however_they_come() -> None:
    users = hash_ids([f"u{i % 700}" for i in range(3_000)])
    whole, parts = UserSample(users=50), UserSample(users=50)
    whole.admit(users)
    for part in np.array_split(users[::-1], 30):
        parts.admit(part)
    assert len(np.unique(users[whole.holds(users)])) == 50
    assert (whole.holds(users) == parts.holds(users)).all()


def test_of_some_users_only_their_answers_are_compared(world: World) -> None:
    report = world.audit(UserSample(users=3))
    assert (report.users, report.answers) == (3, 6)
