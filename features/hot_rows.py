"""
Hot rows kept by their owner: what it wrote last need not be read again.

The owner of a partition is its only writer, so what it wrote is what stands there for as long as
the stored position is the lease's. Every read still compares the position; rows that are not kept
are read as always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from features.store import Lease, Position, RowWriter, Update, Values
from schemas.errors import MillstreamError

# 2 kB a full row: the hot rows of 60,000 users a partition of four.
MAX_BYTES = 512 * 1024 * 1024


@dataclass(slots=True)
class _Kept:
    """Values of one partition as of a lease's position, the least recently written first."""

    values: dict[str, bytes] = field(default_factory=dict)
    size_bytes: int = 0

    def put(self, values: Mapping[str, bytes], max_bytes: int) -> None:
        for key, value in values.items():
            former = self.values.pop(key, None)
            self.size_bytes += len(value) - (0 if former is None else len(former))
            self.values[key] = value
        while self.size_bytes > max_bytes:
            oldest = next(iter(self.values))
            self.size_bytes -= len(self.values.pop(oldest))


@dataclass(slots=True)
class _Partition:
    rows: _Kept = field(default_factory=_Kept)
    partials: _Kept = field(default_factory=_Kept)


class HotRows:
    """
    A RowWriter before another one. Anything but success empties what is kept of the partition.

    Implementations of RowWriter pass `tests.contracts.store.StoreContract`; this one too.
    """

    def __init__(self, store: RowWriter, max_bytes: int = MAX_BYTES) -> None:
        """`max_bytes`: of all values kept; half of it for rows, half for partials."""
        self._store = store
        self._max_bytes = max_bytes
        self._partitions: dict[int, _Partition] = {}

    def claim(self, partition: int, start: Position | None) -> Lease:
        self._partitions.pop(partition, None)
        return self._store.claim(partition, start)

    def read(self, lease: Lease, users: Sequence[str], items: Sequence[str]) -> Values:
        held = self._partitions.get(lease.partition, _Partition())
        rows, partials = held.rows.values, held.partials.values
        missing_users = [user for user in users if user not in rows]
        missing_items = [item for item in items if item not in partials]
        try:
            found = self._store.read(lease, missing_users, missing_items)
        except MillstreamError:
            self._partitions.pop(lease.partition, None)
            raise
        read_rows = dict(zip(missing_users, found.rows, strict=True))
        read_partials = dict(zip(missing_items, found.partials, strict=True))
        return Values(
            rows=[rows[u] if u in rows else read_rows[u] for u in users],
            partials=[partials[i] if i in partials else read_partials[i] for i in items],
        )

    def write(self, lease: Lease, update: Update) -> Lease:
        try:
            moved = self._store.write(lease, update)
        except BaseException:
            self._partitions.pop(lease.partition, None)
            raise
        held = self._partitions.setdefault(lease.partition, _Partition())
        share = self._max_bytes // (2 * len(self._partitions))
        held.rows.put(update.rows, share)
        held.partials.put(update.partials, share)
        return moved

    def clear(self, lease: Lease, *, position: bool = False) -> int:
        self._partitions.pop(lease.partition, None)
        return self._store.clear(lease, position=position)
