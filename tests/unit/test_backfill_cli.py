"""`millstream features backfill` from files: what it prints, writes and refuses; no broker."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from deploy.cli import run
from features.event_tables import frame_of
from ingest.placement import partition_of
from tests.past import story


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The story's events in two Parquet files."""
    events = [event for _, event, _ in story(120, users=9) if event is not None]
    for number in (0, 1):
        frame_of(events[number::2]).write_parquet(tmp_path / f"{number}.parquet")
    return [f"--from-files={tmp_path / name}" for name in ("0.parquet", "1.parquet")]


def backfill(*options: str) -> int:
    return run(["features", "backfill", *options])


def test_rows_of_files_go_into_files(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--rows", f"--rows-dir={out}", "--partition-count=2", f"--archive-dir={tmp_path}"]
    assert backfill(*files, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)["partitions"]
    assert [report["partition"] for report in found] == [0, 1]
    assert sum(report["counts"]["records"] for report in found) == 117
    users = pl.read_parquet(out / "rows-1.parquet")["user"].to_list()
    assert users
    assert {partition_of(user.encode(), 2) for user in users} == {1}
    assert backfill(*files, *options) == 0
    assert "misplaced" in capsys.readouterr().out
    assert list(tmp_path.glob(".backfill-*")) == [], "nothing is left behind"


def test_a_data_set_is_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n7,Heat (1995),Action\n")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,7,3.0,9\n")
    options = [f"--archive-dir={tmp_path}", "--partition-count=1", "--dataset=movielens"]
    options += [f"--from-files={tmp_path}", "--json"]
    assert backfill(*options, "--rows", f"--rows-dir={tmp_path / 'out'}") == 0
    assert json.loads(capsys.readouterr().out)["partitions"][0]["counts"]["folded.RATING"] == 1
    assert backfill(*options, "--interactions") == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--verify"], "give --rows"),
        (["--rows", "--verify", "--rows-dir=x"], "leave --rows-dir out"),
        (["--rows", "--from-files=a.avro", "--from-files=b.parquet"], "one event archive"),
        (["--rows", "--from-files=a.csv"], "not a.csv"),
    ],
)
def test_what_makes_no_sense_together_is_told(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backfill(*options) == 2
    assert says in " ".join(capsys.readouterr().err.split())
