"""
The feature store's seam: rows and the position they stand for, changed together or not at all.

The caller sees opaque bytes; `features.rows` and `features.items` alone know what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """
    How far a partition has been folded, by whom, and of which log.

    `origins` says it of the misplaced events that other partitions sent here: they come in the
    order of their first place, so a repeat (a sender that was killed) is known for certain.
    `counts` is what became of all records before `next_offset`: exact, as the rows are.
    """

    cluster_id: str
    topic_id: str
    epoch: int  # grows by one with every claim: older owners are fenced
    next_offset: int
    origins: tuple[tuple[int, int], ...] = ()  # (origin partition, next offset of it), sorted
    counts: tuple[tuple[str, int], ...] = ()  # sorted; names of `features.worker.Counts`

    def at(self, next_offset: int) -> Position:
        """The same lease, further along."""
        return replace(self, next_offset=next_offset)

    def after(self, update: Update) -> Position:
        """The same lease, once the update is written."""
        return replace(
            self,
            next_offset=update.next_offset,
            origins=self.origins if update.origins is None else update.origins,
            counts=self.counts if update.counts is None else update.counts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write one partition, from exactly this position."""

    partition: int
    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Stored bytes in the order of the keys asked for; None where there is no row."""

    rows: Sequence[bytes | None]
    partials: Sequence[bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one batch changes: absolute rows by user id, absolute partials by item id."""

    rows: Mapping[str, bytes]
    partials: Mapping[str, bytes]
    next_offset: int
    origins: tuple[tuple[int, int], ...] | None = None  # None: as before
    counts: tuple[tuple[str, int], ...] | None = None  # None: as before


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Some rows (or partials) of one partition, read together with the position they stand at."""

    position: Position | None
    rows: Sequence[bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpublished:
    """Partials that changed and are not yet on `item-features`, and the mark that settles them."""

    partials: Mapping[str, bytes]
    mark: int  # next offset of the newest change among them
    events_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of one partition."""

    users: frozenset[str]
    items: frozenset[str]


class RowWriter(Protocol):
    """
    One partition's writer. Owned by one worker; `read` then `write`, in turn.

    Implementations must pass `tests.contracts.store.StoreContract`.
    """

    def claim(self, partition: int, start: Position | None) -> Lease:
        """
        Take a partition over, fencing its former owner (epoch + 1).

        With `start`, a partition without a position begins there (only if still absent), with the
        epoch that `start` names; a stored position goes before `start`. Without `start`, a missing
        position is an error: the rows must be rebuilt from the log.

        Raises:
            Misconfigured: no position is stored and no start was given; or the server may evict.
            PositionForeign: the stored position names another cluster or topic than `start`.
            StoreUnavailable: the store did not answer.
        """

    def read(self, lease: Lease, users: Sequence[str], items: Sequence[str]) -> Values:
        """
        Rows and partials as of the lease's position.

        Raises:
            PositionMoved: the stored position is not the lease's: discard and claim or read again.
        """

    def write(self, lease: Lease, update: Update) -> Lease:
        """
        Store rows, partials and the next position in one transaction; the lease moves on.

        Partials become unpublished in the same transaction. After an error of any kind nothing of
        the batch may be assumed: ask for the position, and read again.

        Raises:
            PositionMoved: somebody else wrote since `read`; nothing was written.
            StoreUnavailable: full, read-only, gone; nothing was acknowledged.
        """

    def clear(self, lease: Lease, *, position: bool = False) -> int:
        """
        Delete all rows, partials and unpublished marks of the partition, and return their number.

        For a partition that starts at the beginning of its log: whatever stands there is left over
        from a lost position. With `position` that goes too, last: the partition was of another log.

        Raises:
            PositionMoved: somebody else owns the partition; what was deleted is theirs to refold.
        """


class RowReader(Protocol):
    """
    Serving's side of the store. Never writes.

    Implementations must pass `tests.contracts.store.StoreContract`.
    """

    def snapshots(self, users: Mapping[int, Sequence[str]]) -> dict[int, Snapshot]:
        """Rows by partition: one consistent read a partition, all in one round trip."""

    def positions(self, partitions: Sequence[int]) -> dict[int, Position | None]:
        """Where each partition stands."""

    def partials(self, partition: int, items: Sequence[str]) -> Snapshot:
        """Partials of one partition, in one consistent read."""

    def keys(self, partition: int) -> Keys:
        """
        Who has a row and what has a partial: for comparison with a rebuild, not for serving.

        What was there from before the call until its end is named, whatever else changes.
        """


class PartialOutbox(Protocol):
    """
    Partials on their way to `item-features`.

    Implementations must pass `tests.contracts.store.StoreContract`.
    """

    def unpublished(self, partition: int, limit: int) -> Unpublished:
        """Up to `limit` changed partials, with their present bytes."""

    def settle(self, partition: int, mark: int, items: Sequence[str]) -> None:
        """Forget those of `items` that have not changed since `mark`."""
