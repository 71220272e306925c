"""
The fold, one event at a time: what `features.fold` must equal, and its way out for rare rows.

For each event in log order:

1. its id is in the row's ring: a duplicate, nothing else happens;
2. it is an erasure: everything but the ring is forgotten;
3. it is more than the lifetime newer than the row's newest event: the row starts afresh, ring too;
4. its id is pushed; the ring keeps the newest `ring_length`;
5. it is more than the horizon older than the row's newest event: late, and dropped;
6. otherwise it is folded: history, tiles, first and last seen, profile.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np

from features.declare import DAY_MS, HOUR_MS, RowPolicy
from features.event_columns import EventColumns, Folded
from features.hashing import hash_id
from features.ragged import splits_of
from features.rows import Rows, ring_ids
from features.tiles import DAY, HOUR, MAX_COUNT, TOTAL, tile_key


class Fate(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    LATE = "late"
    ERASED = "erased"
    RESTARTED = "restarted"  # accepted, into a row that started afresh


class _Event(NamedTuple):
    event_id: int
    item: int
    event_type: int
    time_ms: int
    value: float
    erase: bool
    profile: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class _Row:
    first_ms: int = 0
    last_ms: int = 0
    history: list[tuple[int, int, int, float]] = field(default_factory=list)
    ring: list[int] = field(default_factory=list)
    tiles: dict[int, int] = field(default_factory=dict)
    profile: dict[int, int] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget everything but the ring."""
        self.first_ms = self.last_ms = 0
        self.history, self.tiles, self.profile = [], {}, {}

    def push(self, event_id: int, limit: int) -> None:
        self.ring.append(event_id)
        del self.ring[:-limit]


def fold_one_by_one(rows: Rows, events: EventColumns, policy: RowPolicy) -> Folded:
    """The rows after the events, by the rules above, literally."""
    unpacked = _unpacked(rows)
    declared = {hash_id(name) for name in policy.attributes}
    fates = []
    for row, event in zip(events.row.tolist(), _events(events, declared), strict=True):
        fates.append(_step(unpacked[row], event, policy))
    return Folded(
        rows=_packed(unpacked),
        accepted=np.array([f in (Fate.ACCEPTED, Fate.RESTARTED) for f in fates], np.bool_),
        duplicate=np.array([f is Fate.DUPLICATE for f in fates], np.bool_),
        late=np.array([f is Fate.LATE for f in fates], np.bool_),
        restarted=np.array([f is Fate.RESTARTED for f in fates], np.bool_),
    )


def _step(row: _Row, event: _Event, policy: RowPolicy) -> Fate:
    if event.event_id in row.ring:
        return Fate.DUPLICATE
    fate = Fate.ACCEPTED
    if event.erase:
        row.reset()
        fate = Fate.ERASED
    elif row.first_ms and event.time_ms > row.last_ms + policy.lifetime_ms:
        row.reset()
        row.ring.clear()
        fate = Fate.RESTARTED
    elif event.time_ms < row.last_ms - policy.horizon_ms:
        fate = Fate.LATE
    row.push(event.event_id, policy.ring_length)
    if fate in (Fate.ACCEPTED, Fate.RESTARTED):
        _fold_in(row, event, policy)
    return fate


def _fold_in(row: _Row, event: _Event, policy: RowPolicy) -> None:
    if event.item and event.event_type in policy.history_types:
        row.history.append((event.item, event.time_ms, event.event_type, event.value))
        del row.history[: -policy.history_length]
    moved_on = event.time_ms // HOUR_MS > row.last_ms // HOUR_MS
    row.first_ms = min(row.first_ms or event.time_ms, event.time_ms)
    row.last_ms = max(row.last_ms, event.time_ms)
    for span, bucket in (
        (TOTAL, 0),
        (DAY, event.time_ms // DAY_MS),
        (HOUR, event.time_ms // HOUR_MS),
    ):
        if _is_kept(span, bucket, row.last_ms, policy):
            key = tile_key(span, bucket, event.event_type)
            row.tiles[key] = min(row.tiles.get(key, 0) + 1, MAX_COUNT)
    if moved_on:
        row.tiles = {
            key: count
            for key, count in row.tiles.items()
            if _is_kept(key >> 30, key >> 4 & (2**26 - 1), row.last_ms, policy)
        }
    row.profile.update(event.profile)


def _is_kept(span: int, bucket: int, newest_ms: int, policy: RowPolicy) -> bool:
    if span == HOUR:
        return bucket > newest_ms // HOUR_MS - policy.hour_tiles
    return span == TOTAL or bucket > newest_ms // DAY_MS - policy.day_tiles


def _events(events: EventColumns, declared: set[int]) -> list[_Event]:
    profile = defaultdict(list)
    for at, name, value in zip(
        events.profile_event.tolist(),
        events.profile_name.tolist(),
        events.profile_value.tolist(),
        strict=True,
    ):
        if name in declared:
            profile[at].append((name, value))
    columns = (
        ring_ids(events.event_id).tolist(),
        events.item.tolist(),
        events.event_type.tolist(),
        events.event_time_ms.tolist(),
        events.value.tolist(),
        events.erase.tolist(),
    )
    return [
        _Event._make((*fields, tuple(profile.get(at, ()))))
        for at, fields in enumerate(zip(*columns, strict=True))
    ]


def _unpacked(rows: Rows) -> list[_Row]:
    history = list(
        zip(
            rows.history_item.tolist(),
            rows.history_time_ms.tolist(),
            rows.history_type.tolist(),
            rows.history_value.tolist(),
            strict=True,
        )
    )
    tiles = list(zip(rows.tile_key.tolist(), rows.tile_count.tolist(), strict=True))
    profile = list(zip(rows.profile_name.tolist(), rows.profile_value.tolist(), strict=True))
    ring = rows.ring.tolist()
    h, r, t, p = (
        splits.tolist()
        for splits in (
            rows.history_splits,
            rows.ring_splits,
            rows.tile_splits,
            rows.profile_splits,
        )
    )
    return [
        _Row(
            first_ms=int(rows.first_seen_ms[i]),
            last_ms=int(rows.last_seen_ms[i]),
            history=history[h[i] : h[i + 1]],
            ring=ring[r[i] : r[i + 1]],
            tiles=dict(tiles[t[i] : t[i + 1]]),
            profile=dict(profile[p[i] : p[i + 1]]),
        )
        for i in range(len(rows))
    ]


def _packed(unpacked: list[_Row]) -> Rows:
    history = [entry for row in unpacked for entry in row.history]
    tiles = [entry for row in unpacked for entry in sorted(row.tiles.items())]
    profile = [entry for row in unpacked for entry in sorted(row.profile.items())]

    def splits(part: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return splits_of(np.array([len(getattr(row, part)) for row in unpacked], np.int64))

    return Rows(
        first_seen_ms=np.array([row.first_ms for row in unpacked], np.int64),
        last_seen_ms=np.array([row.last_ms for row in unpacked], np.int64),
        history_splits=splits("history"),
        history_item=np.array([item for item, *_ in history], np.uint64),
        history_time_ms=np.array([time for _, time, _, _ in history], np.int64),
        history_type=np.array([kind for _, _, kind, _ in history], np.uint8),
        history_value=np.array([value for *_, value in history], np.float32),
        ring_splits=splits("ring"),
        ring=np.array([entry for row in unpacked for entry in row.ring], np.uint32),
        tile_splits=splits("tiles"),
        tile_key=np.array([key for key, _ in tiles], np.uint32),
        tile_count=np.array([count for _, count in tiles], np.uint32),
        profile_splits=splits("profile"),
        profile_name=np.array([name for name, _ in profile], np.uint64),
        profile_value=np.array([value for _, value in profile], np.uint64),
    )
