"""Real Kafka keeps the log's promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from ingest.kafka import (
    KafkaAdmin,
    KafkaGroups,
    KafkaGroupSource,
    KafkaLog,
    KafkaProducer,
    KafkaSource,
    KafkaTransactionalProducer,
)
from ingest.topics import TopicSpec
from tests.contracts import log as contracts

pytestmark = pytest.mark.kafka


class Broker(Protocol):
    @property
    def bootstrap_servers(self) -> str: ...


class KafkaWorld:
    max_record_bytes = 100_000

    def __init__(self, servers: str, unique_name: Callable[[str], str], stack: ExitStack) -> None:
        self._servers = servers
        self._unique_name = unique_name
        self._stack = stack
        self._admin = KafkaAdmin(servers)

    def name(self) -> str:
        return self._unique_name("log")

    def topic(self, partitions: int) -> str:
        name = self.name()
        # retention for ever: tests send old timestamps
        self._admin.create_topics([TopicSpec(name=name, partitions=partitions, retention_ms=-1)])
        return name

    def source(self, *, read_committed: bool = True) -> KafkaSource:
        source = KafkaSource(self._servers, read_committed=read_committed)
        self._stack.callback(source.close)
        return source

    def group(self, name: str) -> KafkaGroupSource:
        member = KafkaGroupSource(self._servers, name)
        self._stack.callback(member.close)
        return member

    def producer(self) -> KafkaProducer:
        producer = KafkaProducer(self._servers, max_record_bytes=self.max_record_bytes)
        self._stack.callback(producer.close)
        return producer

    def transactional(self, transactional_id: str) -> KafkaTransactionalProducer:
        producer = KafkaTransactionalProducer(
            self._servers, transactional_id, max_record_bytes=self.max_record_bytes
        )
        self._stack.callback(producer.close)
        return producer

    def log(self) -> KafkaLog:
        return KafkaLog(self._servers)

    def admin(self) -> KafkaAdmin:
        return self._admin

    def groups(self) -> KafkaGroups:
        # A new broker makes its topic of offsets when it is first asked.
        return KafkaGroups(self._servers, timeout_s=30)


class _OnKafka:
    @pytest.fixture
    def world(self, kafka: Broker, unique_name: Callable[[str], str]) -> Iterator[KafkaWorld]:
        with ExitStack() as stack:
            yield KafkaWorld(kafka.bootstrap_servers, unique_name, stack)


class TestKafkaLog(_OnKafka, contracts.LogContract):
    pass


class TestKafkaTransactions(_OnKafka, contracts.TransactionContract):
    pass


class TestKafkaGroups(_OnKafka, contracts.GroupContract):
    pass


class TestKafkaGroupOffsets(_OnKafka, contracts.GroupsContract):
    pass


class TestKafkaAdmin(_OnKafka, contracts.AdminContract):
    pass
