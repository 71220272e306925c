"""
The archive: files that appear whole, and manifests that say which of them count.

A file is written under a temporary name, fsynced, renamed; then the partition's next manifest is
created, only if absent. The newest manifest is the position and the only list of files that readers
use: what a crash left behind is in no manifest. Each manifest carries the hash of the one before
it. A claim is a manifest of the next generation: an older owner's next manifest is there already.

    <root>/<kind>/date=<day>/part-<partition>-<generation>-<number><suffix>
    <root>/<kind>/manifests/<partition>-<sequence>.json
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from features.disk import Disk, LocalDisk
from schemas.errors import ArchiveUnavailable, Misconfigured, PositionMoved

_MANIFESTS = "manifests"
_SEQUENCE_DIGITS = 12
_GZIP_LEVEL = 1  # 3 x the speed of the default for 10 % more bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFile:
    """One whole file: where (below the kind's folder), how much, and its SHA-256."""

    path: str
    records: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a partition's archive holds, and how far its sources have been read for it."""

    kind: str
    partition: int
    sequence: int
    generation: int
    position: Mapping[str, int]  # next offsets by the name of what is read
    log: Mapping[str, str]  # cluster and topic ids that the offsets belong to
    fingerprint: str
    files: tuple[ArchiveFile, ...] = ()
    notes: tuple[Mapping[str, int], ...] = ()  # decisions that a repetition must take again
    previous: str = ""  # SHA-256 of the manifest before

    @property
    def records(self) -> int:
        """Records in all files."""
        return sum(f.records for f in self.files)

    def to_json(self) -> bytes:
        """Its stored form."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read the stored form."""
        found: dict[str, Any] = json.loads(text)
        files = tuple(ArchiveFile(**f) for f in found.pop("files"))
        return cls(files=files, notes=tuple(found.pop("notes")), **found)


class ArchiveWriter:
    """
    One partition's writer. `append` gathers, `commit` makes it count together with the position.

    After any error the writer is spent: claim again, and go on from the position found.
    """

    def __init__(self, root: Path, manifest: Manifest, suffix: str, disk: Disk) -> None:
        self._folder = root / manifest.kind
        self._manifest = manifest
        self._suffix = suffix
        self._disk = disk
        self._open: _OpenFile | None = None
        self._whole: list[ArchiveFile] = []  # closed and not yet committed
        self._numbers = iter(range(len(manifest.files), 10**9))

    @property
    def manifest(self) -> Manifest:
        """The newest manifest, ours."""
        return self._manifest

    @property
    def pending_bytes(self) -> int:
        """Bytes gathered since the last commit, before compression."""
        return self._open.size_bytes if self._open else 0

    def append(self, content: bytes, records: int, day_ms: int) -> None:
        """
        Gather `records` more records. `day_ms` (event time) dates a file that is begun now.

        Raises:
            ArchiveUnavailable: the disk failed or is full; nothing of this file will count.
        """
        with _mapped(self._folder, self.close):
            if self._open is None:
                self._open = self._begun(day_ms)
            self._open.write(content, records)

    def roll(self) -> None:
        """Close the file; what is appended from here on goes to another. Nothing counts yet."""
        with _mapped(self._folder, self.close):
            if self._open is not None:
                self._whole.append(self._open.published())
                self._open = None

    def commit(
        self,
        position: Mapping[str, int],
        notes: tuple[Mapping[str, int], ...] = (),
        *,
        replace_files: bool = False,
    ) -> Manifest:
        """
        Make what was appended, the position and the notes count, together or not at all.

        `replace_files`: what counted before counts no more, and the next claim removes it.

        Raises:
            PositionMoved: another writer claimed this partition.
            ArchiveUnavailable: the disk failed or is full; the old manifest stands.
        """
        old = self._manifest
        self.roll()
        same = dict(position) == dict(old.position) and not replace_files
        if same and not self._whole and not notes:
            return old
        with _mapped(self._folder, self.close):
            files = (*(() if replace_files else old.files), *self._whole)
            new = replace(
                old,
                sequence=old.sequence + 1,
                position=dict(position),
                files=files,
                notes=(*old.notes, *notes),
                previous=hashlib.sha256(old.to_json()).hexdigest(),
            )
            _create(self._disk, self._folder, new)
        self._manifest, self._whole = new, []
        return new

    def close(self) -> None:
        """Let go of what was not committed; the next claim removes it. Idempotent."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _begun(self, day_ms: int) -> _OpenFile:
        day = datetime.fromtimestamp(day_ms / 1000, UTC).date().isoformat()
        name = (
            f"part-{self._manifest.partition}-{self._manifest.generation}"
            f"-{next(self._numbers):06d}{self._suffix}"
        )
        return _OpenFile(self._folder, Path(f"date={day}") / name, self._disk)


class _OpenFile:
    """A file being written under a temporary name, hashed on the way."""

    def __init__(self, folder: Path, path: Path, disk: Disk) -> None:
        self._folder, self._path, self._disk = folder, path, disk
        self._temporary = folder / path.parent / f".{path.name}.tmp"
        self._raw = disk.open(self._temporary)
        self._hashed = _Hashing(self._raw)
        self._zipped: gzip.GzipFile | None = None
        if path.suffix == ".gz":
            # No name and no time in the header: the same records give the same bytes.
            self._zipped = gzip.GzipFile("", "wb", _GZIP_LEVEL, self._hashed, 0)
        self._records = 0
        self.size_bytes = 0

    def write(self, content: bytes, records: int) -> None:
        (self._zipped or self._hashed).write(content)
        self._records += records
        self.size_bytes += len(content)

    def published(self) -> ArchiveFile:
        if self._zipped is not None:
            self._zipped.close()
        self._disk.publish(self._temporary, self._folder / self._path, self._raw)
        return ArchiveFile(
            path=self._path.as_posix(),
            records=self._records,
            size_bytes=self._hashed.size_bytes,
            sha256=self._hashed.digest.hexdigest(),
        )

    def close(self) -> None:
        self._raw.close()


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size_bytes += len(content)
        return self._raw.write(content)

    def flush(self) -> None:
        self._raw.flush()

    def close(self) -> None:
        """The raw file is closed when it is published."""


def claim(root: Path, first: Manifest, suffix: str, disk: Disk | None = None) -> ArchiveWriter:
    """
    Take a partition over, fencing its former writer, and remove what a crash left behind.

    Args:
        first: kind, partition, position and log of a partition that has no manifest yet; of one
            that has, its kind, partition, log and fingerprint must agree.

    Raises:
        Misconfigured: the archive belongs to another log.
        PositionMoved: somebody else claimed it at the same moment.
    """
    disk = disk or LocalDisk()
    folder = root / first.kind
    with _mapped(folder):
        old = newest(root, first.kind, first.partition)
        if old is None:
            new = replace(first, sequence=0, generation=0, files=(), notes=(), previous="")
        else:
            if dict(old.log) != dict(first.log):
                raise Misconfigured(
                    f"the archive {folder} (partition {first.partition}) was read from "
                    f"{dict(old.log)}, not from {dict(first.log)}: archive to another folder"
                )
            new = replace(
                old,
                sequence=old.sequence + 1,
                generation=old.generation + 1,
                fingerprint=first.fingerprint,
                previous=hashlib.sha256(old.to_json()).hexdigest(),
            )
        _create(disk, folder, new)
        for orphan in _orphans(folder, new):
            disk.remove(orphan)
    return ArchiveWriter(root, new, suffix, disk)


def newest(root: Path, kind: str, partition: int) -> Manifest | None:
    """The newest manifest of a partition, or None."""
    found = sorted((root / kind / _MANIFESTS).glob(f"{partition}-*.json"))
    return Manifest.from_json(found[-1].read_bytes()) if found else None


def oldest(root: Path, kind: str, partition: int) -> Manifest:
    """The oldest manifest of a partition that has one; the very first lists no files."""
    found = sorted((root / kind / _MANIFESTS).glob(f"{partition}-*.json"))
    return Manifest.from_json(found[0].read_bytes())


def manifests(root: Path, kind: str) -> dict[int, Manifest]:
    """The newest manifest of every partition: what readers go by."""
    names = (root / kind / _MANIFESTS).glob("*.json")
    found = {}
    for partition in sorted({int(path.name.split("-", 1)[0]) for path in names}):
        manifest = newest(root, kind, partition)
        if manifest is not None:
            found[partition] = manifest
    return found


def files(root: Path, kind: str) -> list[Path]:
    """All files that count, by partition and then in the order of their records."""
    return [
        root / kind / file.path
        for _, manifest in sorted(manifests(root, kind).items())
        for file in manifest.files
    ]


def verify(root: Path, kind: str) -> Iterator[str]:
    """
    Problems of an archive: broken chains, missing or altered files. Nothing when it is whole.
    """
    for partition in manifests(root, kind):
        before: Manifest | None = None
        for path in sorted((root / kind / _MANIFESTS).glob(f"{partition}-*.json")):
            manifest = Manifest.from_json(path.read_bytes())
            expected = hashlib.sha256(before.to_json()).hexdigest() if before else ""
            if manifest.previous != expected:
                yield f"{path}: does not follow the manifest before it"
            before = manifest
        for file in before.files if before else ():
            yield from _file_problems(root / kind / file.path, file)


def _file_problems(path: Path, file: ArchiveFile) -> Iterator[str]:
    if not path.exists():
        yield f"{path}: missing"
        return
    with path.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
            yield f"{path}: altered"


def _create(disk: Disk, folder: Path, manifest: Manifest) -> None:
    name = f"{manifest.partition}-{manifest.sequence:0{_SEQUENCE_DIGITS}d}.json"
    try:
        disk.create(folder / _MANIFESTS / name, manifest.to_json())
    except FileExistsError as error:
        raise PositionMoved(
            f"{folder}: manifest {name} is there already: another writer claimed partition "
            f"{manifest.partition}"
        ) from error


def _orphans(folder: Path, manifest: Manifest) -> list[Path]:
    """Files of older generations of this partition that are in no manifest."""
    listed = {folder / file.path for file in manifest.files}
    name = f"part-{manifest.partition}-*"
    every = [*folder.glob(f"date=*/{name}"), *folder.glob(f"date=*/.{name}.tmp")]
    return [path for path in every if path not in listed]


class _mapped:  # noqa: N801 - reads as a statement
    """Errors of the disk as ArchiveUnavailable, with the folder named; after any, `let_go`."""

    def __init__(self, folder: Path, let_go: Callable[[], None] = lambda: None) -> None:
        self._folder, self._let_go = folder, let_go

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._let_go()
        if isinstance(error, OSError):
            full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
            raise ArchiveUnavailable(f"cannot write to {self._folder}{full}: {error}") from error
