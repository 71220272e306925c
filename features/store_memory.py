"""The feature store in memory: the same promises as Redis, for tests, rebuilds and audits."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from features.store import Keys, Lease, Position, Snapshot, Unpublished, Update, Values
from schemas.errors import Misconfigured, PositionForeign, PositionMoved


@dataclass(slots=True)
class _Partition:
    position: Position | None = None
    rows: dict[str, bytes] = field(default_factory=dict)
    partials: dict[str, bytes] = field(default_factory=dict)
    unpublished: dict[str, int] = field(default_factory=dict)  # item -> next offset of its change


class MemoryStore:
    """
    Rows, partials and positions of all partitions in dictionaries; safe to share between threads.

    >>> store = MemoryStore()
    >>> start = Position(cluster_id="c", topic_id="t", epoch=1, next_offset=0)
    >>> lease = store.claim(0, start)
    >>> lease = store.write(lease, Update(rows={"ann": b"row"}, partials={}, next_offset=7))
    >>> store.snapshots({0: ["ann", "bob"]})[0].rows
    (b'row', None)
    """

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._lock = threading.RLock()

    def claim(self, partition: int, start: Position | None) -> Lease:
        with self._lock:
            held = self._of(partition)
            held.position = claimed(partition, held.position, start)
            return Lease(partition=partition, position=held.position)

    def read(self, lease: Lease, users: Sequence[str], items: Sequence[str]) -> Values:
        with self._lock:
            held = self._owned(lease)
            return Values(
                rows=tuple(map(held.rows.get, users)), partials=tuple(map(held.partials.get, items))
            )

    def write(self, lease: Lease, update: Update) -> Lease:
        with self._lock:
            held = self._owned(lease)
            held.rows.update(update.rows)
            held.partials.update(update.partials)
            held.unpublished.update(dict.fromkeys(update.partials, update.next_offset))
            held.position = lease.position.after(update)
            return Lease(partition=lease.partition, position=held.position)

    def clear(self, lease: Lease, *, position: bool = False) -> int:
        with self._lock:
            held = self._owned(lease)
            count = len(held.rows) + len(held.partials)
            kept = None if position else held.position
            self._partitions[lease.partition] = _Partition(position=kept)
            return count

    def snapshots(self, users: Mapping[int, Sequence[str]]) -> dict[int, Snapshot]:
        with self._lock:
            return {
                partition: Snapshot(
                    position=self._of(partition).position,
                    rows=tuple(map(self._of(partition).rows.get, wanted)),
                )
                for partition, wanted in users.items()
            }

    def positions(self, partitions: Sequence[int]) -> dict[int, Position | None]:
        with self._lock:
            return {partition: self._of(partition).position for partition in partitions}

    def partials(self, partition: int, items: Sequence[str]) -> Snapshot:
        with self._lock:
            held = self._of(partition)
            return Snapshot(position=held.position, rows=tuple(map(held.partials.get, items)))

    def keys(self, partition: int) -> Keys:
        with self._lock:
            held = self._of(partition)
            return Keys(users=frozenset(held.rows), items=frozenset(held.partials))

    def unpublished(self, partition: int, limit: int) -> Unpublished:
        with self._lock:
            held = self._of(partition)
            oldest = sorted(held.unpublished.items(), key=lambda pair: pair[1])[:limit]
            return Unpublished(
                partials={item: held.partials[item] for item, _ in oldest},
                mark=oldest[-1][1] if oldest else 0,
                events_offset=held.position.next_offset if held.position else 0,
            )

    def settle(self, partition: int, mark: int, items: Sequence[str]) -> None:
        with self._lock:
            waiting = self._of(partition).unpublished
            for item in items:
                if waiting.get(item, mark + 1) <= mark:
                    del waiting[item]

    def lose(self) -> None:
        """Forget everything at once, as FLUSHALL does."""
        with self._lock:
            self._partitions.clear()

    def _of(self, partition: int) -> _Partition:
        return self._partitions.setdefault(partition, _Partition())

    def _owned(self, lease: Lease) -> _Partition:
        held = self._of(lease.partition)
        check_unmoved(lease, held.position)
        return held


def claimed(partition: int, stored: Position | None, start: Position | None) -> Position:
    """
    The position of whoever claims a partition that stands at `stored`.

    Raises:
        Misconfigured: nothing is stored and no start was given.
        PositionForeign: what is stored counts the offsets of another log.
    """
    if stored is None:
        if start is None:
            raise Misconfigured(
                f"the store holds no position of partition {partition}: its rows are lost or were "
                f"never folded; run `millstream features rebuild --partition {partition}`"
            )
        return start
    if start and (start.cluster_id, start.topic_id) != (stored.cluster_id, stored.topic_id):
        raise PositionForeign(
            f"partition {partition} of the store was folded from cluster {stored.cluster_id}, "
            f"topic id {stored.topic_id}, but this log is cluster {start.cluster_id}, topic id "
            f"{start.topic_id}; to fold this log instead, run "
            f"`millstream features rebuild --partition {partition}`"
        )
    return replace(stored, epoch=stored.epoch + 1)


def check_unmoved(lease: Lease, stored: Position | None) -> None:
    """Raise PositionMoved unless the stored position is the lease's own."""
    if stored != lease.position:
        raise PositionMoved(
            f"partition {lease.partition} stands at {stored}, but this worker holds "
            f"{lease.position}"
        )
