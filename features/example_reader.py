"""
Examples from archive files for a training: mixed, shared out among workers, resumed anywhere.

The order is a function of the files and the policy: `readers` files are read side by side, a block
of each in turn, and within windows of `shuffle` records the records are put in a drawn order. So a
position is two numbers, and what follows it is found again without what came before: files that are
done are not opened, and of those that are not, what was read is passed over undecoded.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, Final

import numpy as np

from features import archive
from features.declare import FeatureSet, missing
from features.disk import Place
from features.example_bytes import unframed
from schemas.errors import ArchiveUnavailable, Refused

_PIECE_BYTES: Final = 1 << 18  # compressed, read at once
_GZIP: Final = 31  # zlib's number for gzip's frame


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleFile:
    """One file of examples, as its manifest describes it."""

    path: Place
    records: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPolicy:
    """In which order, and which share of it."""

    shuffle: int = 0  # records of a window that are mixed; 0: none
    seed: int = 0
    readers: int = 4  # files read side by side; 1: one after another
    block: int = 64  # records taken from one file before the next one's turn
    shard: int = 0  # this worker ...
    shards: int = 1  # ... of so many, each with files of its own
    epochs: int | None = 1  # None: without end

    def __post_init__(self) -> None:
        if not 0 <= self.shard < self.shards:
            raise ValueError(f"shard must be from 0 to {self.shards - 1}, got {self.shard}")
        if self.readers < 1 or self.block < 1 or self.shuffle < 0:
            raise ValueError(f"readers and block are at least 1, shuffle at least 0, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderState:
    """A position: so many records of an epoch are taken. Of those files under that policy alone."""

    epoch: int
    taken: int
    of: str  # 16 hex digits over files and policy

    def to_json(self) -> str:
        """Its stored form."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ReaderState:
        """Read the stored form."""
        return cls(**json.loads(text))


class ExampleReader:
    """Serialized examples, as many as asked for. `get_state` and `set_state` at any moment."""

    def __init__(self, files: Sequence[ExampleFile], policy: ReadPolicy) -> None:
        self._policy = policy
        self._files = shares(files, policy.shards)[policy.shard]
        self._of = _identity(files, policy)
        self._records = sum(file.records for file in self._files)
        self._pool = ThreadPoolExecutor(policy.readers, "examples")
        self._epoch = self._taken = 0
        self._left: Iterator[bytes] | None = None  # of this epoch

    def take(self, n: int) -> list[bytes]:
        """
        The next `n` examples; fewer, and then none, at the end.

        Raises:
            ArchiveUnavailable: a file is missing or damaged.
        """
        found: list[bytes] = []
        while len(found) < n and not self._ended():
            if self._left is None:
                self._left = self._from(self._epoch, self._taken)
            more = list(islice(self._left, n - len(found)))
            found += more
            self._taken += len(more)
            if self._taken == self._records:
                self._epoch, self._taken, self._left = self._epoch + 1, 0, None
        return found

    def get_state(self) -> ReaderState:
        """Where the next example is taken from."""
        return ReaderState(epoch=self._epoch, taken=self._taken, of=self._of)

    def set_state(self, state: ReaderState) -> None:
        """
        Go on from there.

        Raises:
            Refused: the state is of other files or another policy.
        """
        if state.of != self._of:
            raise Refused(
                f"a reader's state of {state.of}, but these files and this policy are {self._of}"
            )
        self._epoch, self._taken, self._left = state.epoch, state.taken, None

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        self._left = None
        self._pool.shutdown(cancel_futures=True)

    def _ended(self) -> bool:
        return not self._records or self._epoch == self._policy.epochs

    def _from(self, epoch: int, taken: int) -> Iterator[bytes]:
        """The records of an epoch after the first ones."""
        policy, files = self._policy, self._files
        if not policy.shuffle:
            yield from _interleaved(files, policy, taken, self._pool)
            return
        order = np.random.default_rng([policy.seed, epoch]).permutation(len(files))
        files = [files[i] for i in order.tolist()]
        window, within = divmod(taken, policy.shuffle)
        records = _interleaved(files, policy, window * policy.shuffle, self._pool)
        while held := list(islice(records, policy.shuffle)):
            drawn = np.random.default_rng([policy.seed, epoch, window]).permutation(len(held))
            yield from (held[i] for i in drawn[within:].tolist())
            window, within = window + 1, 0


def shares(files: Sequence[ExampleFile], count: int) -> list[list[ExampleFile]]:
    """
    The files shared out, each share in the files' order.

    Shares differ by no more records than the largest file has; with fewer files than shares some
    are empty.
    """
    held = [0] * count
    chosen: list[list[int]] = [[] for _ in range(count)]
    for i in sorted(range(len(files)), key=lambda i: (-files[i].records, i)):
        least = held.index(min(held))
        chosen[least].append(i)
        held[least] += files[i].records
    return [[files[i] for i in sorted(share)] for share in chosen]


def lacking(root: Place, fingerprint: str, features: FeatureSet) -> tuple[str, ...]:
    """
    The features that examples of a fingerprint do not have, each of which may have its default.

    Raises:
        Refused: they differ in more, or nobody knows what they were declared to be.
    """
    if fingerprint == features.fingerprint:
        return ()
    declaration = archive.declaration(root, fingerprint)
    if declaration is None:
        raise Refused(f"examples of feature set {fingerprint}, expected {features.fingerprint}")
    return missing(features, declaration)


def turns(counts: Sequence[int], readers: int, block: int) -> Iterator[tuple[int, int, int]]:
    """
    Which records of which file come next: (file, start, stop).

    >>> list(turns([3, 1, 2], 2, 2))
    [(0, 0, 2), (1, 0, 1), (0, 2, 3), (2, 0, 2)]
    """
    waiting = iter([i for i, count in enumerate(counts) if count])
    open_ = [(i, 0) for i in islice(waiting, readers)]
    while open_:
        still = []
        for i, start in open_:
            stop = min(start + block, counts[i])
            yield i, start, stop
            if stop < counts[i]:
                still.append((i, stop))
            elif (following := next(waiting, None)) is not None:
                still.append((following, 0))
        open_ = still


def _interleaved(
    files: Sequence[ExampleFile], policy: ReadPolicy, skipped: int, pool: ThreadPoolExecutor
) -> Iterator[bytes]:
    """The files' records in turn, without the first ones."""
    streams: dict[int, _Stream] = {}
    for i, start, stop in turns([f.records for f in files], policy.readers, policy.block):
        if skipped >= stop - start:
            skipped -= stop - start
            continue
        if i not in streams:
            streams[i] = _Stream(files[i], start, pool)
        taken = islice(streams[i], stop - start)
        yield from islice(taken, skipped, None)
        skipped = 0
        if stop == files[i].records:
            streams.pop(i).finish()


class _Stream:
    """One file's records from one on, a piece ahead of whoever takes them."""

    def __init__(self, file: ExampleFile, first: int, pool: ThreadPoolExecutor) -> None:
        self._file = file
        self._pool = pool
        self._pieces = _pieces(file, first)
        self._coming: Future[list[bytes] | None] = pool.submit(self._next)
        self._held: Iterator[bytes] = iter(())

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while True:
            for record in self._held:
                return record
            piece = self._coming.result()
            if piece is None:
                raise ArchiveUnavailable(
                    f"{self._file.path}: fewer than {self._file.records} records"
                )
            self._held = iter(piece)
            self._coming = self._pool.submit(self._next)

    def finish(self) -> None:
        """
        Check that the file ends here.

        Raises:
            ArchiveUnavailable: it does not, or it is damaged.
        """
        if next(self._held, None) is not None or self._coming.result():
            raise ArchiveUnavailable(f"{self._file.path}: more than {self._file.records} records")

    def _next(self) -> list[bytes] | None:
        return next(self._pieces, None)


def _pieces(file: ExampleFile, first: int) -> Iterator[list[bytes]]:
    """Records of a file, from one on, as they come out of the compression."""
    rest, seen = b"", 0
    try:
        with file.path.open("rb") as opened:
            for content in _unzipped(opened):
                records, used = unframed(rest + content)
                rest = (rest + content)[used:]
                seen += len(records)
                if seen > first:
                    yield records[max(0, first - (seen - len(records))) :]
        _check_whole(rest, seen)
    except (OSError, ValueError, zlib.error) as error:
        raise ArchiveUnavailable(f"{file.path}: {error}") from error


def _check_whole(rest: bytes, seen: int) -> None:
    if rest:
        raise ValueError(f"truncated after record {seen}")


def _unzipped(opened: IO[bytes]) -> Iterator[bytes]:
    zipped = zlib.decompressobj(wbits=_GZIP)
    while piece := opened.read(_PIECE_BYTES):
        yield zipped.decompress(piece)
    if not zipped.eof:
        raise ValueError("truncated")


def _identity(files: Sequence[ExampleFile], policy: ReadPolicy) -> str:
    """Which order of which records. How long it goes on is no part of it."""
    order = asdict(policy) | {"epochs": None}
    text = json.dumps([[(f.sha256, f.records) for f in files], order], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
