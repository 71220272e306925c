"""Backfill equals streaming: for any events, however they are cut, and wherever it was killed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batch_fold import IntoStore
from features.catalog import CATALOG
from features.event_tables import Tables, frame_of
from features.fit import EventReader
from features.recording import HeldRecording, Recording
from features.store_memory import MemoryStore
from ingest.log import RecordBatch
from ingest.placement import partition_of
from schemas.events import Attribute, EventType, UserEvent
from schemas.registry import MemoryRegistry, Registry
from tests.past import HOUR_MS, T0, TOPIC, Story, logged
from tests.recorded_world import Opens, contents, folded, recorded, streamed

DAY_MS = 24 * HOUR_MS
PARTITIONS = 2
USERS = ("ann", "bob", "cid", "dan")  # of both partitions

steps = st.one_of(
    st.integers(0, 60_000),
    st.integers(-30, 30).map(lambda hours: hours * HOUR_MS),
    st.sampled_from([90 * DAY_MS, 91 * DAY_MS, -DAY_MS, -DAY_MS - 1]),
)
one = st.tuples(
    st.sampled_from(USERS),
    st.integers(1, 25),  # few ids: repeats at every distance
    st.none() | st.integers(1, 3),
    st.sampled_from(EventType),
    steps,
    st.none() | st.sampled_from([1.0, 4.5]),
    st.integers(0, 19).map(lambda n: n == 0),  # erasure
    st.sampled_from([0, 0, 0, -HOUR_MS]),  # a clock that is an hour wrong
)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    told: Story = []
    now = T0
    for user, number, item, kind, step, value, erased, wrong in draw(st.lists(one, max_size=40)):
        now = max(now + step, T0)
        event = UserEvent(
            event_id=f"e{number}",
            user_id=user,
            item_id=None if item is None else f"i{item}",
            event_type=kind,
            event_time=now,
            value=value,
            profile=(Attribute(name="gender", value=str(number)),) if item is None else (),
        )
        told.append((user, None if erased else event, now + wrong))
    return told


@settings(max_examples=60, deadline=None)
@given(story=stories(), batch=st.integers(1, 50), streamed_batch=st.integers(1, 50))
def test_a_backfill_gives_what_streaming_gives(
    story: Story, batch: int, streamed_batch: int
) -> None:
    log, registry = logged(story, PARTITIONS)
    store = MemoryStore()
    backfilled(recorded(log, batch), registry, store)
    assert contents(store, PARTITIONS) == contents(
        streamed(log, registry, batch=streamed_batch), PARTITIONS
    )


@settings(max_examples=30, deadline=None)
@given(story=stories(), batch=st.integers(1, 6), dies=st.integers(0, 8))
def test_a_killed_backfill_goes_on_where_the_store_stands(
    story: Story, batch: int, dies: int
) -> None:
    log, registry = logged(story, PARTITIONS)
    whole = recorded(log, batch)
    store = MemoryStore()
    try:
        backfilled(Dying(whole, dies), registry, store)
    except KeyboardInterrupt:
        backfilled(whole, registry, store)
    assert contents(store, PARTITIONS) == contents(streamed(log, registry), PARTITIONS)


@settings(max_examples=30, deadline=None)
@given(story=stories(), share=st.floats(0, 1), batch=st.integers(1, 50))
def test_streaming_goes_on_from_a_backfill(story: Story, share: float, batch: int) -> None:
    log, registry = logged(story, PARTITIONS)
    until = {p: int(end * share) for p, (_, end) in log.bounds(TOPIC).items()}
    store = MemoryStore()
    backfilled(recorded(log, until=until), registry, store)
    assert {
        p: at and at.next_offset for p, at in store.positions(range(PARTITIONS)).items()
    } == until
    streamed(log, registry, store, batch)
    assert contents(store, PARTITIONS) == contents(streamed(log, registry), PARTITIONS)


@settings(max_examples=30, deadline=None)
@given(story=stories(), data=st.data())
def test_tables_give_what_streaming_their_events_in_their_order_gives(
    story: Story, data: st.DataObject
) -> None:
    events = [event for _, event, _ in story if event is not None]
    order = sorted(range(len(events)), key=lambda i: (events[i].event_time, i))
    log, registry = logged(
        [(events[i].user_id, events[i], events[i].event_time) for i in order], PARTITIONS
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=3)))
    tables = tuple(
        Held(frame_of(events[a:b]), number)
        for number, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(events)], strict=True))
    )
    with tempfile.TemporaryDirectory() as folder:
        found = folded(Tables(tables=tables, partitions=PARTITIONS), registry, Path(folder))
    expected = contents(streamed(log, registry), PARTITIONS)
    there = {partition_of(event.user_id.encode(), PARTITIONS) for event in events}
    assert found == {place: value for place, value in expected.items() if place[0] in there}


class Held:
    """A table in memory."""

    def __init__(self, frame: pl.DataFrame, number: int) -> None:
        rows = pl.int_range(len(frame), dtype=pl.Int64, eager=True)
        self.number = number
        self._frame = frame.with_columns(pl.lit(number, pl.Int32).alias("table"), rows.alias("row"))

    def frames(self) -> Iterator[pl.DataFrame]:
        yield self._frame


class Dying:
    """A recording whose reader is killed before its n-th batch of a partition."""

    def __init__(self, whole: HeldRecording, dies: int) -> None:
        self.origin = whole.origin
        self._whole = whole
        self._dies = dies

    def batches(self, partition: int, offset: int, max_records: int) -> Iterator[RecordBatch]:
        for n, batch in enumerate(self._whole.batches(partition, offset, max_records)):
            if n == self._dies:
                raise KeyboardInterrupt
            yield batch

    def reader(self, registry: Registry) -> EventReader:
        return self._whole.reader(registry)


def backfilled(given: Recording, registry: MemoryRegistry, store: MemoryStore) -> None:
    """Fold a recording into the store, in this process."""
    target = IntoStore(features=CATALOG, opening=Opens(known=registry, rows=store))
    for partition in given.origin.bounds:
        target.fold(given, partition, lambda records: None)
