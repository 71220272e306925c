"""A user's row in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from features import rows
from features.catalog import CATALOG
from features.hashing import hash_ids
from features.job import open_store
from features.tiles import window_counts
from ingest.kafka import KafkaLog, KafkaSource
from ingest.log import TopicPartition
from ingest.placement import partition_of
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.columns import ColumnReader
from schemas.errors import Misconfigured
from schemas.events import EventType, Item
from schemas.registry import RemoteRegistry

MAX_RECORDS = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCount:
    """Events of one type in the windows that end with the user's newest event."""

    event_type: str
    day: int
    month: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownEvent:
    """One interaction of the history."""

    time: str
    event_type: str
    item: str  # hash of the item's id, in hex
    title: str | None
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownUser:
    """What the store knows of a user."""

    user: str
    known: bool
    partition: int
    next_offset: int
    first_seen: str = ""
    last_seen: str = ""
    counts: tuple[ShownCount, ...] = ()
    history: tuple[ShownEvent, ...] = ()
    row_bytes: int = 0


def shown_user(settings: Settings, user: str) -> ShownUser:
    """
    A user's row, with the titles of its items where item-updates has them.

    Raises:
        Misconfigured: the row is corrupt or of another feature set.
    """
    topics = Topics(settings.topic_prefix)
    log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    partition = partition_of(user.encode(), log.partitions(topics.user_events))
    store = open_store(settings)
    try:
        snapshot = store.snapshots({partition: [user]})[partition]
    finally:
        store.close()
    stored = snapshot.rows[0]
    decoded = rows.decode([stored], CATALOG.fingerprint)
    if decoded.corrupt:
        raise Misconfigured(
            f"the row of {user} is corrupt or of another feature set; "
            f"run `millstream features rebuild --user {user}`"
        )
    row = decoded.rows
    known = bool(row.first_seen_ms[0])
    return ShownUser(
        user=user,
        known=known,
        partition=partition,
        next_offset=snapshot.position.next_offset if snapshot.position else 0,
        first_seen=_time(row.first_seen_ms[0]) if known else "",
        last_seen=_time(row.last_seen_ms[0]) if known else "",
        counts=_counts(row),
        history=_history(row, _titles(settings, log) if known else {}),
        row_bytes=len(stored or b""),
    )


def _counts(row: rows.Rows) -> tuple[ShownCount, ...]:
    now = row.last_seen_ms + 1
    found = []
    for kind in EventType:
        day = int(window_counts(row, (kind,), now, hours=24)[0])
        month = int(window_counts(row, (kind,), now, days=30)[0])
        if month:
            found.append(ShownCount(event_type=kind.name, day=day, month=month))
    return tuple(found)


def _history(row: rows.Rows, titles: dict[int, str]) -> tuple[ShownEvent, ...]:
    columns = zip(
        row.history_time_ms.tolist(),
        row.history_type.tolist(),
        row.history_item.tolist(),
        row.history_value.tolist(),
        strict=True,
    )
    return tuple(
        ShownEvent(
            time=_time(time),
            event_type=EventType(kind).name,
            item=f"{item:016x}",
            title=titles.get(item),
            value=None if math.isnan(value) else value,
        )
        for time, kind, item, value in reversed(list(columns))
    )


def _titles(settings: Settings, log: KafkaLog) -> dict[int, str]:
    """Titles by item hash, read from item-updates."""
    topic = Topics(settings.topic_prefix).item_updates
    bounds = {p: span for p, span in log.bounds(topic).items() if span[0] < span[1]}
    if not bounds:
        return {}
    reader = ColumnReader(RemoteRegistry(settings.registry_url, settings.timeout_s), Item)
    source = KafkaSource(settings.bootstrap_servers, timeout_s=settings.timeout_s)
    titles: dict[int, str] = {}
    try:
        source.assign({TopicPartition(topic, p): first for p, (first, _) in bounds.items()})
        waiting = {p: end for p, (_, end) in bounds.items()}
        while waiting:
            batch = source.poll(MAX_RECORDS, settings.timeout_s)
            if batch is None:
                break
            frame = reader.read(batch.values, columns=("item_id", "title")).frame
            hashes = hash_ids(frame["item_id"].to_list()).tolist()
            titles.update(zip(hashes, frame["title"].to_list(), strict=True))
            if batch.next_offset >= waiting.get(batch.partition, 0):
                waiting.pop(batch.partition, None)
    finally:
        source.close()
    return titles


def _time(ms: int | np.int64) -> str:
    return datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat(sep=" ", timespec="seconds")
