"""The archive: whole or not at all, chained, fenced; a crash at any step loses nothing."""

import gzip
import uuid
from pathlib import Path
from typing import IO

import pytest

from features.archive import (
    ArchiveWriter,
    Manifest,
    claim,
    declaration,
    files,
    manifests,
    newest,
    verify,
)
from features.disk import Disk, LocalDisk, Place, disk_of, place
from schemas.errors import ArchiveUnavailable, Misconfigured, PositionMoved
from tests.contracts.archive import DiskContract
from tests.faulty_disk import FaultyDisk

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


def open_(root: Place, disk: Disk | None = None, suffix: str = ".bin") -> ArchiveWriter:
    return claim(root, first(), suffix, disk)


def contents(root: Place) -> list[bytes]:
    return [path.read_bytes() for path in files(root, "examples")]


def content(root: Place) -> bytes:
    return b"".join(contents(root))


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place(tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}")


class TestLocalDisk(DiskContract):
    @pytest.fixture
    def disk(self) -> LocalDisk:
        return LocalDisk()

    def test_a_temporary_name_is_not_shared(self, disk: Disk, root: Place) -> None:
        with disk.open(root / "x"), pytest.raises(FileExistsError):
            disk.open(root / "x")


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


@pytest.mark.parametrize("suffix", [".bin", ".bin.gz"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(2, 11))
def test_a_crash_at_any_step_leaves_the_old_or_the_new_state(
    root: Place, at: int, after: bool, suffix: str
) -> None:
    committed = 0
    disk = FaultyDisk(disk_of(root), at, after=after)
    try:
        writer = open_(root, disk, suffix)
        for n in (1, 2):
            writer.append(f"<{n}>".encode(), 1, DAY)
            writer.commit({"recommendations": n})
            committed = n
    except ArchiveUnavailable:
        pass
    assert disk.failed or committed == 2
    again = open_(root, suffix=suffix)
    n = again.manifest.position["recommendations"]
    assert n in (committed, committed + 1)
    found = [gzip.decompress(c) if suffix == ".bin.gz" else c for c in contents(root)]
    assert found == [f"<{i + 1}>".encode() for i in range(n)]
    assert list(verify(root, "examples")) == []
    assert len(list((root / "examples").glob("date=*/*"))) == n, "orphans are removed"
    assert not list((root / "examples").glob("date=*/.*"))


class FullDisk(LocalDisk):
    """Every byte written to it meets the kernel's own "no space left"."""

    def open(self, path: Path) -> IO[bytes]:
        return Path("/dev/full").open("wb", buffering=0)


@pytest.mark.parametrize("suffix", [".bin", ".bin.gz"])
def test_a_full_disk_is_said_and_the_old_manifest_stands(tmp_path: Path, suffix: str) -> None:
    writer = open_(tmp_path, FullDisk(), suffix)
    if suffix == ".bin.gz":
        writer.append(b"x", 1, DAY)  # still in the compressor
        with pytest.raises(ArchiveUnavailable, match="the disk is full"):
            writer.commit({"recommendations": 1})
    else:
        with pytest.raises(ArchiveUnavailable, match="the disk is full"):
            writer.append(b"x", 1, DAY)
    assert manifests(tmp_path, "examples")[3].sequence == 0
    again = open_(tmp_path, suffix=suffix)
    again.append(b"x", 1, DAY)
    again.commit({"recommendations": 1})
    assert manifests(tmp_path, "examples")[3].records == 1


def test_the_archive_of_another_log_is_refused(tmp_path: Path) -> None:
    open_(tmp_path)
    with pytest.raises(Misconfigured, match="archive to another folder"):
        claim(tmp_path, first(log={"cluster": "other"}), ".bin")


def test_a_damaged_archive_is_named_file_by_file(tmp_path: Path) -> None:
    writer = open_(tmp_path)
    for n in range(3):
        writer.append(b"data", 1, DAY)
        writer.commit({"recommendations": n + 1})
    altered, truncated, missing = files(tmp_path, "examples")
    altered.write_bytes(b"dat4")
    truncated.write_bytes(b"dat")
    missing.unlink()
    start = tmp_path / "examples" / "manifests" / "3-000000000000.json"
    start.write_bytes(start.read_bytes().replace(b'"f"', b'"g"'))
    problems = list(verify(tmp_path, "examples"))
    assert [p.rpartition("/")[2] for p in problems] == [
        "3-000000000001.json: does not follow the manifest before it",
        f"{altered.name}: altered",
        f"{truncated.name}: truncated, 3 of 4 bytes",
        f"{missing.name}: missing",
    ]


@pytest.mark.parametrize("damaged", [0, 1, 2])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 3}', None])
def test_a_damaged_manifest_is_named(tmp_path: Path, damaged: int, content: bytes | None) -> None:
    writer = open_(tmp_path)
    for n in (1, 2):
        writer.commit({"recommendations": n})
    path = tmp_path / "examples" / "manifests" / f"3-00000000000{damaged}.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    found = " ".join(verify(tmp_path, "examples"))
    if content is None and damaged == 2:
        assert found == "", "as if it had not been made"
    elif content is None and damaged == 1:
        assert "3-000000000002.json: does not follow" in found
    else:
        assert path.name in found
    if content is not None and damaged == 2:
        with pytest.raises(ArchiveUnavailable, match=path.name):
            newest(tmp_path, "examples", 3)


def test_a_store_that_repeats_its_own_request_is_not_another_writer(tmp_path: Path) -> None:
    class Repeating(LocalDisk):
        """The first request got there, its answer did not, and the library asked again."""

        def create(self, path: Path, content: bytes) -> None:
            super().create(path, content)
            super().create(path, content)

    first_claim = open_(tmp_path)
    writer = ArchiveWriter(tmp_path, first_claim.manifest, ".bin", Repeating())
    for n in (1, 2):
        writer.append(f"<{n}>".encode(), 1, DAY)
        writer.commit({"recommendations": n})
    assert content(tmp_path) == b"<1><2>"


def test_the_declaration_of_a_feature_set_is_kept_beside_its_examples(root: Place) -> None:
    for partition in (1, 2):
        claim(root, first(partition=partition), ".bin", declaration="{}")
    assert (declaration(root, "f"), declaration(root, "g")) == ("{}", None)


def test_a_file_says_of_which_feature_set_and_position_it_is(root: Place) -> None:
    for n, fingerprint in enumerate(("f", "g")):
        writer = claim(root, first(fingerprint=fingerprint), ".bin")
        writer.append(b"x", 1, DAY)
        writer.commit({"recommendations": 7 * (n + 1)})
    found = writer.manifest.files
    assert [f.fingerprint for f in found] == ["f", "g"]
    assert [f.start["recommendations"] for f in found] == [0, 7]
    assert writer.manifest.begins == {"recommendations": 0}


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
