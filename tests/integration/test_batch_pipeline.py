"""Backfill by Beam: on every runner, however the input is cut, what streaming gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from features import backfill
from features.backfill import BackfillPolicy
from features.backfill_job import read_range
from features.batch_job import Work
from features.catalog import CATALOG
from features.event_tables import ParquetTable, Tables, frame_of
from features.example_bytes import encode
from features.history import HistoryItems, HistoryReader, read_history
from ingest.memory import MemoryLog, MemorySource
from ingest.settings import Settings
from schemas.columns import ColumnReader
from schemas.errors import ArchiveUnavailable
from schemas.events import UserEvent
from schemas.registry import MemoryRegistry
from tests.past import HOUR_MS, ITEMS, TOPIC, logged, story
from tests.recorded_world import contents, exampled, folded, recorded, streamed

PARTITIONS = 3


def prism() -> str | None:
    """The binary, on the PATH or where `make setup` leaves it."""
    kept = Settings().cache_dir.expanduser() / "prism-v2.77.0"
    return shutil.which("prism") or (str(kept) if kept.is_file() else None)


def runners() -> list[object]:
    """Beam's runners that are here."""
    gone = pytest.mark.skipif(
        prism() is None, reason="no prism (go install .../sdks/v2/go/cmd/prism, on the PATH)"
    )
    options = (f"--prism_location={prism()}",)
    return [
        pytest.param(Work(runner="fnapi"), id="fnapi"),
        pytest.param(Work(runner="prism", options=options), id="prism", marks=gone),
    ]


@pytest.mark.parametrize("work", runners())
def test_rows_are_the_streaming_jobs_on_every_runner(work: Work, tmp_path: Path) -> None:
    log, registry = logged(story(300, users=9), PARTITIONS)
    expected = contents(streamed(log, registry), PARTITIONS)
    found = folded(recorded(log, batch=17), registry, tmp_path, work)
    assert len(found) > 20
    assert found == expected


POLICIES = {
    "impressions": BackfillPolicy(window_ms=HOUR_MS),
    "interactions": BackfillPolicy.of_interactions(),
}


HERE = pytest.param(Work(), id="in-process")


@pytest.mark.parametrize("work", [HERE, *runners()])
def test_examples_are_equal_record_for_record_on_every_runner(work: Work, tmp_path: Path) -> None:
    log, registry = logged(story(200, users=12), PARTITIONS)
    for name, policy in POLICIES.items():
        expected = in_one_process(log, registry, policy)
        assert len(expected) > 40
        found = exampled(recorded(log, batch=17), registry, tmp_path / name, policy, work)
        assert found == expected


@pytest.mark.parametrize("batch", [1, 50])
def test_where_batches_are_cut_changes_no_example(batch: int, tmp_path: Path) -> None:
    log, registry = logged(story(120, users=12), PARTITIONS)
    policy = POLICIES["impressions"]
    found = exampled(recorded(log, batch), registry, tmp_path, policy)
    assert found == in_one_process(log, registry, policy)


@pytest.mark.parametrize(("work", "pieces"), [(Work(), 1), (Work(runner="fnapi"), 4)])
def test_tables_give_rows_and_examples_however_they_are_cut(
    work: Work, pieces: int, tmp_path: Path
) -> None:
    events = sorted(
        (e for _, e, _ in story(200, users=12) if e is not None), key=lambda e: e.event_time
    )
    log, registry = logged([(e.user_id, e, e.event_time) for e in events], PARTITIONS)
    given, policy = tables(events, tmp_path, pieces), POLICIES["impressions"]
    assert folded(given, registry, tmp_path, work) == contents(streamed(log, registry), PARTITIONS)
    found = exampled(given, registry, tmp_path, policy, work)
    assert found == in_one_process(log, registry, policy)


def test_an_error_of_a_worker_is_told_as_it_was_raised(tmp_path: Path) -> None:
    given = Tables(
        tables=(ParquetTable(path=tmp_path / "nowhere.parquet", number=0),), partitions=2
    )
    with pytest.raises(ArchiveUnavailable, match="nowhere"):
        folded(given, MemoryRegistry(), tmp_path, Work(runner="fnapi"))


def in_one_process(log: MemoryLog, registry: MemoryRegistry, policy: BackfillPolicy) -> list[bytes]:
    """What the backfill of the log writes."""
    history = read_history(
        read_range(MemorySource(log), log, TOPIC),
        HistoryReader(ColumnReader(registry, UserEvent), PARTITIONS, CATALOG.row.future_ms),
    )
    items = HistoryItems(CATALOG.fingerprint, ITEMS)
    chunks = backfill.make_examples(history, items, CATALOG, policy)
    return [record for chunk in chunks for record in encode(chunk, CATALOG)]


def tables(events: list[UserEvent], folder: Path, pieces: int) -> Tables:
    """The events in files, one after the other."""
    size = -(-len(events) // pieces)
    found = []
    for number in range(pieces):
        path = folder / f"{number}.parquet"
        frame_of(events[number * size : (number + 1) * size]).write_parquet(path)
        found.append(ParquetTable(path=path, number=number))
    return Tables(tables=tuple(found), partitions=PARTITIONS)
