"""
The archive: files that appear whole, and manifests that say which of them count.

A file is written under a temporary name, fsynced, renamed; then the partition's next manifest is
created, only if absent. The newest manifest is the position and the only list of files that readers
use: what a crash left behind is in no manifest. Each manifest carries the hash of the one before
it. A claim is a manifest of the next generation: an older owner's next manifest is there already.
Whoever tidies up (`features.compaction`) stays within the generation and moves no position, so the
owner puts its next manifest on top of that one.

    <root>/<kind>/date=<day>/part-<partition>-<generation>-<number><suffix>
    <root>/<kind>/manifests/<partition>-<sequence>.json
    <root>/declarations/<fingerprint>.json    what the records of a feature set are
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from features.archive_file import ArchiveFile, OpenFile, file_problems
from features.disk import Disk, Place, disk_of, mapped
from schemas.errors import ArchiveUnavailable, Misconfigured, PositionMoved

_MANIFESTS = "manifests"
_DECLARATIONS = "declarations"
_SEQUENCE_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """What counts no more, kept for those that still read it."""

    at_ms: int  # wall clock
    files: tuple[str, ...]
    manifests_before: int  # sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a partition's archive holds, and how far its sources have been read for it."""

    kind: str
    partition: int
    sequence: int
    generation: int
    position: Mapping[str, int]  # next offsets by the name of what is read
    log: Mapping[str, str]  # cluster and topic ids that the offsets belong to
    fingerprint: str  # of the feature set that is written now; each file has its own
    begins: Mapping[str, int] = field(default_factory=dict)  # position before the first file
    files: tuple[ArchiveFile, ...] = ()
    notes: tuple[Mapping[str, int], ...] = ()  # decisions that a repetition must take again
    retired: tuple[Retired, ...] = ()
    oldest: int = 0  # sequence of the first manifest that is kept
    previous: str = ""  # SHA-256 of the manifest before

    @property
    def records(self) -> int:
        """Records in all files."""
        return sum(f.records for f in self.files)

    @property
    def name(self) -> str:
        """Of its file."""
        return _name(self.partition, self.sequence)

    def following(self, **changes: Any) -> Manifest:
        """The next one in the chain."""
        previous = hashlib.sha256(self.to_json()).hexdigest()
        return replace(self, sequence=self.sequence + 1, previous=previous, **changes)

    def to_json(self) -> bytes:
        """Its stored form."""
        plain = _plain(self) | {
            "files": [_plain(file) for file in self.files],
            "retired": [_plain(retired) for retired in self.retired],
        }
        return json.dumps(plain, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """
        Read the stored form.

        Raises:
            ValueError: it is none.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            files = tuple(ArchiveFile(**f) for f in found.pop("files"))
            retired = tuple(
                Retired(**(r | {"files": tuple(r["files"])})) for r in found.pop("retired")
            )
            return cls(files=files, retired=retired, notes=tuple(found.pop("notes")), **found)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no manifest: {error!r}") from error


class ArchiveWriter:
    """
    One partition's writer. `append` gathers, `commit` makes it count together with the position.

    After any error the writer is spent: claim again, and go on from the position found.
    """

    def __init__(self, root: Place, manifest: Manifest, suffix: str, disk: Disk) -> None:
        self._folder = root / manifest.kind
        self._manifest = manifest
        self._suffix = suffix
        self._disk = disk
        self._open: OpenFile | None = None
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
        with mapped(self._folder, self.close):
            if self._open is None:
                self._open = self._begun(day_ms)
            self._open.write(content, records)

    def roll(self) -> None:
        """Close the file; what is appended from here on goes to another. Nothing counts yet."""
        with mapped(self._folder, self.close):
            if self._open is not None:
                held = self._manifest
                self._whole.append(self._open.published(held.fingerprint, held.position))
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
        with mapped(self._folder, self.close):
            while not self._create(position, notes, replace_files):
                # Somebody has tidied up meanwhile: go on from there.
                self._manifest = follower(self._folder, self._manifest)
        self._whole = []
        return self._manifest

    def _create(
        self, position: Mapping[str, int], notes: tuple[Mapping[str, int], ...], replace_files: bool
    ) -> bool:
        """Create the next manifest, unless there is one."""
        old = self._manifest
        new = old.following(
            position=dict(position),
            files=(*(() if replace_files else old.files), *self._whole),
            notes=(*old.notes, *notes),
        )
        try:
            create(self._disk, self._folder, new)
        except PositionMoved:
            # An object store may answer so to its own repetition of what it has done already.
            if follower(self._folder, old) != new:
                return False
        self._manifest = new
        return True

    def close(self) -> None:
        """Let go of what was not committed; the next claim removes it. Idempotent."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _begun(self, day_ms: int) -> OpenFile:
        day = datetime.fromtimestamp(day_ms / 1000, UTC).date().isoformat()
        name = (
            f"part-{self._manifest.partition}-{self._manifest.generation}"
            f"-{next(self._numbers):06d}{self._suffix}"
        )
        return OpenFile(self._folder, f"date={day}/{name}", self._disk)


def claim(
    root: Place, first: Manifest, suffix: str, disk: Disk | None = None, declaration: str = ""
) -> ArchiveWriter:
    """
    Take a partition over, fencing its former writer, and remove what a crash left behind.

    Args:
        first: kind, partition, position and log of a partition that has no manifest yet; of one
            that has, its kind, partition and log must agree.
        declaration: of the feature set with `first.fingerprint`, for whoever reads with another.

    Raises:
        Misconfigured: the archive belongs to another log.
        PositionMoved: somebody else claimed it at the same moment.
    """
    disk = disk or disk_of(root)
    folder = root / first.kind
    with mapped(folder):
        old = newest(root, first.kind, first.partition)
        if old is None:
            new = replace(
                first, sequence=0, generation=0, begins=dict(first.position), files=(), notes=()
            )
        else:
            if dict(old.log) != dict(first.log):
                raise Misconfigured(
                    f"the archive {folder} (partition {first.partition}) was read from "
                    f"{dict(old.log)}, not from {dict(first.log)}: archive to another folder "
                    "(--archive-dir)"
                )
            new = old.following(generation=old.generation + 1, fingerprint=first.fingerprint)
        if declaration:
            _declare(root, first.fingerprint, declaration, disk)
        create(disk, folder, new)
        for orphan in _orphans(folder, new):
            disk.remove(orphan)
    return ArchiveWriter(root, new, suffix, disk)


def newest(root: Place, kind: str, partition: int) -> Manifest | None:
    """The newest manifest of a partition, or None."""
    found = manifest_paths(root / kind, partition)
    return read_manifest(found[-1]) if found else None


def manifest_paths(folder: Place, partition: int) -> list[Any]:
    """Places of a partition's manifests, in the order of their chain."""
    return sorted((folder / _MANIFESTS).glob(f"{partition}-*.json"))


def follower(folder: Place, manifest: Manifest) -> Manifest:
    """
    The manifest after this one, which is there and of the same ownership.

    Raises:
        PositionMoved: another writer has claimed the partition.
    """
    path = folder / _MANIFESTS / _name(manifest.partition, manifest.sequence + 1)
    found = read_manifest(path)
    if found.generation != manifest.generation:
        raise PositionMoved(f"{path}: another writer claimed partition {manifest.partition}")
    return found


def manifests(root: Place, kind: str) -> dict[int, Manifest]:
    """The newest manifest of every partition: what readers go by."""
    every: list[Any] = sorted((root / kind / _MANIFESTS).glob("*.json"))
    last = {int(path.name.split("-", 1)[0]): path for path in every}
    return {partition: read_manifest(path) for partition, path in sorted(last.items())}


def partitions(root: Place, kind: str) -> list[int]:
    """The partitions that an archive has, in order."""
    every = (root / kind / _MANIFESTS).glob("*.json")
    return sorted({int(path.name.split("-", 1)[0]) for path in every})


def files(root: Place, kind: str) -> list[Any]:
    """All files that count, by partition and then in the order of their records."""
    return [
        root / kind / file.path
        for _, manifest in sorted(manifests(root, kind).items())
        for file in manifest.files
    ]


def declaration(root: Place, fingerprint: str) -> str | None:
    """What the feature set of a fingerprint was declared to be, or None."""
    path = root / _DECLARATIONS / f"{fingerprint}.json"
    return path.read_bytes().decode() if path.exists() else None


def verify(root: Place, kind: str) -> Iterator[str]:
    """
    Problems of an archive: broken chains, missing or altered files. Nothing when it is whole.
    """
    for partition in partitions(root, kind):
        yield from _partition_problems(root / kind, partition)


def _partition_problems(folder: Place, partition: int) -> Iterator[str]:
    before: Manifest | None = None
    found = manifest_paths(folder, partition)
    try:
        first = read_manifest(found[-1]).oldest
    except ArchiveUnavailable as error:
        yield str(error)
        return
    kept = [path for path in found if path.name >= _name(partition, first)]
    if kept[0].name != _name(partition, first):
        yield f"{folder / _MANIFESTS / _name(partition, first)}: missing"
    for path in kept:
        try:
            manifest = read_manifest(path)
        except ArchiveUnavailable as error:
            yield str(error)
            continue
        expected = hashlib.sha256(before.to_json()).hexdigest() if before else ""
        if manifest.sequence != first and manifest.previous != expected:
            yield f"{path}: does not follow the manifest before it"
        before = manifest
    for file in before.files if before else ():
        yield from file_problems(folder / file.path, file.size_bytes, file.sha256)


def create(disk: Disk, folder: Place, manifest: Manifest) -> None:
    """
    Make a manifest the newest.

    Raises:
        PositionMoved: its place in the chain is taken.
    """
    try:
        disk.create(folder / _MANIFESTS / manifest.name, manifest.to_json())
    except FileExistsError as error:
        raise PositionMoved(
            f"{folder}: manifest {manifest.name} is there already: another writer claimed "
            f"partition {manifest.partition}"
        ) from error


def _declare(root: Place, fingerprint: str, text: str, disk: Disk) -> None:
    if declaration(root, fingerprint) is not None:
        return
    try:
        disk.create(root / _DECLARATIONS / f"{fingerprint}.json", text.encode())
    except FileExistsError:
        return  # by another partition's worker, at the same moment


def read_manifest(path: Place) -> Manifest:
    """
    One manifest.

    Raises:
        ArchiveUnavailable: it is not there or damaged.
    """
    try:
        return Manifest.from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArchiveUnavailable(f"{path}: {error}") from error


def _plain(value: Manifest | ArchiveFile | Retired) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _name(partition: int, sequence: int) -> str:
    return f"{partition}-{sequence:0{_SEQUENCE_DIGITS}d}.json"


def _orphans(folder: Place, manifest: Manifest) -> list[Any]:
    """Files of this partition that are in no manifest, and that nobody still reads."""
    listed = {file.path for file in manifest.files}
    listed |= {path for retired in manifest.retired for path in retired.files}
    kept = {str(folder / path) for path in listed}
    name = f"part-{manifest.partition}-*"
    every = [*folder.glob(f"date=*/{name}"), *folder.glob(f"date=*/.{name}.tmp")]
    return [path for path in every if str(path) not in kept]
