"""Object stores: what fits is used by way of fsspec, what does not is refused by name."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from features.disk import Disk, LocalDisk, Place, disk_of, place
from features.object_store import ObjectDisk, ObjectPath
from schemas.errors import Misconfigured
from tests.contracts.archive import DiskContract


class TestObjectDisk(DiskContract):
    @pytest.fixture
    def root(self) -> Place:
        return place(f"memory://{uuid.uuid4().hex}/archive")

    @pytest.fixture
    def disk(self, root: Place) -> Disk:
        return disk_of(root)


class TestLocalFolderByUrl(DiskContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> Place:
        return place(f"file://{tmp_path}")

    @pytest.fixture
    def disk(self, root: Place) -> Disk:
        found = disk_of(root)
        assert isinstance(found, LocalDisk)
        return found


class Careless(MemoryFileSystem):
    """Says that it speaks S3, and ignores the condition, as some stores do."""

    protocol = "s3"
    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        super().pipe_file(path, value)


def test_a_store_that_overwrites_is_found_out(tmp_path: Path) -> None:
    path = ObjectPath(Careless(), "/careless/m/1.json")
    with pytest.raises(Misconfigured, match="the store s3 overwrote"):
        ObjectDisk().create(path, b"x")
    assert not path.exists()


def test_a_file_system_that_looks_first_and_writes_then_is_refused(tmp_path: Path) -> None:
    path = ObjectPath(LocalFileSystem(), f"{tmp_path}/m/1.json")
    with pytest.raises(Misconfigured, match="the file system file/local cannot create"):
        ObjectDisk().create(path, b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["nonsense://a/b", "s3://bucket/without-its-library"])
def test_a_store_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(Misconfigured, match=url.split(":", maxsplit=1)[0]):
        place(url)


class Broken(MemoryFileSystem):
    cachable = False

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        raise RuntimeError("token expired")


def test_what_a_store_raises_is_an_error_of_a_disk() -> None:
    with pytest.raises(OSError, match="RuntimeError: token expired"):
        ObjectPath(Broken(), "/x/y").read_bytes()
