"""
User-events that lie in another partition than their key's, and the header of those sent on.

librdkafka's default partitioner is not Kafka's: its producers scatter a user's events. The feature
worker produces such an event again where it belongs, with its origin in a header; join, monitor and
archive skip the misplaced original and take the copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ingest.log import Outgoing, RecordBatch
from ingest.origin import ORIGIN_HEADER, first_place, origin_of
from ingest.placement import partitions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyGroups:
    """The distinct keys of a batch, and which record has which."""

    keys: list[bytes]  # [u] in order of first appearance; the null key is not among them
    code: NDArray[np.int64]  # [n] index in `keys`; -1: null key


def grouped(keys: Sequence[bytes | None]) -> KeyGroups:
    """
    Distinct keys and their codes.

    >>> grouped([b"a", None, b"b", b"a"]).code.tolist()
    [0, -1, 1, 0]
    """
    # A key that is new is given the next code by C alone.
    places: defaultdict[bytes | None, int] = defaultdict(count().__next__, {None: -1})
    code = np.fromiter(map(places.__getitem__, keys), np.int64, len(keys))
    return KeyGroups(keys=[key for key in places if key is not None], code=code)


def misplaced(batch: RecordBatch, groups: KeyGroups, partitions: int) -> NDArray[np.bool_]:
    """
    [n] which records belong to another partition and have not been sent on already.

    A record that carries an origin header is taken where it lies, so nothing is sent on twice; a
    null key belongs nowhere.
    """
    wrong = np.zeros(len(groups.keys) + 1, bool)  # the last entry serves code -1
    wrong[:-1] = partitions_of(groups.keys, partitions) != batch.partition
    found = wrong[groups.code]
    for index, headers in batch.headers.items():
        if first_place(headers) is not None:
            found[index] = False
    return found


def sent_on(batch: RecordBatch, index: int) -> Outgoing:
    """A misplaced record as it is produced again: placed by its key, with its origin."""
    origin = (ORIGIN_HEADER, origin_of(batch, index))
    return Outgoing(
        topic=batch.topic,
        key=batch.keys[index],
        value=batch.values[index],
        timestamp_ms=int(batch.timestamps_ms[index]),
        headers=(*batch.headers.get(index, ()), origin),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """The copies in a batch: those that came before, and how far their origins have come now."""

    repeated: NDArray[np.int64]  # indices
    origins: tuple[tuple[int, int], ...]


def arrivals(batch: RecordBatch, origins: tuple[tuple[int, int], ...]) -> Arrivals:
    """
    Tell repeats among the copies that other partitions sent here.

    Whoever sends on begins no later than the last sender's position and leaves nothing out, so the
    copies from one partition appear in order of origin, and a lower one is a repeat.
    """
    following = dict(origins)
    repeated = []
    for index in sorted(batch.headers):
        place = _place(first_place(batch.headers[index]), batch.topic)
        if place is None:
            continue
        partition, offset = place
        if offset < following.get(partition, 0):
            repeated.append(index)
        else:
            following[partition] = offset + 1
    return Arrivals(repeated=np.array(repeated, np.int64), origins=tuple(sorted(following.items())))


def _place(origin: bytes | None, topic: str) -> tuple[int, int] | None:
    """Partition and offset of an origin in this topic; None: nothing we wrote."""
    parts = (origin or b"").split(b"/")  # no topic's name has a slash
    if len(parts) != 3 or parts[0] != topic.encode():
        return None
    place, offset = parts[1:]
    if not (place.isdigit() and offset.isdigit()):
        return None
    return int(place), int(offset)
