"""Reading from the log in memory, alone or as a member of a group."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence

from ingest.log import RecordBatch, TopicPartition
from ingest.memory.log import Group, GroupMetadata, MemoryLog, Pause
from schemas.errors import BrokerUnavailable, PositionMoved


class _Cursor:
    """Positions in the log, served in turn."""

    def __init__(self, log: MemoryLog, *, committed: bool) -> None:
        self._log = log
        self._committed = committed
        self.positions: dict[TopicPartition, int] = {}
        self.closed = False

    def wait(
        self,
        max_records: int,
        timeout_s: float,
        enough: Callable[[], bool] = lambda: False,
    ) -> RecordBatch | None:
        """As `next`, waiting for one until the time-out or until `enough` is true."""
        found: list[RecordBatch | Pause] = []

        def look() -> bool:
            batch = self.next(max_records)
            if batch is not None:
                found.append(batch)
            return bool(found) or enough()

        self._log.changed.wait_for(look, max(0.0, timeout_s))
        first = found[0] if found else None
        return None if isinstance(first, Pause) else first

    def next(self, max_records: int) -> RecordBatch | Pause | None:
        """A batch of the first partition in turn that has one. Holds the log's lock."""
        for tp, start in list(self.positions.items()):
            batch = self._log.read(tp, start, max_records, committed=self._committed)
            if isinstance(batch, RecordBatch):
                del self.positions[tp]  # to the end of the turn
                self.positions[tp] = batch.next_offset
            if batch is not None:
                return batch
        return None


class MemorySource:
    """`Source` on a MemoryLog."""

    def __init__(self, log: MemoryLog, *, read_committed: bool = True) -> None:
        self._log = log
        self._cursor = _Cursor(log, committed=read_committed)

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._cursor.positions = dict(positions)

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        if self._cursor.closed:
            raise BrokerUnavailable("poll: the source is closed")
        with self._log.changed:
            return self._cursor.wait(max_records, timeout_s)

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Nothing: no dashboard looks here."""

    def close(self) -> None:
        self._cursor.closed = True


class MemoryGroupSource:
    """
    `GroupSource` on a MemoryLog: partitions are dealt out evenly, and change hands in `poll`.

    A partition is given to its new owner only after the old one has polled (or left), as in
    Kafka's cooperative protocol.
    """

    def __init__(self, log: MemoryLog, group: str) -> None:
        self._log = log
        self._name = group
        self._member = uuid.uuid4().hex
        self._generation = -1
        self._cursor = _Cursor(log, committed=True)
        self._on_assigned: Callable[[Sequence[TopicPartition]], None] = _ignore
        self._on_revoked: Callable[[Sequence[TopicPartition]], None] = _ignore

    def subscribe(
        self,
        topics: Sequence[str],
        on_assigned: Callable[[Sequence[TopicPartition]], None],
        on_revoked: Callable[[Sequence[TopicPartition]], None],
    ) -> None:
        with self._log.changed:
            group = self._log.groups.setdefault(self._name, Group())
            group.members[self._member] = tuple(topics)
            group.generation += 1
            self._log.changed.notify_all()
        self._on_assigned, self._on_revoked = on_assigned, on_revoked

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        if self._cursor.closed:
            raise BrokerUnavailable("poll: the member has left")
        self._rebalance()
        batch = None
        with self._log.changed:
            if max_records:
                batch = self._cursor.wait(max_records, timeout_s, self._moved_on)
            else:
                self._log.changed.wait_for(self._moved_on, max(0.0, timeout_s))
        if batch is None:
            self._rebalance()
        return batch

    def unread(self) -> dict[TopicPartition, int]:
        with self._log.changed:
            return {
                tp: self._log.bounds(tp.topic)[tp.partition][1] - at
                for tp, at in self._cursor.positions.items()
            }

    def group_metadata(self) -> object:
        return GroupMetadata(self._name, self._member, self._generation)

    def close(self) -> None:
        if self._cursor.closed:
            return
        self._cursor.closed = True
        owned = list(self._cursor.positions)
        self.expire()
        if owned:
            self._on_revoked(owned)

    def expire(self) -> None:
        """What a session time-out does: the group goes on without this member."""
        with self._log.changed:
            group = self._log.groups.get(self._name, Group())
            if group.members.pop(self._member, None) is not None:
                group.generation += 1
            group.owners = {tp: m for tp, m in group.owners.items() if m != self._member}
            self._log.changed.notify_all()

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        with self._log.changed:
            group = self._log.groups.get(self._name, Group())
            if any(group.owners.get(tp) != self._member for tp in positions):
                raise PositionMoved(f"group {self._name} has dealt anew")
            group.offsets.update(positions)

    def _moved_on(self) -> bool:
        """Whether the group's deal has changed, or a partition dealt to us has come free."""
        group = self._log.groups.get(self._name, Group())
        mine = (tp for tp, m in self._dealt(group).items() if m == self._member)
        return self._generation != group.generation or any(tp not in group.owners for tp in mine)

    def _rebalance(self) -> None:
        """Hand back what is dealt to others now, then take up what is free."""
        with self._log.changed:
            mine = self._mine()
            lost = [tp for tp in self._cursor.positions if tp not in mine]
            for tp in lost:
                del self._cursor.positions[tp]
        if lost:
            self._on_revoked(lost)  # still ours: what was read of them may be committed
        with self._log.changed:
            group = self._log.groups.get(self._name, Group())
            for tp in lost:
                if group.owners.get(tp) == self._member:
                    del group.owners[tp]
            gained = sorted(tp for tp in self._mine() if tp not in group.owners)
            for tp in gained:
                group.owners[tp] = self._member
                first, _ = self._log.bounds(tp.topic)[tp.partition]
                self._cursor.positions[tp] = group.offsets.get(tp, first)
            self._generation = group.joined[self._member] = group.generation
            if lost or gained:
                self._log.changed.notify_all()
        if gained:
            self._on_assigned(gained)

    def _mine(self) -> set[TopicPartition]:
        group = self._log.groups.get(self._name, Group())
        return {tp for tp, m in self._dealt(group).items() if m == self._member}

    def _dealt(self, group: Group) -> dict[TopicPartition, str]:
        dealt: dict[TopicPartition, str] = {}
        for topic in sorted({t for topics in group.members.values() for t in topics}):
            members = [m for m, topics in group.members.items() if topic in topics]
            if topic in self._log.topics([topic]):
                for p in range(self._log.partitions(topic)):
                    dealt[TopicPartition(topic, p)] = members[p % len(members)]
        return dealt


def _ignore(partitions: Sequence[TopicPartition]) -> None:
    """Nobody listens yet."""
