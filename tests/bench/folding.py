"""The fold alone: decoded columns and rows in memory, no Kafka and no store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import rows
from features.catalog import CATALOG
from features.event_columns import EventColumns
from features.fold import fold, fold_one_by_one
from features.hashing import hash_ids
from ingest.placement import partitions_of
from schemas.columns import ColumnReader
from schemas.events import EventType, UserEvent
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, chunks, shares
from tests.bench.world import PARTITIONS, Sent, World, by_partition

BATCH = 8_192
MOST = 600_000
EXACT_BATCHES = 4  # of the sequential reference, which is slow
COLUMNS = ("event_id", "item_id", "event_type", "event_time", "value", "profile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch of a partition, ready to be folded: m users, n events."""

    users: list[bytes]  # [m]
    events: EventColumns  # [n]


def run(world: World) -> Iterator[Figure]:
    """Fold batches one after the other, each on the rows that the last ones left."""
    batches = _batches(world)
    total = sum(len(batch.events) for batch in batches)
    taken = {"rows decode": 0.0, "fold": 0.0, "rows encode": 0.0}
    stored: dict[bytes, bytes] = {}
    exact: list[tuple[int, float]] = []
    fingerprint, policy = CATALOG.fingerprint, CATALOG.row
    touched = 0
    for at, batch in enumerate(batches):
        given = [stored.get(user) for user in batch.users]
        marks = [CLOCK.monotonic_s()]
        decoded = rows.decode(given, fingerprint).rows
        marks.append(CLOCK.monotonic_s())
        folded = fold(decoded, batch.events, policy)
        marks.append(CLOCK.monotonic_s())
        encoded = rows.encode(folded.rows, fingerprint)
        marks.append(CLOCK.monotonic_s())
        stored.update(zip(batch.users, encoded, strict=True))
        touched += len(batch.users)
        for name, spent_s in zip(taken, np.diff(marks).tolist(), strict=True):
            taken[name] += spent_s
        if at % max(1, len(batches) // EXACT_BATCHES) == 0:
            start_s = CLOCK.monotonic_s()
            fold_one_by_one(decoded, batch.events, policy)
            exact.append((len(batch.events), CLOCK.monotonic_s() - start_s))
    peer = sum(n for n, _ in exact) / sum(s for _, s in exact)
    detail: dict[str, Any] = {
        "events": total,
        "rows_per_batch": round(touched / len(batches)),
        "row_bytes": round(float(np.mean([len(row) for row in stored.values()]))),
        "stages": shares(taken),
    }
    yield figure(
        "fold alone, rows in memory",
        total / taken["fold"],
        "events/s",
        peer=("fold_one_by_one, the sequential reference", peer),
        **detail,
    )
    yield figure(
        "fold with rows decoded and encoded",
        total / sum(taken.values()),
        "events/s",
        limits={"the fold alone": total / taken["fold"]},
        rows_decoded_per_s=round(touched / taken["rows decode"]),
        rows_encoded_per_s=round(touched / taken["rows encode"]),
        **detail,
    )


def _batches(world: World) -> list[Batch]:
    """What a worker would fold of the last records, partition by partition."""
    records = [r for r in world.records[-MOST:] if r.value is not None]
    parts = by_partition(records, lambda keys: partitions_of(keys, PARTITIONS))
    reader = ColumnReader(world.registry, UserEvent)
    cut = [chunks(part, BATCH) for part in parts]
    # In turn, as they come from a broker.
    turns = range(max(map(len, cut)))
    ordered = [part[turn] for turn in turns for part in cut if turn < len(part)]
    return [_batch(reader, part) for part in ordered]


def _batch(reader: ColumnReader[UserEvent], records: Sequence[Sent]) -> Batch:
    frame = reader.read([r.value for r in records], COLUMNS).frame
    places: dict[bytes, int] = {}
    row = [places.setdefault(r.key, len(places)) for r in records]
    at, names, values = _profiles(frame)
    events = EventColumns(
        row=np.array(row, np.int64),
        event_id=hash_ids(frame["event_id"].to_list()),
        item=hash_ids(frame["item_id"].to_list()),
        event_type=frame["event_type"].to_numpy().astype(np.uint8),
        event_time_ms=frame["event_time"].to_numpy(),
        value=frame["value"].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
        erase=np.zeros(len(frame), np.bool_),
        profile_event=at,
        profile_name=names,
        profile_value=values,
    )
    return Batch(users=list(places), events=events)


def _profiles(
    frame: pl.DataFrame,
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
    found = [
        (at, one["name"], one["value"])
        for at, kind in enumerate(frame["event_type"].to_list())
        if kind == EventType.PROFILE
        for one in frame["profile"][at]
    ]
    at, names, values = zip(*found, strict=True) if found else ((), (), ())
    return np.array(at, np.int64), hash_ids(list(names)), hash_ids(list(values))
