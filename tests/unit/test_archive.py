"""The archive: whole or not at all, chained, fenced; a crash at any step loses nothing."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from features.archive import (
    ArchiveWriter,
    Manifest,
    claim,
    files,
    manifests,
    newest,
    verify,
)
from features.disk import LocalDisk
from schemas.errors import ArchiveUnavailable, Misconfigured, PositionMoved
from tests.contracts.archive import DiskContract

DAY = 1_700_000_000_000


def first(**changes: object) -> Manifest:
    given: dict[str, object] = {
        "kind": "examples",
        "partition": 3,
        "sequence": 0,
        "generation": 0,
        "position": {"recommendations": 0},
        "log": {"cluster": "c"},
        "fingerprint": "f",
    }
    return Manifest(**(given | changes))  # type: ignore[arg-type]


def open_(root: Path, disk: LocalDisk | None = None, suffix: str = ".bin") -> ArchiveWriter:
    return claim(root, first(), suffix, disk)


def content(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in files(root, "examples"))


class FailingDisk(LocalDisk):
    """Fails at the nth step, before or after doing it."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left, self.after = at, after

    def _step(self, do: Callable[[], IO[bytes] | None]) -> IO[bytes] | None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = do()
        if self.left == 0:
            if done is not None:
                done.close()
            raise OSError(errno.EIO, "Input/output error")
        return done

    def open(self, path: Path) -> IO[bytes]:
        return self._step(lambda: LocalDisk.open(self, path))  # type: ignore[return-value]

    def publish(self, temporary: Path, final: Path, opened: IO[bytes]) -> None:
        self._step(lambda: LocalDisk.publish(self, temporary, final, opened))

    def create(self, path: Path, content: bytes) -> None:
        self._step(lambda: LocalDisk.create(self, path, content))


class TestLocalDisk(DiskContract):
    @pytest.fixture
    def disk(self) -> LocalDisk:
        return LocalDisk()


def test_files_that_are_rolled_count_together_or_not_at_all(tmp_path: Path) -> None:
    writer = open_(tmp_path)
    writer.append(b"a", 1, DAY)
    writer.roll()
    writer.append(b"b", 1, DAY)
    assert files(tmp_path, "examples") == []
    writer.commit({"recommendations": 2})
    assert (content(tmp_path), len(files(tmp_path, "examples"))) == (b"ab", 2)


def test_replaced_files_count_no_more_and_go_with_the_next_claim(tmp_path: Path) -> None:
    writer = open_(tmp_path)
    writer.append(b"old", 1, DAY)
    writer.commit({"recommendations": 1})
    writer.append(b"new", 1, DAY)
    writer.commit({"recommendations": 1}, replace_files=True)
    assert content(tmp_path) == b"new"
    assert len(list((tmp_path / "examples").glob("date=*/*"))) == 2, "a reader may be at it"
    open_(tmp_path)
    assert len(list((tmp_path / "examples").glob("date=*/*"))) == 1
    assert content(tmp_path) == b"new"


def test_nothing_counts_before_the_commit(tmp_path: Path) -> None:
    writer = open_(tmp_path)
    writer.append(b"one", 1, DAY)
    assert files(tmp_path, "examples") == []
    writer.commit({"recommendations": 1})
    assert content(tmp_path) == b"one"
    found = newest(tmp_path, "examples", 3)
    assert found is not None
    assert (found.position, found.records) == ({"recommendations": 1}, 1)


def test_a_new_owner_goes_on_and_the_old_one_is_fenced(tmp_path: Path) -> None:
    old = open_(tmp_path)
    old.append(b"a", 1, DAY)
    old.commit({"recommendations": 1})
    old.append(b"zombie", 1, DAY)
    new = open_(tmp_path)
    assert new.manifest.position == {"recommendations": 1}
    with pytest.raises((PositionMoved, ArchiveUnavailable)):
        old.commit({"recommendations": 2})
    new.append(b"b", 1, DAY)
    new.commit({"recommendations": 2})
    assert content(tmp_path) == b"ab"
    assert list(verify(tmp_path, "examples")) == []


def test_a_zombie_without_data_is_fenced_by_the_manifest_alone(tmp_path: Path) -> None:
    old, _ = open_(tmp_path), open_(tmp_path)
    with pytest.raises(PositionMoved, match="another writer claimed partition 3"):
        old.commit({"recommendations": 9})


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(2, 8))
def test_a_crash_at_any_step_leaves_the_old_or_the_new_state(
    tmp_path: Path, at: int, after: bool
) -> None:
    committed = 0
    writer: ArchiveWriter | None
    try:
        writer = open_(tmp_path, FailingDisk(at, after=after))
        for n in (1, 2):
            writer.append(f"<{n}>".encode(), 1, DAY)
            writer.commit({"recommendations": n})
            committed = n
    except ArchiveUnavailable:
        writer = None
    again = open_(tmp_path)
    n = again.manifest.position["recommendations"]
    assert n in (committed, committed + 1)
    assert content(tmp_path) == b"".join(f"<{i + 1}>".encode() for i in range(n))
    assert list(verify(tmp_path, "examples")) == []
    assert not list((tmp_path / "examples").glob("date=*/.*")), "orphans are removed"


def test_a_full_disk_is_said_and_the_old_manifest_stands(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnavailable, match="the disk is full"):
        open_(tmp_path, FailingDisk(2, after=False)).append(b"x", 1, DAY)
    assert manifests(tmp_path, "examples")[3].sequence == 0


def test_the_archive_of_another_log_is_refused(tmp_path: Path) -> None:
    open_(tmp_path)
    with pytest.raises(Misconfigured, match="archive to another folder"):
        claim(tmp_path, first(log={"cluster": "other"}), ".bin")


def test_an_altered_file_and_a_broken_chain_are_found(tmp_path: Path) -> None:
    writer = open_(tmp_path)
    writer.append(b"data", 1, DAY)
    writer.commit({"recommendations": 1})
    files(tmp_path, "examples")[0].write_bytes(b"dat4")
    start = tmp_path / "examples" / "manifests" / "3-000000000000.json"
    start.write_bytes(start.read_bytes().replace(b'"f"', b'"g"'))
    problems = list(verify(tmp_path, "examples"))
    assert any("altered" in p for p in problems)
    assert any("does not follow" in p for p in problems)


def test_equal_records_give_equal_compressed_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        writer = open_(tmp_path / name, suffix=".bin.gz")
        writer.append(b"same" * 100, 1, DAY)
        found.append(writer.commit({"recommendations": 1}).files[0].sha256)
    assert found[0] == found[1]


def test_a_commit_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    writer = open_(tmp_path)
    assert writer.commit({"recommendations": 0}).sequence == 0
