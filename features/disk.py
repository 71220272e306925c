"""The few things that the archive does to a disk, so that a test can make each of them fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Protocol


class Disk(Protocol):
    """
    What a disk must do.

    Implementations must pass `tests.contracts.archive.DiskContract`.
    """

    def open(self, path: Path) -> IO[bytes]:
        """A new file for writing; its folder is made."""

    def publish(self, temporary: Path, final: Path, opened: IO[bytes]) -> None:
        """Close, with everything durable, and give it its name."""

    def create(self, path: Path, content: bytes) -> None:
        """A whole durable file under a name that must be free (FileExistsError otherwise)."""

    def remove(self, path: Path) -> None:
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
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as opened:
            opened.write(content)
            _sync(opened)
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink()
        _sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


def _sync(opened: IO[bytes]) -> None:
    opened.flush()
    os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
