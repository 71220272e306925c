"""Tables of events: their order, what may be missing, and real data sets as a replay sends them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from features.catalog import CATALOG
from features.event_tables import (
    DTYPES,
    DatasetTable,
    ParquetTable,
    TableRecording,
    Tables,
    frame_of,
    table_recording,
    table_recordings,
)
from features.rows import decode
from ingest.clock import ManualClock
from ingest.datasets import open_dataset
from ingest.memory import MemoryLog, MemoryProducer
from ingest.replay import Replay, ReplayPlan
from ingest.topics import Topics, topic_specs
from schemas.errors import ArchiveUnavailable, Misconfigured
from schemas.events import Attribute, EventType, UserEvent
from schemas.registry import MemoryRegistry
from tests.contracts.recording import RecordingContract
from tests.past import T0, logged, story
from tests.recorded_world import contents, folded, streamed

PARTITIONS = 2


def event(number: int, at_ms: int = 0, **fields: object) -> UserEvent:
    known = {
        "event_id": f"e{number}",
        "user_id": "ann",
        "item_id": f"i{number}",
        "event_type": EventType.CLICK,
        "event_time": T0 + at_ms,
    }
    return UserEvent(**(known | fields))  # type: ignore[arg-type]


def written(folder: Path, name: str, frame: pl.DataFrame) -> Path:
    frame.write_parquet(folder / name)
    return folder / name


def of(*paths: Path, partitions: int = 1) -> Tables:
    tables = tuple(ParquetTable(path=path, number=n) for n, path in enumerate(paths))
    return Tables(tables=tables, partitions=partitions)


def ids(given: Tables) -> list[str]:
    found = []
    for partition, recording in table_recordings(given):
        reader = recording.reader(MemoryRegistry())
        for batch in recording.batches(partition, 0, 3):
            found += reader.read(batch.values, ["event_id"]).frame["event_id"].to_list()
    return found


class TestTable(RecordingContract):
    """Of the partition that the first user is in; the story's events in order of time."""

    @pytest.fixture
    def told(self) -> tuple[MemoryLog, MemoryRegistry]:
        events = sorted(
            (e for _, e, _ in story(120, users=9) if e is not None), key=lambda e: e.event_time
        )
        self.frame = frame_of(events)
        return logged([(e.user_id, e, e.event_time) for e in events], PARTITIONS)

    @pytest.fixture
    def recording(self, told: tuple[MemoryLog, MemoryRegistry], tmp_path: Path) -> TableRecording:
        given = of(written(tmp_path, "events.parquet", self.frame), partitions=PARTITIONS)
        return dict(table_recordings(given))[0]


def test_order_is_event_time_then_file_then_row(tmp_path: Path) -> None:
    a = written(tmp_path, "a", frame_of([event(1, 5), event(2, 5), event(3, 0)]))
    b = written(tmp_path, "b", frame_of([event(4, 5), event(5, 0), event(6, 9)]))
    assert ids(of(a, b)) == ["e3", "e5", "e1", "e2", "e4", "e6"]
    assert ids(of(b, a)) == ["e5", "e3", "e4", "e1", "e2", "e6"]


def test_pieces_may_come_in_any_order() -> None:
    frame = frame_of([event(n, n % 3) for n in range(9)]).with_columns(
        pl.lit(0, pl.Int32).alias("table"), pl.int_range(9).alias("row")
    )
    pieces = [frame[a : a + 2] for a in range(0, 9, 2)]
    straight, turned = (table_recording(0, 1, p).frame for p in (pieces, pieces[::-1]))
    assert straight.equals(turned)


def test_what_may_be_null_may_be_missing_and_more_is_passed_over(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "event_id": ["a", "b", "c"],
            "user_id": ["ann"] * 3,
            "event_type": ["CLICK", "TELEPATHY", "RATING"],  # one is of a newer writer
            "event_time": pl.Series([T0, T0 + 1, T0 + 2]).cast(pl.Datetime("ms")),
            "item_id": ["i1", "i2", "i3"],
            "mood": ["good"] * 3,
        }
    )
    ((_, recording),) = table_recordings(of(written(tmp_path, "a", frame)))
    assert recording.frame.schema == pl.Schema(DTYPES)
    assert recording.frame["event_type"].to_list() == [
        EventType.CLICK,
        EventType.UNKNOWN,
        EventType.RATING,
    ]
    assert recording.frame["event_time"].to_list() == [T0, T0 + 1, T0 + 2]
    assert recording.frame["profile"].to_list() == [[], [], []]


def test_older_and_newer_tables_are_mixed_in_one_partition(tmp_path: Path) -> None:
    events = [
        event(n, n, value=float(n) if n % 2 else None, profile=(Attribute(name="age", value="9"),))
        for n in range(8)
    ]
    new = frame_of(events[::2]).with_columns(pl.lit(1).alias("not_yet_known"))
    old = frame_of(events[1::2]).drop("profile", "country", "surface")
    known = [e if n % 2 == 0 else replace(e, profile=()) for n, e in enumerate(events)]
    log, registry = logged([("ann", e, e.event_time) for e in known], 1)
    given = of(written(tmp_path, "new", new), written(tmp_path, "old", old))
    assert folded(given, registry, tmp_path) == contents(streamed(log, registry), 1)


def test_events_that_the_fold_refuses_are_counted_and_their_neighbours_go_on(
    tmp_path: Path,
) -> None:
    bad = [event(1, item_id=""), event(2, event_time=-5), event(3)]
    found = folded(of(written(tmp_path, "a", frame_of(bad))), MemoryRegistry(), tmp_path)
    _, _, counts = found[0, "position", ""]  # type: ignore[misc]
    assert (dict(counts)["dead"], dict(counts)["folded"]) == (2, 1)
    row = decode([found[0, "u", "ann"]], CATALOG.fingerprint).rows  # type: ignore[list-item]
    assert len(row.history_item) == 1


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (frame_of([event(1)]).drop("user_id"), "no column user_id"),
        (frame_of([event(1)]).with_columns(event_id=None), "event_id may not be null"),
    ],
)
def test_a_table_without_what_every_event_has_is_told(
    frame: pl.DataFrame, says: str, tmp_path: Path
) -> None:
    with pytest.raises(Misconfigured, match=says):
        list(table_recordings(of(written(tmp_path, "a", frame))))


def test_a_damaged_or_missing_file_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "a", frame_of([event(n) for n in range(50)]))
    path.write_bytes(path.read_bytes()[:-20])
    for gone in (path, tmp_path / "nowhere"):
        with pytest.raises(ArchiveUnavailable, match=gone.name):
            list(table_recordings(of(gone)))


def movielens(folder: Path) -> DatasetTable:
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n" + "".join(f"{n},Film {n} (1995),Action\n" for n in range(9))
    )
    rows = [f"{n * 7 % 13},{n % 9},{n % 5 + 1}.0,{900_000_000 + n // 3}\n" for n in range(200)]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(rows))
    return DatasetTable(name="movielens", path=folder, data_dir=folder, shift_ms=1_000)


def test_a_data_set_is_folded_as_its_replay_is(tmp_path: Path) -> None:
    table = movielens(tmp_path)
    log, registry = MemoryLog(), MemoryRegistry()
    log.create_topics(topic_specs("", PARTITIONS, replay=True))
    data = open_dataset(table.name, table.path, table.data_dir)
    replay = Replay(data, MemoryProducer(log), registry, Topics(), ManualClock())
    replay.run(ReplayPlan(end_ms=data.last_ms + table.shift_ms))
    found = folded(Tables(tables=(table,), partitions=PARTITIONS), registry, tmp_path)
    assert len(found) > 15
    assert found == contents(streamed(log, registry), PARTITIONS)
