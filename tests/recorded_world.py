"""A story on a log in memory, its recordings, and what streaming makes of it."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from features import archive
from features.backfill import KIND, BackfillPolicy
from features.backfill_job import read_to_ends
from features.batch_examples import ExampleParts
from features.batch_fold import IntoFiles
from features.batch_job import Input, Work, fold_rows, write_examples
from features.batch_reports import Reports
from features.catalog import CATALOG
from features.outlets import NoOutlets
from features.position import decoded
from features.recording import HeldRecording, Origin
from features.split import Split, SplitParts
from features.store import Position
from features.store_memory import MemoryStore
from features.worker import FeatureWorker, FoldRules
from ingest.clock import ManualClock
from ingest.log import TopicPartition
from ingest.memory import MemoryLog, MemorySource
from schemas.columns import ColumnReader
from schemas.events import Item, UserEvent
from schemas.registry import MemoryRegistry
from tests.past import ITEMS, TOPIC

# (partition, "u" or "i", key) -> bytes; (partition, "position", "") -> the position without epoch
Contents = dict[tuple[int, str, str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opens:
    """Implements Opening over parts in memory, for runs within this process."""

    known: MemoryRegistry
    rows: MemoryStore | None = None

    def registry(self) -> MemoryRegistry:
        return self.known

    def store(self) -> _Kept:
        assert self.rows is not None
        return _Kept(self.rows)


class _Kept:
    """A store that outlives its connection."""

    def __init__(self, store: MemoryStore) -> None:
        for name in ("claim", "read", "write", "clear"):
            setattr(self, name, getattr(store, name))
        for name in ("snapshots", "positions", "partials", "keys"):
            setattr(self, name, getattr(store, name))

    def close(self) -> None:
        pass


def recorded(
    log: MemoryLog,
    batch: int = 1_000,
    until: Mapping[int, int] | None = None,
) -> HeldRecording:
    """What the log holds now, or before the offsets `until`, in batches of so many records."""
    bounds = {
        p: (first, (until or {}).get(p, end)) for p, (first, end) in log.bounds(TOPIC).items()
    }
    held = {
        p: list(read_to_ends(MemorySource(log), {TopicPartition(TOPIC, p): first}, {p: end}, batch))
        for p, (first, end) in bounds.items()
    }
    return HeldRecording(
        origin=Origin(
            topic=TOPIC,
            cluster_id=log.cluster_id(),
            topic_id=log.topic_id(TOPIC),
            partitions=log.partitions(TOPIC),
            bounds=bounds,
        ),
        held=held,
    )


def streamed(
    log: MemoryLog, registry: MemoryRegistry, store: MemoryStore | None = None, batch: int = 50
) -> MemoryStore:
    """The log folded as the streaming job does, some records at a time."""
    store = MemoryStore() if store is None else store
    partitions = log.partitions(TOPIC)
    source = MemorySource(log)
    rules = FoldRules(features=CATALOG, partitions=partitions)
    split = Split(
        SplitParts(
            topic=TOPIC,
            partitions=tuple(range(partitions)),
            source=source,
            log=log,
            writer=store,
            reader=store,
            worker=FeatureWorker(store, ColumnReader(registry, UserEvent), NoOutlets(), rules),
            clock=ManualClock(),
        )
    )
    split.open()
    while (found := source.poll(batch, 0.0)) is not None:
        split.handle([found])
    return store


def contents(store: MemoryStore, partitions: int) -> Contents:
    found: Contents = {}
    for p in range(partitions):
        keys = store.keys(p)
        users, items = sorted(keys.users), sorted(keys.items)
        rows = store.snapshots({p: users})[p].rows
        partials = store.partials(p, items).rows
        found |= {(p, "u", user): row for user, row in zip(users, rows, strict=True)}
        found |= {(p, "i", item): part for item, part in zip(items, partials, strict=True)}
        found[p, "position", ""] = without_epoch(store.positions([p])[p])
    return found


def without_epoch(position: Position | None) -> object:
    """What does not depend on how often a partition was claimed."""
    return position and (position.next_offset, position.origins, position.counts)


def in_files(folder: Path) -> Contents:
    """What IntoFiles wrote."""
    found: Contents = {}
    for path in folder.glob("position-*.json"):
        p = int(path.stem.split("-")[1])
        rows = pl.read_parquet(folder / f"rows-{p}.parquet")
        partials = pl.read_parquet(folder / f"partials-{p}.parquet")
        found |= {(p, "u", user): row for user, row in rows.iter_rows()}
        found |= {(p, "i", item): part for item, part in partials.iter_rows()}
        found[p, "position", ""] = without_epoch(decoded(path.read_bytes()))
    return found


def folded(
    given: Input, registry: MemoryRegistry, folder: Path, work: Work | None = None
) -> Contents:
    """What a backfill of this input gives."""
    target = IntoFiles(features=CATALOG, opening=Opens(known=registry), folder=folder / "rows")
    fold_rows(given, target, work or Work(), Reports(folder=folder / "reports"))
    return in_files(folder / "rows")


def exampled(
    given: Input,
    registry: MemoryRegistry,
    folder: Path,
    policy: BackfillPolicy,
    work: Work | None = None,
) -> list[bytes]:
    """The records of the examples that a backfill of this input writes, in their order."""
    parts = ExampleParts(
        features=CATALOG,
        opening=Opens(known=registry),
        catalogue=Catalogue(),
        policy=policy,
        reports=Reports(folder=folder / "reports"),
        scratch=folder / "scratch",
    )
    manifest = write_examples(given, parts, work or Work(), folder)
    found = in_archive(folder)
    assert len(found) == manifest.records
    return found


class Catalogue:
    """The story's items."""

    def __call__(self) -> list[Item]:
        return ITEMS


def in_archive(root: Path, kind: str = KIND) -> list[bytes]:
    """The records of an archive's TFRecord files, in their order."""
    found = []
    for path in archive.files(root, kind):
        data, at = gzip.decompress(path.read_bytes()), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(data[at + 12 : at + 12 + length])
            at += 16 + length
    return found
