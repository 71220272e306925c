"""A disk that fails at one step: full before it is done, or broken after."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import IO, Any

from features.disk import Disk


class FaultyDisk:
    """
    Any disk, and the nth thing done to it fails: a file opened, written to, published or removed,
    a name given. The process is meant to have died there, or the disk to be full.
    """

    def __init__(self, disk: Disk, at: int, *, after: bool = False) -> None:
        self.disk, self.left, self.after = disk, at, after

    @property
    def failed(self) -> bool:
        return self.left <= 0

    def open(self, path: Any) -> IO[bytes]:
        opened: list[IO[bytes]] = []
        try:
            self._step(lambda: opened.append(self.disk.open(path)))
        except OSError:
            for file in opened:
                file.close()
            raise
        return _Faulty(opened[0], self._step)  # type: ignore[return-value]

    def publish(self, temporary: Any, final: Any, opened: Any) -> None:
        self._step(lambda: self.disk.publish(temporary, final, opened.file))

    def create(self, path: Any, content: bytes) -> None:
        self._step(lambda: self.disk.create(path, content))

    def remove(self, path: Any) -> None:
        self._step(lambda: self.disk.remove(path))

    def _step(self, do: Callable[[], object]) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise OSError(errno.ENOSPC, "No space left on device")
        do()
        if self.left == 0:
            raise OSError(errno.EIO, "Input/output error")


class _Faulty:
    """A file whose writes are steps."""

    def __init__(self, file: IO[bytes], step: Callable[[Callable[[], object]], None]) -> None:
        self.file, self._step = file, step

    def write(self, content: bytes) -> int:
        self._step(lambda: self.file.write(content))
        return len(content)

    def close(self) -> None:
        self.file.close()
