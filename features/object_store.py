"""Archives in an object store, or in any file system that fsspec knows and that fits."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, Final

import fsspec

from schemas.errors import Misconfigured

# Their `pipe_file(mode="create")` is one conditional request (S3: If-None-Match; Google: generation
# 0; Azure: no overwrite), or, in memory, one step. Elsewhere fsspec looks first and writes then.
_CONDITIONAL: Final = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """A path in a store, with those of pathlib's words that an archive needs."""

    store: Any  # fsspec's AbstractFileSystem
    path: str

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.store, f"{self.path.rstrip('/')}/{name}")

    def __lt__(self, other: ObjectPath) -> bool:
        return self.path < other.path

    def __str__(self) -> str:
        return str(self.store.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.store, str(PurePosixPath(self.path).parent))

    def exists(self) -> bool:
        with _told(self):
            return bool(self.store.exists(self.path))

    def read_bytes(self) -> bytes:
        with _told(self):
            return bytes(self.store.cat_file(self.path))

    def open(self, mode: str) -> IO[bytes]:
        """For reading. (Writing goes by way of the disk.)"""
        with _told(self):
            opened: IO[bytes] = self.store.open(self.path, mode)
            return opened

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """As the store has it now."""
        with _told(self):
            self.store.invalidate_cache()
            found = self.store.glob(f"{self.path}/{pattern}")
        return (ObjectPath(self.store, path) for path in found)


class ObjectDisk:
    """
    A folder in a store whose objects appear whole.

    A file is gathered on the local disk and sent when it is published.
    """

    def __init__(self) -> None:
        self._proven = False

    def open(self, path: ObjectPath) -> IO[bytes]:
        return tempfile.NamedTemporaryFile(prefix="millstream-")

    def publish(self, temporary: ObjectPath, final: ObjectPath, opened: IO[bytes]) -> None:
        opened.flush()
        with _told(final):
            final.store.put_file(opened.name, final.path)
        opened.close()

    def create(self, path: ObjectPath, content: bytes) -> None:
        if not self._proven:
            _prove(path)
            self._proven = True
        with _told(path):
            path.store.pipe_file(path.path, content, mode="create")

    def remove(self, path: ObjectPath) -> None:
        with _told(path):
            try:
                path.store.rm_file(path.path)
            except FileNotFoundError:
                return


def object_path(url: str) -> ObjectPath:
    """
    The folder that a URL names.

    Raises:
        Misconfigured: no such kind of store, or what it needs is not installed.
    """
    try:
        store, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise Misconfigured(f"archive {url}: {error}") from error
    return ObjectPath(store, path)


def _prove(path: ObjectPath) -> None:
    """
    Check that the store creates an object only if there is none, as nothing else keeps two writers
    of an archive apart. A store that says so may still not do it: some that speak S3 do not.

    Raises:
        Misconfigured: it does not.
    """
    spoken = path.store.protocol
    names = {spoken} if isinstance(spoken, str) else set(spoken)
    if not names & _CONDITIONAL:
        raise Misconfigured(
            f"{path.parent}: the file system {'/'.join(sorted(names))} cannot create a file "
            "only if it is absent in one step; an archive can be local or in "
            + ", ".join(sorted(_CONDITIONAL))
        )
    probe = path.parent / f".probe-{secrets.token_hex(8)}"
    with _told(probe):
        path.store.pipe_file(probe.path, b"1", mode="create")
        try:
            path.store.pipe_file(probe.path, b"2", mode="create")
        except FileExistsError:
            return
        finally:
            path.store.rm_file(probe.path)
    raise Misconfigured(
        f"{path.parent}: the store {'/'.join(sorted(names))} overwrote what it was asked to create "
        "only if absent: two writers of an archive would not see one another"
    )


@contextmanager
def _told(path: ObjectPath) -> Iterator[None]:
    """What a store's own library raises, as an error of a disk."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{path}: {type(error).__name__}: {error}") from error
