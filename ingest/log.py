"""
The log: what crosses between Kafka (or its in-memory twin) and everything else.

Offsets mean "next to read". A batch holds records of one partition as columns, and says from which
offset it started and which offset comes next, so that its handler can store the position together
with what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Headers = tuple[tuple[str, bytes], ...]


class TopicPartition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBatch:
    """
    Records of one partition, in offset order, as columns of equal length n.

    `next_offset` may be past the last record's offset + 1 (transaction markers and compaction leave
    holes) and a batch may be empty: then the position moves over a hole and nothing else happens.
    """

    topic: str
    partition: int
    start_offset: int  # the position the reader stood at: what the sink must have stored
    next_offset: int  # the position after this batch
    offsets: NDArray[np.int64]  # [n]
    timestamps_ms: NDArray[np.int64]  # [n] Kafka record timestamps
    keys: Sequence[bytes | None]  # [n]
    values: Sequence[bytes | None]  # [n]
    headers: Mapping[int, Headers]  # by index in the batch; most records have none

    def __post_init__(self) -> None:
        n = len(self.offsets)
        if not (len(self.timestamps_ms) == len(self.keys) == len(self.values) == n):
            raise ValueError(
                f"columns of unequal length: {n} offsets, {len(self.timestamps_ms)} timestamps, "
                f"{len(self.keys)} keys, {len(self.values)} values"
            )
        if not self.start_offset <= self.next_offset:
            raise ValueError(f"batch goes back: {self.start_offset} -> {self.next_offset}")

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A record to be produced. `partition` None: murmur2 of the key decides."""

    topic: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None = None
    partition: int | None = None
    headers: Headers = ()


class Delivered(NamedTuple):
    """Where a produced record landed."""

    topic: str
    partition: int
    offset: int


class Source(Protocol):
    """
    Where records come from, in batches of one partition, without a consumer group's help.

    `poll` never skips: the batches of a partition are contiguous (`next_offset` of one is
    `start_offset` of the following). Implementations must pass `tests.contracts.log.LogContract`.
    """

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read exactly these partitions from these offsets. Doubles as seek."""

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        """The next batch, or None when nothing came within the time-out.

        Raises:
            BrokerUnavailable: the broker cannot be reached or the topic is not there (yet).
            PositionForeign: an assigned offset is not in the log (past its end, or deleted).
        """

    def close(self) -> None:
        """Give up the connection. Idempotent."""


class GroupSource(Protocol):
    """
    A member of a consumer group: partitions come and go, the group stores the offsets.

    Implementations must pass `tests.contracts.log.GroupContract`.
    """

    def subscribe(
        self,
        topics: Sequence[str],
        on_assigned: Callable[[Sequence[TopicPartition]], None],
        on_revoked: Callable[[Sequence[TopicPartition]], None],
    ) -> None:
        """
        Join the group. Callbacks run inside `poll` (and `close`).

        `on_revoked` runs before the partitions are handed back: what was read of them may still be
        committed in it, and must not be afterwards.
        """

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        """
        As `Source.poll`, from whatever is assigned now, starting at the group's offsets.

        With `max_records` 0 it only takes part in the group: no batch comes, and what is assigned
        pauses, so that nothing more is fetched, until the next call that asks for records.
        """

    def unread(self) -> Mapping[TopicPartition, int]:
        """
        How far what `poll` gave is behind the end of each assigned partition, in offsets (markers
        of transactions count), as far as is known without asking: by the thread that polls.

        A partition of which nothing is known yet is left out.
        """

    def group_metadata(self) -> object:
        """What `TransactionalProducer.commit` needs to fence members of an older generation."""

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """
        Store offsets for the group, outside of any transaction and without waiting. May run
        beside `poll`; stored at the latest when `close` returns.

        Raises:
            PositionMoved, Retryable: an earlier call failed. Somebody else may hold the partitions;
                what was not stored is read again.
        """

    def close(self) -> None:
        """Leave the group. Idempotent."""


class Producer(Protocol):
    """
    Where records go. Idempotent, acks=all, murmur2 placement.

    Implementations must pass `tests.contracts.log.LogContract`.
    """

    def send(
        self, record: Outgoing, on_delivered: Callable[[Delivered], None] | None = None
    ) -> None:
        """Queue one record; blocks while the queue (bounded) is full.

        Raises:
            Rejected: the record is larger than the broker takes.
            BrokerUnavailable: the queue stayed full for longer than the send time-out.
        """

    def flush(self, timeout_s: float) -> None:
        """Return when everything sent is on the log.

        Raises:
            BrokerUnavailable: something was not delivered in time.
        """

    def close(self) -> None:
        """Flush what is possible and give up the connection. Idempotent."""


class TransactionalProducer(Protocol):
    """
    A producer whose records, and the offsets they answer, appear together or not at all.

    The constructor takes the transactional id and fences every older producer of that id.
    Implementations must pass `tests.contracts.log.TransactionContract`.
    """

    def begin(self) -> None:
        """Start a transaction."""

    def send(self, record: Outgoing) -> None:
        """Add one record to the open transaction."""

    def commit(self, positions: Mapping[TopicPartition, int], group: object | None) -> None:
        """Flush, store `positions` for `group` (if any) and commit, atomically.

        Raises:
            PositionMoved: a newer producer or group generation took over (fenced).
            Retryable: the transaction was aborted; the same work may be tried again.
        """

    def abort(self) -> None:
        """Drop the open transaction."""

    def close(self) -> None:
        """Give up the connection. Idempotent."""


class Log(Protocol):
    """
    What can be asked about the log as a whole.

    Implementations must pass `tests.contracts.log.LogContract`.
    """

    def cluster_id(self) -> str:
        """The cluster's own identity: another cluster has another one."""

    def topic_id(self, topic: str) -> str:
        """The topic's own identity: a topic deleted and created again has another one.

        Raises:
            Misconfigured: no such topic.
        """

    def partitions(self, topic: str) -> int:
        """Number of partitions. Raises Misconfigured when there is no such topic."""

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Partition -> (first offset kept, next offset to be written, committed only)."""
