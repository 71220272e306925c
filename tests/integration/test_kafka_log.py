"""Real Kafka keeps the log's promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Protocol

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import OffsetSpec

from ingest.kafka import (
    KafkaAdmin,
    KafkaGroups,
    KafkaGroupSource,
    KafkaLog,
    KafkaProducer,
    KafkaSource,
    KafkaTransactionalProducer,
)
from ingest.log import Outgoing, TopicPartition
from ingest.topics import TopicSpec
from schemas.errors import Misconfigured
from tests.contracts import log as contracts
from tests.late_leader import LateLeader, late_leader

pytestmark = pytest.mark.kafka

ALONE = {"batch.num.messages": 1}  # each record in a request of its own


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
    def test_a_member_whose_name_another_one_has_taken_says_so_at_every_poll(
        self, world: KafkaWorld, kafka: Broker
    ) -> None:
        topic, group, held = world.topic(1), world.name(), [set[TopicPartition](), set()]

        def member(number: int) -> KafkaGroupSource:
            made = KafkaGroupSource(kafka.bootstrap_servers, group, instance_id="one")
            made.subscribe([topic], held[number].update, lambda _: None)
            return made

        with closing(member(0)) as first:
            contracts.until(lambda: not first.poll(1, 0.1) and held[0], "the first one reads")
            with closing(member(1)) as second:
                contracts.until(lambda: not second.poll(1, 0.1) and held[1], "so does the second")
                with pytest.raises(Misconfigured, match="an --instance of its own"):
                    contracts.until(lambda: first.poll(1, 0.1), "the first one hears of it")
                with pytest.raises(Misconfigured):
                    first.poll(1, 0.1)
                assert second.poll(1, 0.1) is None


class TestKafkaGroupOffsets(_OnKafka, contracts.GroupsContract):
    pass


class TestKafkaAdmin(_OnKafka, contracts.AdminContract):
    def test_a_topic_is_created_when_each_of_its_partitions_has_a_leader_that_answers(
        self, world: KafkaWorld
    ) -> None:
        admin, latest = world.admin(), OffsetSpec.latest()
        for _ in range(5):  # as a rule one is late each time
            names = [world.name() for _ in range(10)]
            admin.create_topics([TopicSpec(name=name, partitions=8) for name in names])
            asked = {ck.TopicPartition(name, p): latest for name in names for p in range(8)}
            assert set(admin._client.offsets(asked).values()) == {0}
            admin.delete_topics(names)


class TestALeaderThatComesLate(_OnKafka):
    """
    What was sent behind refused records must not count for them.

    librdkafka takes records for delivered when later ones are, and a partition that has not heard
    of a producer takes any of its records first (confluent-kafka-go, issue 921).
    """

    @pytest.fixture
    def topic(self, world: KafkaWorld) -> str:
        return world.topic(1)

    @pytest.fixture
    def late(self, kafka: Broker, topic: str) -> Iterator[LateLeader]:
        with late_leader(int(kafka.bootstrap_servers.rpartition(":")[2]), topic) as leader:
            yield leader

    def test_loses_nothing_that_was_acknowledged(
        self, world: KafkaWorld, topic: str, late: LateLeader
    ) -> None:
        with closing(KafkaProducer(late.bootstrap_servers, options=ALONE)) as producer:
            sent = self.send(producer, topic)
            producer.flush(30)
        assert late.refused == 1
        assert self.read(world, topic) == sent

    def test_loses_nothing_of_a_transaction(
        self, world: KafkaWorld, topic: str, late: LateLeader
    ) -> None:
        name = world.name()
        with closing(
            KafkaTransactionalProducer(late.bootstrap_servers, name, options=ALONE)
        ) as producer:
            producer.begin()
            sent = self.send(producer, topic)
            producer.commit({}, None)
        assert late.refused == 1
        assert self.read(world, topic) == sent

    def send(self, producer: KafkaProducer | KafkaTransactionalProducer, topic: str) -> list[int]:
        sent = list(range(50))
        for number in sent:
            producer.send(Outgoing(topic=topic, key=b"key", value=str(number).encode()))
        return sent

    def read(self, world: KafkaWorld, topic: str) -> list[int]:
        partition = TopicPartition(topic, 0)
        source, found = world.source(), list[int]()
        source.assign({partition: 0})
        _, end = world.log().bounds(topic)[0]
        while (batch := source.poll(1000, 1.0)) is not None:
            found += [int(value or b"") for value in batch.values]
            if batch.next_offset >= end:
                break
        return found
