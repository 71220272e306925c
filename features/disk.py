"""The few things that the archive does to a disk, so that a test can make each of them fail."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias

from schemas.errors import ArchiveUnavailable

if TYPE_CHECKING:
    from features.object_store import ObjectPath

# A file or folder of an archive: local, or in an object store, which speaks the same few words.
Place: TypeAlias = "Path | ObjectPath"
_LOCAL = ("file://", "local://")


class Disk(Protocol):
    """
    What a disk must do. Paths are of its own kind.

    Implementations must pass `tests.contracts.archive.DiskContract`.
    """

    def open(self, path: Any) -> IO[bytes]:
        """A new file for writing; its folder is made."""

    def publish(self, temporary: Any, final: Any, opened: IO[bytes]) -> None:
        """Close, with everything durable, and give it its name."""

    def create(self, path: Any, content: bytes) -> None:
        """A whole durable file under a name that must be free (FileExistsError otherwise)."""

    def remove(self, path: Any) -> None:
        """Delete a file; it may be gone."""


class LocalDisk:
    """A folder of a local file system."""

    def open(self, path: Path) -> IO[bytes]:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")

    def publish(self, temporary: Path, final: Path, opened: IO[bytes]) -> None:
        _sync(opened)
        opened.close()
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(final)
        _sync_folder(final.parent)

    def create(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link makes the name appear with the whole content, or not at all.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as opened:
                opened.write(content)
                _sync(opened)
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


def place(name: str | Path) -> Place:
    """
    A folder by its path or by a URL that fsspec knows (`s3://bucket/folder`).

    Raises:
        Misconfigured: no such kind of store, or what it needs is not installed.

    >>> place("file:///var/lib/archive")
    PosixPath('/var/lib/archive')
    """
    if isinstance(name, Path) or "://" not in name:
        return Path(name)
    for scheme in _LOCAL:
        if name.startswith(scheme):
            return Path(name.removeprefix(scheme))
    from features.object_store import object_path  # noqa: PLC0415 - a local archive needs none

    return object_path(name)


def disk_of(root: Place) -> Disk:
    """The disk that a folder is on."""
    if isinstance(root, Path):
        return LocalDisk()
    from features.object_store import ObjectDisk  # noqa: PLC0415 - a local archive needs none

    return ObjectDisk()


def _sync(opened: IO[bytes]) -> None:
    opened.flush()
    os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class mapped:  # noqa: N801 - reads as a statement
    """Errors of the disk as ArchiveUnavailable, with the folder named; after any, `let_go`."""

    def __init__(self, folder: Place, let_go: Callable[[], None] = lambda: None) -> None:
        self._folder, self._let_go = folder, let_go

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._let_go()
        if isinstance(error, OSError):
            full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
            raise ArchiveUnavailable(f"cannot write to {self._folder}{full}: {error}") from error
