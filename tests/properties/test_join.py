"""The label join equals its definition, written out event by event, however batches are cut."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.log import TopicPartition
from ingest.memory import Crash
from tests.join_world import POLICY, Row, World, answer, event

USERS = ("u", "v")
ITEMS = ("a", "b", "c")


@dataclass(frozen=True)
class Shows:
    user: str
    at_ms: int
    behind: int  # how many events the row had not seen


@dataclass(frozen=True)
class Does:
    user: str
    item: str | None
    at_ms: int
    event: int  # small: repeats are likely
    answers: int | None  # number of the list that it names


_times = st.integers(0, 4_000)
actions = st.lists(
    st.one_of(
        st.builds(Shows, user=st.sampled_from(USERS), at_ms=_times, behind=st.integers(0, 5)),
        st.builds(
            Does,
            user=st.sampled_from(USERS),
            item=st.none() | st.sampled_from(ITEMS),
            at_ms=_times,
            event=st.integers(0, 30),
            answers=st.none() | st.integers(0, 5),
        ),
    ),
    max_size=40,
)


def by_definition(shown: list[tuple[Shows, int]], done: list[Does]) -> list[Row]:
    """The examples, as the documentation says it."""
    rows = []
    for number, (show, start) in enumerate(shown):
        following = list(enumerate(done))[start:]
        ends = show.at_ms + POLICY.window_ms + POLICY.lateness_ms
        close = next((at for at, e in following if e.at_ms >= ends), len(done))
        for place, item in enumerate(ITEMS):
            seen: set[int] = set()
            counts: Counter[int] = Counter()
            for at, e in following:
                fits = at < close and e.user == show.user and e.item == item
                fits = fits and show.at_ms <= e.at_ms <= show.at_ms + POLICY.window_ms
                if fits and e.answers in (None, number) and e.event not in seen:
                    seen.add(e.event)
                    counts[3] += 1
            rows.append(
                Row(
                    request_id=f"r{number}",
                    user_id=show.user,
                    item_id=item,
                    position=place,
                    event_time=show.at_ms,
                    events_offset=start,
                    rate=0.25,
                    labels=tuple(counts.items()),
                )
            )
    return rows


@given(
    actions,
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 8),
    st.sampled_from((0, 3, 1_000)),
)
@settings(max_examples=150, deadline=None)
def test_the_join_is_its_definition(
    story: list[Shows | Does], max_records: int, take_lists: int, max_lists: int, spare: int
) -> None:
    with tempfile.TemporaryDirectory() as root:
        world = World(Path(root))
        shown, done = told(world, story)
        world.join(
            max_records=max_records,
            take_lists=take_lists,
            max_lists=max_lists,
            spare_events=spare,
        )
        assert world.rows() == by_definition(shown, done)


@given(
    actions,
    st.sets(st.tuples(st.booleans(), st.integers(0, 40)), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_a_join_restarted_at_any_offsets_is_one_that_never_ended(
    story: list[Shows | Does], ends: set[tuple[bool, int]], max_records: int, max_lists: int
) -> None:
    with tempfile.TemporaryDirectory() as root:
        world = World(Path(root))
        shown, done = told(world, story)
        topics = world.topics.recommendations, world.topics.user_events
        for of_events, offset in ends:
            partition = world.log._partition(TopicPartition(topics[of_events], 0))
            partition.faults[offset] = [Crash()]
        deaths = 0
        while True:
            try:
                world.join(max_records=max_records, take_lists=1, max_lists=max_lists)
                break
            except Crash:
                deaths += 1
        assert deaths <= len(ends)
        assert world.rows() == by_definition(shown, done)


def told(world: World, story: list[Shows | Does]) -> tuple[list[tuple[Shows, int]], list[Does]]:
    """Put a story on the log: what was shown from which offset on, and what was done."""
    shown: list[tuple[Shows, int]] = []
    done: list[Does] = []
    for action in story:
        if isinstance(action, Shows):
            start = max(0, len(done) - action.behind)
            world.show(answer(f"r{len(shown)}", action.user, action.at_ms, events_offset=start))
            shown.append((action, start))
        else:
            request = None if action.answers is None else f"r{action.answers}"
            name = f"e{action.event}"
            world.do(event(name, action.user, action.item, action.at_ms, request_id=request))
            done.append(action)
    return shown, done
