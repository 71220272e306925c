"""Where a recording may be folded into, and what a comparison with the store finds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from features.batch_fold import Compare, FoldReport, IntoStore
from features.catalog import CATALOG
from features.recording import HeldRecording
from features.store import Update
from features.store_memory import MemoryStore
from ingest.memory import MemoryLog
from schemas.errors import Misconfigured, PositionForeign
from schemas.registry import MemoryRegistry
from tests.past import logged, story
from tests.recorded_world import Opens, contents, recorded, streamed


@pytest.fixture(scope="module")
def told() -> tuple[MemoryLog, MemoryRegistry]:
    return logged(story(120, users=9), partitions=1)


def into(store: MemoryStore, registry: MemoryRegistry, given: HeldRecording) -> FoldReport:
    target = IntoStore(features=CATALOG, opening=Opens(known=registry, rows=store))
    return target.fold(given, 0, lambda records: None)


def compared(store: MemoryStore, registry: MemoryRegistry, given: HeldRecording) -> FoldReport:
    target = Compare(features=CATALOG, opening=Opens(known=registry, rows=store))
    return target.fold(given, 0, lambda records: None)


def test_a_store_that_has_come_further_is_left_alone(
    told: tuple[MemoryLog, MemoryRegistry],
) -> None:
    log, registry = told
    store = streamed(log, registry)
    before, position = contents(store, 1), store.positions([0])
    report = into(store, registry, recorded(log, until={0: 50}))
    assert (report.offset, report.counts.records) == (120, 0)
    assert (contents(store, 1), store.positions([0])) == (before, position)


def test_a_store_of_another_log_is_refused(told: tuple[MemoryLog, MemoryRegistry]) -> None:
    log, registry = told
    store = streamed(log, registry)
    other, _ = logged(story(120, users=9), partitions=1)
    with pytest.raises(PositionForeign, match="folded from cluster"):
        into(store, registry, recorded(other))
    with pytest.raises(Misconfigured, match="the recording is of"):
        compared(store, registry, recorded(other))


def test_rows_are_not_begun_in_the_middle_of_a_log(told: tuple[MemoryLog, MemoryRegistry]) -> None:
    log, registry = told
    whole = recorded(log)
    middle = replace(whole, origin=replace(whole.origin, bounds={0: (40, 120)}))
    with pytest.raises(Misconfigured, match="begins at offset 40"):
        into(MemoryStore(), registry, middle)
    begun = streamed_until(log, registry, 60)
    into(begun, registry, middle)  # but they go on there
    assert contents(begun, 1) == contents(streamed(log, registry), 1)


def streamed_until(log: MemoryLog, registry: MemoryRegistry, end: int) -> MemoryStore:
    store = MemoryStore()
    into(store, registry, recorded(log, until={0: end}))
    return store


def test_a_comparison_counts_what_differs_at_the_stores_own_offset(
    told: tuple[MemoryLog, MemoryRegistry],
) -> None:
    log, registry = told
    store = streamed_until(log, registry, 70)
    report = compared(store, registry, recorded(log))
    assert report.compared is not None
    assert (report.offset, report.compared.rows.ok, report.compared.partials.ok) == (70, True, True)
    lease = store.claim(0, None)
    spoilt = Update(rows={"u1": b"x", "ghost": b"x"}, partials={"i1": b"x"}, next_offset=70)
    store.write(lease, spoilt)
    report = compared(store, registry, recorded(log))
    assert report.compared is not None
    rows, partials = report.compared.rows, report.compared.partials
    assert (rows.different, rows.extra, partials.different) == (1, 1, 1)


def test_a_comparison_past_the_recordings_end_is_refused(
    told: tuple[MemoryLog, MemoryRegistry],
) -> None:
    log, registry = told
    store = streamed(log, registry)
    with pytest.raises(Misconfigured, match="offsets 0 to 70"):
        compared(store, registry, recorded(log, until={0: 70}))
    with pytest.raises(Misconfigured, match="holds no position"):
        compared(MemoryStore(), registry, recorded(log))
