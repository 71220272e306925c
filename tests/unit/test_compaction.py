"""Tidying up changes which files there are and never which records, killed or disturbed."""

from __future__ import annotations

import gzip
import io
import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from features import archive
from features.archive import ArchiveWriter, Manifest, claim, manifest_paths, newest, verify
from features.archive_file import ArchiveFile
from features.compaction import Tidied, TidyPolicy, expired, merges, tidy
from features.disk import Disk, Place, disk_of, place
from features.event_archive import SCHEMA
from ingest.clock import ManualClock
from schemas.codec import ContainerFile, read_container
from schemas.errors import ArchiveUnavailable, PositionMoved
from tests.faulty_disk import FaultyDisk

DAY_MS = 86_400_000
NOW = 1_700_000_000_000 // DAY_MS * DAY_MS
POLICY = TidyPolicy(min_files=3, grace_s=100.0)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place(tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


def open_(root: Place, disk: Disk | None = None) -> ArchiveWriter:
    first = Manifest(
        kind="examples",
        partition=0,
        sequence=0,
        generation=0,
        position={"recommendations": 0, "user-events": 0},
        log={},
        fingerprint="f",
    )
    return claim(root, first, ".tfrecord.gz", disk)


def write(writer: ArchiveWriter, start: int, stop: int, day: int = 0) -> None:
    """A file for each number."""
    for n in range(start, stop):
        writer.append(f"<{n}>".encode(), 1, NOW + day * DAY_MS)
        writer.commit({"recommendations": n + 1, "user-events": n})


def records(root: Place) -> str:
    return b"".join(
        gzip.decompress(p.read_bytes()) for p in archive.files(root, "examples")
    ).decode()


def numbers(start: int, stop: int) -> str:
    return "".join(f"<{n}>" for n in range(start, stop))


def run(root: Place, clock: ManualClock, disk: Disk | None = None, **changes: object) -> Tidied:
    return tidy(root, "examples", 0, replace(POLICY, **changes), clock, disk)  # type: ignore[arg-type]


def files_there(root: Place) -> int:
    return len(list((root / "examples").glob("date=*/part-*")))


def test_small_neighbours_become_one_file_with_the_same_records(
    root: Place, clock: ManualClock
) -> None:
    write(open_(root), 0, 5)
    assert run(root, clock) == Tidied(merged=5, into=1)
    assert (records(root), len(archive.files(root, "examples"))) == (numbers(0, 5), 1)
    found = newest(root, "examples", 0)
    assert found is not None
    assert (found.records, found.position["recommendations"], found.generation) == (5, 5, 0)
    assert list(verify(root, "examples")) == []
    assert run(root, clock) == Tidied(), "nothing is left to do"


def test_the_writer_goes_on_over_a_pass(root: Place, clock: ManualClock) -> None:
    writer = open_(root)
    write(writer, 0, 4)
    writer.append(b"<4>", 1, NOW)
    run(root, clock)
    writer.commit({"recommendations": 5, "user-events": 5})
    assert (records(root), len(archive.files(root, "examples"))) == (numbers(0, 5), 2)
    write(writer, 5, 9)
    assert records(root) == numbers(0, 9)
    assert list(verify(root, "examples")) == []


class Meanwhile:
    """A disk on which something happens before the nth thing is done."""

    def __init__(self, disk: Disk, at: int, happens: object) -> None:
        self._disk, self.left, self._happens = disk, at, happens

    def __getattr__(self, name: str) -> object:
        def step(*args: object) -> object:
            self.left -= 1
            if self.left == 0:
                self._happens()  # type: ignore[operator]
            return getattr(self._disk, name)(*args)

        return step


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_pass_goes_on_over_the_writers_commit(root: Place, clock: ManualClock, at: int) -> None:
    writer = open_(root)
    write(writer, 0, 4)
    disk = Meanwhile(disk_of(root), at, lambda: write(writer, 4, 6))
    assert run(root, clock, disk).merged == 4  # type: ignore[arg-type]
    assert records(root) == numbers(0, 6)
    write(writer, 6, 7)
    assert records(root) == numbers(0, 7)
    assert list(verify(root, "examples")) == []


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_pass_gives_way_to_a_new_owner_and_to_another_pass(
    root: Place, clock: ManualClock, at: int
) -> None:
    write(open_(root), 0, 4)
    disk = Meanwhile(disk_of(root), at, lambda: write(open_(root), 4, 5))
    assert run(root, clock, disk).disturbed  # type: ignore[arg-type]
    assert records(root) == numbers(0, 5)
    disk = Meanwhile(disk_of(root), at, lambda: run(root, clock))
    assert run(root, clock, disk).disturbed  # type: ignore[arg-type]
    assert records(root) == numbers(0, 5)
    assert list(verify(root, "examples")) == []


def test_a_fenced_writer_is_refused_although_a_pass_came_between(
    root: Place, clock: ManualClock
) -> None:
    old = open_(root)
    write(old, 0, 4)
    run(root, clock)
    open_(root)
    with pytest.raises(PositionMoved):
        write(old, 4, 5)


def test_what_was_replaced_is_kept_for_its_readers_and_goes_after_the_grace(
    root: Place, clock: ManualClock
) -> None:
    write(open_(root), 0, 4)
    before = archive.files(root, "examples")
    run(root, clock)
    open_(root)
    assert all(path.exists() for path in before), "a new owner leaves them, too"
    clock.advance(99.0)
    assert run(root, clock) == Tidied()
    clock.advance(1.0)
    assert run(root, clock) == Tidied(removed=4)
    clock.advance(1_000.0)
    assert run(root, clock) == Tidied()
    last = newest(root, "examples", 0)
    run(root, clock)
    assert newest(root, "examples", 0) == last, "a pass with nothing to do leaves no trace"
    assert files_there(root) == 1
    assert records(root) == numbers(0, 4)
    assert list(verify(root, "examples")) == []


def test_manifests_do_not_pile_up(root: Place, clock: ManualClock) -> None:
    writer = open_(root)
    for n in range(300):
        writer.commit({"recommendations": n + 1, "user-events": 0})
        if n % 30 == 29:
            clock.advance(60.0)
            run(root, clock)
    assert len(manifest_paths(root / "examples", 0)) < 250
    assert list(verify(root, "examples")) == []
    assert writer.manifest.position["recommendations"] == 300


def test_a_manifests_size_follows_what_is_kept_and_not_the_number_of_commits(
    root: Place, clock: ManualClock
) -> None:
    writer = open_(root)
    largest = 0
    for n in range(0, 100, 5):
        write(writer, n, n + 5)
        clock.advance(60.0)
        run(root, clock)
        largest = max(largest, len(writer.manifest.to_json()))
    assert records(root) == numbers(0, 100)
    assert len(writer.manifest.to_json()) <= largest < 20 * 400


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_nothing_is_lost_or_doubled(
    tmp_path: Path, clock: ManualClock, after: bool
) -> None:
    at, done = 0, False
    while not done:
        at += 1
        root = tmp_path / f"{at}-{after}"
        write(open_(root), 0, 2, day=-9)
        writer = open_(root)
        write(writer, 2, 5)
        run(root, clock)
        clock.advance(200.0)
        write(writer, 5, 8)
        disk = FaultyDisk(disk_of(root), at, after=after)
        try:
            run(root, clock, disk, retain_days=2)
        except ArchiveUnavailable:
            assert records(root) in (numbers(0, 8), numbers(2, 8))
        done = not disk.failed
        assert list(verify(root, "examples")) == []
        again = run(root, clock, retain_days=2)
        assert not again.disturbed
        clock.advance(200.0)
        run(root, clock, retain_days=2)
        assert (records(root), list(verify(root, "examples"))) == (numbers(2, 8), [])
        writer = open_(root)  # removes what the crash left
        write(writer, 8, 9)
        assert files_there(root) == len(archive.files(root, "examples"))
        assert not list((root / "examples").glob("date=*/.*"))
        assert writer.manifest.begins == {"recommendations": 2, "user-events": 1}
    assert at > 12


def test_a_full_disk_is_given_back_what_was_written(root: Place, clock: ManualClock) -> None:
    writer = open_(root)
    write(writer, 0, 3)
    write(writer, 3, 6, day=1)
    disk = FaultyDisk(disk_of(root), 6)
    with pytest.raises(ArchiveUnavailable, match="the disk is full"):
        run(root, clock, disk)
    assert files_there(root) == 6


def test_old_files_go_and_the_archive_says_where_it_begins(root: Place, clock: ManualClock) -> None:
    writer = open_(root)
    write(writer, 0, 2, day=-3)
    write(writer, 2, 3, day=-1)
    write(writer, 3, 4, day=-3)  # an old event that came late
    assert run(root, clock, retain_days=2).dropped == 2
    assert records(root) == numbers(2, 4), "no hole is made"
    found = newest(root, "examples", 0)
    assert found is not None
    assert found.begins == {"recommendations": 2, "user-events": 1}
    clock.advance(10 * 86_400.0)
    assert run(root, clock, retain_days=2).dropped == 2
    found = newest(root, "examples", 0)
    assert found is not None
    assert found.begins == found.position == {"recommendations": 4, "user-events": 3}


def test_notes_of_what_is_gone_go_with_it(root: Place, clock: ManualClock) -> None:
    writer = open_(root)
    for n, note in ((1, {"recommendations": 1, "user-events": 0}), (2, {"recommendations": 2})):
        writer.append(b"x", 1, NOW - 5 * DAY_MS)
        writer.commit({"recommendations": n, "user-events": n}, (note,))
    write(writer, 2, 3)
    assert len(writer.manifest.notes) == 2
    run(root, clock, retain_days=2)
    write(writer, 3, 4)
    assert writer.manifest.notes == ()


def test_a_damaged_file_is_named_and_not_given_a_new_checksum(
    tmp_path: Path, clock: ManualClock
) -> None:
    write(open_(tmp_path), 0, 4)
    path = archive.files(tmp_path, "examples")[2]
    path.write_bytes(gzip.compress(b"<7>"))
    with pytest.raises(ArchiveUnavailable, match=f"not merged: {path}"):
        run(tmp_path, clock)
    assert len(archive.files(tmp_path, "examples")) == 4


def test_event_files_are_merged_record_by_record(root: Place, clock: ManualClock) -> None:
    first = Manifest(
        kind="user-events",
        partition=0,
        sequence=0,
        generation=0,
        position={"user-events": 0},
        log={},
        fingerprint="",
    )
    writer = claim(root, first, ".avro")
    for n in range(4):
        record = {"topic": "t", "partition": 0, "offset": n, "timestamp": NOW + n, "key": b"k"}
        piece = ContainerFile(SCHEMA).add([record | {"value": None, "headers": []}])
        writer.append(piece, 1, NOW)
        writer.commit({"user-events": n + 1})
    assert tidy(root, "user-events", 0, POLICY, clock).into == 1
    [path] = archive.files(root, "user-events")
    found = list(read_container(io.BytesIO(path.read_bytes())))
    assert [r["offset"] for r in found] == [0, 1, 2, 3]
    assert list(verify(root, "user-events")) == []


def file(size: int, day: str = "date=2023-01-01", **changes: object) -> ArchiveFile:
    given = {"path": f"{day}/f", "records": 1, "size_bytes": size, "sha256": ""}
    return ArchiveFile(**(given | changes))  # type: ignore[arg-type]


def test_only_small_neighbours_of_one_day_and_feature_set_are_merged() -> None:
    policy = TidyPolicy(small_bytes=10, target_bytes=20, min_files=2)
    files = [
        *(file(9), file(9), file(9)),  # the third does not fit
        *(file(50), file(1)),
        *(file(1, "date=2023-01-02"), file(1, "date=2023-01-02", fingerprint="g")),
        *(file(2, "date=2023-01-02", fingerprint="g"), file(50)),
    ]
    assert [[files.index(f) for f in run] for run in merges(files, policy)] == [[0, 0], [6, 7]]
    assert merges([], policy) == []


def test_files_committed_together_go_together() -> None:
    policy = TidyPolicy(retain_days=1)
    old, young = "date=2023-11-01", "date=2023-11-14"
    together = [file(1, old, start={"a": 1}), file(1, old, start={"a": 2})]
    assert expired([*together, file(1, young, start={"a": 2})], policy, NOW) == 1
    assert expired([*together, file(1, young, start={"a": 3})], policy, NOW) == 2
    assert expired(together, TidyPolicy(), NOW) == 0


def test_the_commands_tidy_and_check_every_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from deploy.cli import run as millstream

    write(open_(tmp_path), 0, 4)
    folder = ("--archive-dir", str(tmp_path))
    assert millstream(["features", "compact", "--min-files", "2", *folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["examples"]["merged"], told["examples"]["into"]) == (4, 1)
    assert millstream(["features", "verify-archive", *folder]) == 0
    path = archive.files(tmp_path, "examples")[0]
    path.write_bytes(b"")
    capsys.readouterr()
    assert millstream(["features", "verify-archive", *folder, "--json"]) == 1
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert f"{path}: truncated" in problem
