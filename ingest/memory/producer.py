"""Writing to the log in memory, with and without transactions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ingest.log import Delivered, Outgoing, TopicPartition
from ingest.memory.log import GroupMetadata, MemoryLog, Transaction
from schemas.errors import PositionMoved


class MemoryProducer:
    """`Producer` on a MemoryLog: everything sent is on the log at once."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def send(
        self, record: Outgoing, on_delivered: Callable[[Delivered], None] | None = None
    ) -> None:
        delivered = self._log.append(record)
        if on_delivered is not None:
            on_delivered(delivered)

    def flush(self, timeout_s: float) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is held."""


class MemoryTransactionalProducer:
    """`TransactionalProducer` on a MemoryLog."""

    def __init__(self, log: MemoryLog, transactional_id: str) -> None:
        self._log = log
        self._id = transactional_id
        with log.changed:
            left = log.open.pop(transactional_id, None)
            if left is not None:
                log.finish(left, "aborted")
            self._epoch = log.fences[transactional_id] = log.fences.get(transactional_id, 0) + 1

    def begin(self) -> None:
        with self._log.changed:
            self._check()
            if self._id in self._log.open:
                raise RuntimeError(f"a transaction of {self._id} is open already")
            self._log.open[self._id] = Transaction()

    def send(self, record: Outgoing) -> None:
        with self._log.changed:
            self._log.append(record, self._current())

    def commit(self, positions: Mapping[TopicPartition, int], group: object | None) -> None:
        with self._log.changed:
            transaction = self._current()
            if group is not None and positions:
                self._commit_offsets(positions, group)
            del self._log.open[self._id]
            self._log.finish(transaction, "committed")

    def abort(self) -> None:
        with self._log.changed:
            transaction = self._current()
            del self._log.open[self._id]
            self._log.finish(transaction, "aborted")

    def close(self) -> None:
        """An open transaction is left to be aborted by the next producer of this id."""

    def _commit_offsets(self, positions: Mapping[TopicPartition, int], metadata: object) -> None:
        if not isinstance(metadata, GroupMetadata):
            raise TypeError(f"not a MemoryGroupSource's metadata: {metadata!r}")
        group = self._log.groups[metadata.group]
        # As in Kafka, a member may commit while a rebalance is under way, until all have joined.
        joined = all(group.joined.get(m) == group.generation for m in group.members)
        current = metadata.generation == group.generation or not joined
        if metadata.member not in group.members or not current:
            self.abort()
            raise PositionMoved(f"commit {self._id}: group {metadata.group} has moved on")
        group.offsets.update(positions)

    def _current(self) -> Transaction:
        self._check()
        if self._id not in self._log.open:
            raise RuntimeError(f"no transaction of {self._id} is open")
        return self._log.open[self._id]

    def _check(self) -> None:
        if self._log.fences[self._id] != self._epoch:
            raise PositionMoved(f"{self._id}: a newer producer took over")
