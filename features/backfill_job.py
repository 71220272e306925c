"""Backfill from the log: read a range of user-events and the catalogue, write the examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from features import archive
from features.archive import Manifest
from features.backfill import KIND, SUFFIX, BackfillPolicy, Destination, Progress, backfill
from features.declare import FeatureSet, declared
from features.disk import Place
from features.history import HistoryItems, HistoryReader, read_history
from ingest.batches import part
from ingest.log import Log, RecordBatch, Source, TopicPartition
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.errors import BrokerUnavailable, Rejected
from schemas.events import Item, UserEvent
from schemas.registry import Registry

_MAX_RECORDS: Final = 10_000
_POLL_S: Final = 1.0
# Polls without a record before the broker counts as gone.
_PATIENCE: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillParts:
    """What a backfill works with."""

    log: Log
    source: Source
    registry: Registry
    topics: Topics
    features: FeatureSet
    root: Place


def backfill_log(
    parts: BackfillParts,
    policy: BackfillPolicy,
    progress: Progress = lambda done, of: None,
    until: Mapping[int, int] | None = None,
    *,
    onward: bool = False,
) -> Manifest:
    """
    Examples of all user-events that the log holds now, or before the offsets `until`.

    Args:
        onward: go on where the newest backfill (by an equal policy) ended, and keep its examples.

    Raises:
        BrokerUnavailable: the log could not be read to its end.
        PositionMoved: another backfill has begun.
    """
    topic = parts.topics.user_events
    first = Manifest(
        kind=KIND,
        partition=0,  # one chain for all partitions: they are put in one order
        sequence=0,
        generation=0,
        position={},
        log={"cluster": parts.log.cluster_id(), "user-events": parts.log.topic_id(topic)},
        fingerprint=parts.features.fingerprint,
    )
    writer = archive.claim(parts.root, first, SUFFIX, declaration=declared(parts.features))
    try:
        reader = HistoryReader(
            ColumnReader(parts.registry, UserEvent),
            parts.log.partitions(topic),
            parts.features.row.future_ms,
        )
        history = read_history(read_range(parts.source, parts.log, topic, until), reader)
        items = HistoryItems(parts.features.fingerprint, read_catalogue(parts))
        if onward:
            policy = replace(policy, since=_ends(writer.manifest))
        to = Destination(writer=writer, progress=progress)
        return backfill(history, items, parts.features, policy, to)
    finally:
        writer.close()


def _ends(manifest: Manifest) -> tuple[tuple[int, int], ...]:
    """Where an earlier backfill ended, by partition."""
    ends = ((int(name.rsplit("/", 1)[1]), end) for name, end in manifest.position.items())
    return tuple(sorted(ends))


def read_range(
    source: Source, log: Log, topic: str, until: Mapping[int, int] | None = None
) -> Iterator[RecordBatch]:
    """
    Everything that a topic holds now, or before the offsets `until`, batch by batch.

    Raises:
        BrokerUnavailable: nothing more came, although there should be.
    """
    bounds = log.bounds(topic)
    ends = {p: min(end, (until or {}).get(p, end)) for p, (_, end) in bounds.items()}
    at = {TopicPartition(topic, p): start for p, (start, _) in bounds.items() if start < ends[p]}
    yield from read_to_ends(source, at, ends, _MAX_RECORDS)


def read_to_ends(
    source: Source,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[int, int],
    max_records: int,
) -> Iterator[RecordBatch]:
    """
    The records of some partitions of a topic from their starts to before their ends.

    Raises:
        BrokerUnavailable: nothing more came, although there should be.
    """
    at = dict(starts)
    source.assign(at)
    silent = 0
    while left := {tp: n for tp, n in at.items() if n < ends[tp.partition]}:
        batch = source.poll(max_records, _POLL_S)
        if batch is None:
            silent += 1
            if silent == _PATIENCE:
                raise BrokerUnavailable(f"nothing came from {left}, ends are {dict(ends)}")
            continue
        silent = 0
        tp = TopicPartition(batch.topic, batch.partition)
        if at[tp] < ends[tp.partition]:
            at[tp] = batch.next_offset
            yield _before(batch, ends[tp.partition])


def read_catalogue(parts: BackfillParts) -> list[Item]:
    """The newest version of every item that can be read; one that was deleted is left out."""
    codec = Codec(parts.registry, Item, parts.topics.item_updates)
    found: dict[bytes, Item] = {}
    for batch in read_range(parts.source, parts.log, parts.topics.item_updates):
        for key, value in zip(batch.keys, batch.values, strict=True):
            if key is None:
                continue
            found.pop(key, None)
            if value is None:
                continue
            try:
                found[key] = codec.decode(value)
            except Rejected:
                continue  # the worker of item-updates has reported it
    return list(found.values())


def _before(batch: RecordBatch, end: int) -> RecordBatch:
    """The part of a batch before an offset."""
    if batch.next_offset <= end:
        return batch
    return part(batch, 0, int((batch.offsets < end).sum()))
