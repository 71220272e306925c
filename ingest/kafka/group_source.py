"""Reading as a member of a consumer group: partitions come and go, the group keeps the offsets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import confluent_kafka as ck

from ingest.clock import Clock, SystemClock
from ingest.kafka.client import (
    Options,
    client_settings,
    library_partitions,
    mapped,
    mapping,
    settled,
)
from ingest.kafka.consumer import Reader, consumer_settings
from ingest.log import RecordBatch, TopicPartition
from schemas.errors import MillstreamError

STORE_S: Final = 0.1  # offsets are stored no more often: each costs the broker a write


class KafkaGroupSource:
    """
    `GroupSource`: reads on from the group's offsets, or from the log's start where it has none.

    With `instance_id` (static membership) a member that restarts within the session time-out gets
    its partitions back without a rebalance.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        group_id: str,
        *,
        timeout_s: float = 10.0,
        instance_id: str | None = None,
        session_timeout_s: float = 10.0,
        clock: Clock | None = None,
        options: Options | None = None,
    ) -> None:
        settings = client_settings(bootstrap_servers, timeout_s) | consumer_settings(True)
        settings |= {
            "group.id": group_id,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(session_timeout_s * 1000),
            "heartbeat.interval.ms": max(100, int(session_timeout_s * 1000 / 5)),
            "on_commit": self._on_commit,
        }
        if instance_id is not None:
            settings["group.instance.id"] = instance_id
        self._timeout_s = timeout_s
        self._group_id = group_id
        self._clock = clock or SystemClock()
        self._broken: MillstreamError | None = None
        self._unstored: MillstreamError | None = None  # why a commit failed
        self._to_store: dict[TopicPartition, int] = {}
        self._storing = threading.Lock()
        self._store_at_s = 0.0  # not before
        self._closed = False
        self._reader = Reader(settings | dict(options or {}), timeout_s)

    def subscribe(
        self,
        topics: Sequence[str],
        on_assigned: Callable[[Sequence[TopicPartition]], None],
        on_revoked: Callable[[Sequence[TopicPartition]], None],
    ) -> None:
        def assigned(consumer: ck.Consumer, found: list[ck.TopicPartition]) -> None:
            if self._closed:  # a rebalance met us on the way out: no answer would come
                return
            partitions = [TopicPartition(p.topic, p.partition) for p in found]
            try:
                positions = self._resume_at(partitions)
            except MillstreamError as error:
                # The library gives no second chance: this member has to be opened anew.
                self._broken = error
                raise
            self._reader.place(positions)
            consumer.incremental_assign(library_partitions(positions))
            on_assigned(partitions)

        def revoked(consumer: ck.Consumer, lost: list[ck.TopicPartition]) -> None:
            partitions = [TopicPartition(p.topic, p.partition) for p in lost]
            self._reader.drop(partitions)
            on_revoked(partitions)  # still ours: what was read of them may be committed
            self._store(wait=True)
            consumer.incremental_unassign(lost)

        with mapping("subscribe"):
            self._reader.consumer.subscribe(list(topics), on_assign=assigned, on_revoke=revoked)

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        if self._broken is not None:
            raise self._broken
        self._store(wait=False)
        return self._reader.poll(max_records, timeout_s)

    def unread(self) -> dict[TopicPartition, int]:
        return self._reader.unread()

    def group_metadata(self) -> object:
        with mapping("group metadata"):
            return self._reader.consumer.consumer_group_metadata()

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        if self._unstored is not None:
            fault, self._unstored = self._unstored, None
            raise fault
        with self._storing:
            self._to_store.update(positions)

    def _store(self, *, wait: bool) -> None:
        """
        Hand on what is to be stored. By the thread that polls: the library lets one thread at a
        time use a consumer, and one that polls again and again leaves no gap for another.
        """
        now_s = self._clock.monotonic_s()
        if not wait and now_s < self._store_at_s:
            return
        with self._storing:
            positions, self._to_store = self._to_store, {}
        if not positions:
            return
        self._store_at_s = now_s + STORE_S
        try:
            with mapping(f"commit for group {self._group_id}"):
                self._reader.consumer.commit(
                    offsets=library_partitions(positions), asynchronous=not wait
                )
        except MillstreamError as error:
            self._unstored = error

    def _on_commit(self, error: ck.KafkaError | None, stored: list[ck.TopicPartition]) -> None:
        found = error or next((one.error for one in stored if one.error is not None), None)
        if found is not None and found.code() != ck.KafkaError._NO_OFFSET:
            self._unstored = mapped(found, f"commit for group {self._group_id}")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store(wait=True)
            self._reader.close()

    def _resume_at(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        asked = [ck.TopicPartition(*tp) for tp in partitions]
        positions = {}
        with mapping(f"ask for the offsets of group {self._group_id}"):
            committed = self._reader.consumer.committed(asked, self._timeout_s)
        for found in committed:
            if found.error is not None:
                raise mapped(found.error, f"offset of {found.topic}[{found.partition}]")
            at = found.offset if found.offset >= 0 else self._first_offset(found)
            positions[TopicPartition(found.topic, found.partition)] = at
        return positions

    def _first_offset(self, partition: ck.TopicPartition) -> int:
        """Where the log of a partition starts that the group has not read yet."""

        def ask() -> int:
            with mapping(f"ask where {partition.topic}[{partition.partition}] starts"):
                first, _ = self._reader.consumer.get_watermark_offsets(partition, self._timeout_s)
            return int(first)

        return settled(ask, self._clock, self._timeout_s)
