"""
Tidying up an archive: small files become large ones, old ones go; the records stay as they were.

It may run beside the partition's writer and beside itself. The order of one pass:

1. Files retired by an earlier pass, longer ago than the grace, are removed.
2. Neighbouring small files are checked, and written anew as one.
3. The next manifest lists the new files, and what they replace as retired. It is created on top of
   whatever the writer has created meanwhile. If the partition has changed hands, the new owner has
   removed what was not listed: then nothing is done.
4. Manifests older than the oldest that is kept are removed.

A crash leaves what no manifest lists, which the next claim removes; or work for the next pass.
"""

from __future__ import annotations

import gzip
import io
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from pathlib import PurePosixPath
from typing import Final

from features import archive
from features.archive import Manifest, Retired
from features.archive_file import ArchiveFile, OpenFile, file_problems
from features.disk import Disk, Place, disk_of, mapped
from features.event_archive import SCHEMA
from features.event_archive import SUFFIX as EVENTS_SUFFIX
from features.join_worker import SUFFIX as EXAMPLES_SUFFIX
from ingest.clock import Clock
from schemas.codec import ContainerFile, read_container
from schemas.errors import ArchiveUnavailable, PositionMoved

# Manifests that pile up before they are retired although no file is.
_CHAIN: Final = 100
Run = tuple[ArchiveFile, ...]  # neighbours

_RECORDS: Final = 5_000  # of an Avro block
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TidyPolicy:
    """What is merged, and what goes."""

    small_bytes: int = 64_000_000  # a file below this is small
    target_bytes: int = 256_000_000  # of a merged file, at most
    min_files: int = 8  # fewer small ones side by side stay as they are
    grace_s: float = 6 * 3_600.0  # how long a reader may go by an old manifest
    retain_days: int | None = None  # event time; None: for ever

    def __post_init__(self) -> None:
        if self.min_files < 2 or self.grace_s < 0 or (self.retain_days or 0) < 0:
            raise ValueError(
                f"at least two files are merged, and nothing is kept for less than no time: {self}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidied:
    """What one pass over a partition did."""

    merged: int = 0  # files that are parts of larger ones now
    into: int = 0
    dropped: int = 0  # files that were too old
    removed: int = 0  # files retired earlier, gone now
    disturbed: bool = False  # the partition changed hands meanwhile

    def __add__(self, other: Tidied) -> Tidied:
        return Tidied(
            merged=self.merged + other.merged,
            into=self.into + other.into,
            dropped=self.dropped + other.dropped,
            removed=self.removed + other.removed,
            disturbed=self.disturbed or other.disturbed,
        )


def tidy(
    root: Place,
    kind: str,
    partition: int,
    policy: TidyPolicy,
    clock: Clock,
    disk: Disk | None = None,
) -> Tidied:
    """
    One pass over a partition.

    Raises:
        ArchiveUnavailable: the disk failed or is full, or a file to be merged is damaged; the
            archive is as it was.
    """
    disk = disk or disk_of(root)
    found = archive.newest(root, kind, partition)
    if found is None:
        return Tidied()
    return _Pass(root / kind, disk, policy, clock.now_ms()).run(found)


def merges(files: Sequence[ArchiveFile], policy: TidyPolicy) -> list[Run]:
    """Runs of neighbours that become one file each: small, of one day and one feature set."""
    found: list[Run] = []
    run: list[ArchiveFile] = []
    for file in files:
        same = bool(run) and (run[0].day, run[0].fingerprint) == (file.day, file.fingerprint)
        small = file.size_bytes < policy.small_bytes
        fits = sum(f.size_bytes for f in run) + file.size_bytes <= policy.target_bytes
        if run and not (same and small and fits):
            found.append(tuple(run))
            run = []
        if small:
            run.append(file)
    found.append(tuple(run))
    return [run for run in found if len(run) >= policy.min_files]


def expired(files: Sequence[ArchiveFile], policy: TidyPolicy, now_ms: int) -> int:
    """How many files from the first on are too old. What follows a younger one stays."""
    if policy.retain_days is None:
        return 0
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    oldest = f"date={(today - timedelta(days=policy.retain_days)).isoformat()}"
    count = sum(1 for _ in takewhile(lambda file: file.day < oldest, files))
    # Files that were committed together begin at one position: they go together.
    while 0 < count < len(files) and files[count].start == files[count - 1].start:
        count -= 1
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What one pass makes of a manifest."""

    old: tuple[ArchiveFile, ...]
    made: Sequence[tuple[Run, ArchiveFile]]
    due: tuple[Retired, ...]
    now_ms: int

    @property
    def replaced(self) -> tuple[ArchiveFile, ...]:
        return (*self.old, *(file for run, _ in self.made for file in run))

    def applied(self, last: Manifest) -> Manifest:
        """
        The manifest after `last`.

        Raises:
            PositionMoved: another pass has been at these files.
        """
        gone = {file.path for file in self.replaced}
        if not gone <= {file.path for file in last.files}:
            raise PositionMoved(f"partition {last.partition} was tidied by somebody else")
        instead = {run[0].path: file for run, file in self.made}
        files = tuple(
            instead.get(file.path, file)
            for file in last.files
            if file.path not in gone or file.path in instead
        )
        begins = last.begins
        if self.old:
            begins = files[0].start if files else last.position
        retired = [r for r in last.retired if r not in self.due]
        if self.replaced or _long(last):
            paths = tuple(file.path for file in self.replaced)
            new = Retired(at_ms=self.now_ms, files=paths, manifests_before=last.sequence + 1)
            retired.append(new)
        return last.following(
            files=files,
            begins=begins,
            notes=tuple(note for note in last.notes if not _past(note, begins)),
            retired=tuple(retired),
            oldest=max((last.oldest, *(r.manifests_before for r in self.due))),
        )


class _Pass:
    """One pass over one partition."""

    def __init__(self, folder: Place, disk: Disk, policy: TidyPolicy, now_ms: int) -> None:
        self._folder, self._disk, self._policy, self._now_ms = folder, disk, policy, now_ms

    def run(self, found: Manifest) -> Tidied:
        due = self._due(found)
        with mapped(self._folder):
            for path in (path for retired in due for path in retired.files):
                self._disk.remove(self._folder / path)
        removed = sum(len(retired.files) for retired in due)
        old = found.files[: expired(found.files, self._policy, self._now_ms)]
        runs = merges(found.files[len(old) :], self._policy)
        if not (old or runs or due or _long(found)):
            return Tidied()
        made: list[tuple[Run, ArchiveFile]] = []
        try:
            made.extend((run, self._merged(found, run)) for run in runs)
        except ArchiveUnavailable:
            self._drop(made)  # a full disk needs the room
            if self._same_owner(found):
                raise
            return Tidied(removed=removed, disturbed=True)
        change = _Change(old=old, made=made, due=due, now_ms=self._now_ms)
        try:
            # After an error here the manifest may be there, and the files with it.
            newest = self._published(found, change)
        except PositionMoved:
            self._drop(made)
            return Tidied(removed=removed, disturbed=True)
        self._forget(newest)
        return Tidied(merged=sum(map(len, runs)), into=len(runs), dropped=len(old), removed=removed)

    def _same_owner(self, found: Manifest) -> bool:
        """Whether nobody has claimed the partition, and removed our unfinished file."""
        paths = archive.manifest_paths(self._folder, found.partition)
        return archive.read_manifest(paths[-1]).generation == found.generation

    def _due(self, found: Manifest) -> tuple[Retired, ...]:
        horizon_ms = self._now_ms - round(1000 * self._policy.grace_s)
        return tuple(retired for retired in found.retired if retired.at_ms <= horizon_ms)

    def _published(self, found: Manifest, change: _Change) -> Manifest:
        """The next manifest, put on top of what the writer has created meanwhile."""
        last = found
        while True:
            new = change.applied(last)
            try:
                with mapped(self._folder):
                    archive.create(self._disk, self._folder, new)
            except PositionMoved:
                last = archive.follower(self._folder, last)
                if last == new:  # an object store's answer to its own repetition
                    return new
            else:
                return new

    def _merged(self, found: Manifest, run: Run) -> ArchiveFile:
        """The records of some files as one file."""
        suffix = "".join(PurePosixPath(run[0].path).suffixes)
        # No other pass has the name, not even one that was killed at the same manifest.
        token = secrets.token_hex(4)
        name = f"part-{found.partition}-{found.generation}-m{found.sequence:06d}-{token}{suffix}"
        with mapped(self._folder):
            merged = OpenFile(self._folder, f"{run[0].day}/{name}", self._disk)
        pieces = _PIECES[suffix]()
        with mapped(self._folder, merged.close):
            for file in run:
                for piece in pieces(self._content(file)):
                    merged.write(piece, 0)
                merged.write(b"", file.records)
            return merged.published(run[0].fingerprint, run[0].start)

    def _content(self, file: ArchiveFile) -> bytes:
        """A file, checked: damage must not be given a new checksum."""
        path = self._folder / file.path
        for problem in file_problems(path, file.size_bytes, file.sha256):
            raise ArchiveUnavailable(f"not merged: {problem}")
        return path.read_bytes()

    def _forget(self, newest: Manifest) -> None:
        """Remove the manifests that are not kept."""
        oldest = replace(newest, sequence=newest.oldest).name
        with mapped(self._folder):
            for path in archive.manifest_paths(self._folder, newest.partition):
                if path.name < oldest:
                    self._disk.remove(path)

    def _drop(self, made: Sequence[tuple[Run, ArchiveFile]]) -> None:
        with mapped(self._folder):
            for _, file in made:
                self._disk.remove(self._folder / file.path)


def _past(note: Mapping[str, int], begins: Mapping[str, int]) -> bool:
    """Whether a note is of nothing but what the archive no longer holds."""
    return all(at <= begins.get(name, 0) for name, at in note.items())


def _long(found: Manifest) -> bool:
    """Whether many manifests follow the last retired one: the position moves without files too."""
    retired = max((found.oldest, *(r.manifests_before for r in found.retired)))
    return found.sequence - retired >= _CHAIN


Pieces = Callable[[bytes], Iterator[bytes]]  # of a file's content: what goes into a merged file


def _unzipped() -> Pieces:
    def pieces(content: bytes) -> Iterator[bytes]:
        with gzip.open(io.BytesIO(content)) as opened:
            while piece := opened.read(_PIECE_BYTES):
                yield piece

    return pieces


def _contained() -> Pieces:
    container = ContainerFile(SCHEMA)

    def pieces(content: bytes) -> Iterator[bytes]:
        records = read_container(io.BytesIO(content))
        while part := list(islice(records, _RECORDS)):
            yield container.add(part)

    return pieces


_PIECES: Final[Mapping[str, Callable[[], Pieces]]] = {
    EXAMPLES_SUFFIX: _unzipped,
    EVENTS_SUFFIX: _contained,
}
