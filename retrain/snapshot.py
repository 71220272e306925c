"""
What a training reads: an exact list of archive files, their examples, and what is wrong with them.

A snapshot is the newest manifest of every partition at one moment, with its id; the same id is the
same data. Bad data is found before the first step, and then nothing is trained.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from features import archive
from features.archive_file import file_problems as archive_problems
from features.assemble import ItemFeatures, UserFeatures
from features.catalog import TARGETS
from features.declare import Array, FeatureSet, Level
from features.disk import Place
from features.example_bytes import LABELS, NUMBERS, TEXTS
from features.example_reader import ExampleFile, ExampleReader, ReadPolicy, lacking
from features.examples import LABELS as LABEL_COUNT
from features.examples import Examples, concat, take
from schemas.errors import ArchiveUnavailable, Refused

KINDS = ("examples", "history")  # the label join's, and the backfill's
_BATCH = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFile:
    """One archive file as the manifest describes it."""

    path: str
    records: int
    size_bytes: int
    sha256: str
    fingerprint: str  # of the feature set that its examples are of


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A fixed set of archive files."""

    id: str  # 16 hex digits over partitions, manifests and files
    root: Place
    manifests: tuple[str, ...]  # kind-partition-sequence of each
    files: tuple[SnapshotFile, ...]

    @property
    def records(self) -> int:
        return sum(f.records for f in self.files)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the feature sets that the examples are of."""
        return tuple(sorted({f.fingerprint for f in self.files}))

    def lacking(self, features: FeatureSet) -> dict[str, tuple[str, ...]]:
        """
        What examples of other feature sets do not have and get by default, by fingerprint.

        Raises:
            Refused: they differ in more.
        """
        return {
            fingerprint: lacking(self.root, fingerprint, features)
            for fingerprint in self.fingerprints
            if fingerprint != features.fingerprint
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SanityPolicy:
    """How much may be wrong with the data of a training."""

    duplicates: float = 0.001  # share of examples that repeat another's request and item
    not_numbers: float = 0.5  # share of NaN in one scalar feature
    most_events: int = 10_000  # on one item in one window: more is no behaviour


def take_snapshot(root: Place) -> Snapshot:
    """The examples of an archive as they stand now."""
    digest = hashlib.sha256()
    names, found = [], []
    newest = (
        (kind, manifest)
        for kind in KINDS
        for _, manifest in sorted(archive.manifests(root, kind).items())
    )
    for kind, manifest in newest:
        names.append(f"{kind}-{manifest.partition}-{manifest.sequence}")
        for file in manifest.files:
            path = f"{kind}/{file.path}"
            digest.update(f"{manifest.partition} {path} {file.sha256}\n".encode())
            found.append(
                SnapshotFile(
                    path=path,
                    records=file.records,
                    size_bytes=file.size_bytes,
                    sha256=file.sha256,
                    fingerprint=file.fingerprint,
                )
            )
    return Snapshot(
        id=digest.hexdigest()[:16],
        root=root,
        manifests=tuple(names),
        files=tuple(found),
    )


def file_problems(snapshot: Snapshot, features: FeatureSet) -> Iterator[str]:
    """What is wrong with the files themselves, before they are parsed."""
    if not snapshot.records:
        yield f"{snapshot.root}: no examples; write some by `millstream features backfill`"
    for fingerprint in snapshot.fingerprints:
        try:
            lacking(snapshot.root, fingerprint, features)
        except Refused as error:
            yield str(error)
    for file in snapshot.files:
        yield from archive_problems(snapshot.root / file.path, file.size_bytes, file.sha256)


def defaulted(snapshot: Snapshot, features: FeatureSet) -> Counter[str]:
    """How many examples get each feature by default, since they are older than it."""
    found: Counter[str] = Counter()
    names = snapshot.lacking(features)
    for file in snapshot.files:
        for name in names.get(file.fingerprint, ()):
            found[name] += file.records
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which choices to read: event time in [from_ms, until_ms), the newest `most` of them."""

    from_ms: int
    until_ms: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """
    After a change: all choices since then, and about `most` of those before, chosen by chance.

    A replayed sample keeps what was learned before from being forgotten (experience replay, Rolnick
    et al. 2019) at a cost that does not grow with history.
    """

    recent_from_ms: int
    most: int
    seed: int = 0


def read(
    snapshot: Snapshot, features: FeatureSet, span: Span, replay: Replay | None = None
) -> Examples:
    """
    The choices of a span, in order of time. The same arguments give the same examples.

    What was shown and not chosen is left out: the softmax over the whole catalogue needs no
    negatives, and there are ten times as many.

    Raises:
        Refused: a record does not parse under the feature set.
    """
    from features.tfrecord import parsed  # noqa: PLC0415 - loads TensorFlow

    parts = []
    others, wanted = snapshot.lacking(features), _wanted(snapshot, span, replay)
    files = [
        ExampleFile(path=snapshot.root / f.path, records=f.records, sha256=f.sha256)
        for f in snapshot.files
    ]
    with closing(ExampleReader(files, ReadPolicy())) as reader:
        while records := _taken(reader):
            batch = parsed(records, features, wanted=wanted, lacking=others)
            parts.append(_examples(batch, features))
    if not parts:
        return _nothing(features)
    found = concat(parts)
    order = np.lexsort((found.position, found.events_offset, found.event_time))[-span.most :]
    return take(found, order)


def _wanted(
    snapshot: Snapshot, span: Span, replay: Replay | None
) -> Callable[[Array, Array], Array]:
    targets = [int(t) for t in TARGETS]
    random = np.random.default_rng(replay.seed if replay else 0)
    share = min(1.0, replay.most / max(1, snapshot.records)) if replay else 1.0
    recent_from_ms = replay.recent_from_ms if replay else 0

    def wanted(labels: Array, event_time: Array) -> Array:
        inside = (event_time >= span.from_ms) & (event_time < span.until_ms)
        chosen = (labels[:, targets] > 0).any(axis=1)
        drawn = random.random(len(event_time)) < share
        return np.asarray(inside & chosen & (drawn | (event_time >= recent_from_ms)))

    return wanted


def _taken(reader: ExampleReader) -> list[bytes]:
    try:
        return reader.take(_BATCH)
    except ArchiveUnavailable as error:
        raise Refused(f"the archive cannot be read: {error}") from error


def problems(
    examples: Examples, features: FeatureSet, policy: SanityPolicy, until_ms: int
) -> Iterator[str]:
    """What is wrong with the examples; nothing when they can be learned from."""
    if not len(examples):
        yield "nobody chose anything in the range of time: labels are missing"
        return
    if (examples.labels < 0).any() or (examples.labels > policy.most_events).any():
        yield f"labels outside 0 .. {policy.most_events}"
    if int(examples.event_time.min()) <= 0 or int(examples.event_time.max()) > until_ms:
        yield f"event times outside 1 .. {until_ms}"
    if (examples.item_hash == 0).any():
        yield "examples without an item"
    yield from _duplicates(examples, policy)
    yield from _numbers(examples, features, policy)


def _duplicates(examples: Examples, policy: SanityPolicy) -> Iterator[str]:
    pairs = set(zip(examples.request_id, examples.item_hash.tolist(), strict=True))
    share = 1 - len(pairs) / len(examples)
    if share > policy.duplicates:
        yield f"{share:.2%} of the examples repeat another's request and item"


def _numbers(examples: Examples, features: FeatureSet, policy: SanityPolicy) -> Iterator[str]:
    """Infinite numbers anywhere; too many that are none in features with one value."""
    for level, floats in (
        (Level.USER, examples.users.floats),
        (Level.ITEM, examples.items.floats),
    ):
        lengths = {f.name: f.length for f in features.of(level)}
        for name, part in features.slices(level, "float32").items():
            values = floats[:, part]
            if np.isinf(values).any():
                yield f"{name}: infinite in {int(np.isinf(values).any(axis=1).sum())} examples"
            missing = float(np.isnan(values).mean())
            if lengths[name] == 1 and missing > policy.not_numbers:
                yield f"{name}: {missing:.1%} are not numbers"


def _examples(batch: Mapping[str, Array], features: FeatureSet) -> Examples:
    """One parsed batch as columns."""

    def texts(name: str) -> list[str]:
        return [value.decode() for value in batch[name].tolist()]

    return Examples(
        request_id=texts("request_id"),
        user_id=texts("user_id"),
        item_id=texts("item_id"),
        source=texts("source"),
        surface=texts("surface"),
        fingerprint=features.fingerprint,
        position=batch["position"],
        event_time=batch["event_time"],
        model_version=batch["model_version"],
        events_partition=batch["events_partition"],
        events_offset=batch["events_offset"],
        item_hash=batch["item_hash"].view(np.uint64),
        users=UserFeatures(
            longs=_packed(batch, features, Level.USER, "int64"),
            floats=_packed(batch, features, Level.USER, "float32"),
        ),
        items=ItemFeatures(
            longs=_packed(batch, features, Level.ITEM, "int64"),
            floats=_packed(batch, features, Level.ITEM, "float32"),
        ),
        labels=batch[LABELS],
    )


def _packed(batch: Mapping[str, Array], features: FeatureSet, level: Level, dtype: str) -> Array:
    n = len(batch["event_time"])
    columns = [batch[f.name].reshape(n, f.length) for f in features.of(level, dtype)]
    return np.concatenate([np.zeros((n, 0), dtype), *columns], axis=1)


def _nothing(features: FeatureSet) -> Examples:
    none = np.zeros(0, np.int64)
    batch: dict[str, Array] = dict.fromkeys((*TEXTS, *NUMBERS), none)
    batch[LABELS] = np.zeros((0, LABEL_COUNT), np.int64)
    for level in Level:
        for f in features.of(level):
            batch[f.name] = np.zeros((0, f.length), f.dtype)
    return _examples(batch, features)
