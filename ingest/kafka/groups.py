"""The offsets of consumer groups, asked for and moved from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import confluent_kafka as ck

from ingest.kafka.client import Options, client_settings, library_partitions, mapped, mapping
from ingest.kafka.consumer import consumer_settings
from ingest.log import TopicPartition


class KafkaGroups:
    """
    `Groups`, by a consumer of the group that joins nothing.

    (The admin client's call for it ended the process on a broker that had no group yet.)
    """

    def __init__(
        self, bootstrap_servers: str, timeout_s: float = 10.0, options: Options | None = None
    ) -> None:
        settings = client_settings(bootstrap_servers, timeout_s) | consumer_settings(
            read_committed=True
        )
        self._settings = settings | dict(options or {})
        self._timeout_s = timeout_s

    def offsets(self, group: str, topic: str) -> dict[int, int]:
        with self._consumer(group) as consumer:
            doing = f"ask for the offsets of group {group}"
            with mapping(doing):
                found = consumer.list_topics(topic, self._timeout_s).topics[topic]
                asked = [ck.TopicPartition(topic, p) for p in found.partitions]
                committed = consumer.committed(asked, self._timeout_s)
            return {tp.partition: tp.offset for tp in _sound(committed, doing) if tp.offset >= 0}

    def move(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        wanted = {TopicPartition(topic, p): at for p, at in offsets.items()}
        with self._consumer(group) as consumer:
            doing = f"move group {group}"
            with mapping(doing):
                moved = consumer.commit(offsets=library_partitions(wanted), asynchronous=False)
            _sound(moved, doing)

    @contextmanager
    def _consumer(self, group: str) -> Iterator[ck.Consumer]:
        with mapping("open a consumer"):
            consumer = ck.Consumer(self._settings | {"group.id": group})
        try:
            yield consumer
        finally:
            consumer.close()


def _sound(found: list[ck.TopicPartition], doing: str) -> list[ck.TopicPartition]:
    """What was answered, if no partition's answer is an error."""
    for tp in found:
        if tp.error is not None:
            raise mapped(tp.error, f"{doing}: {tp.topic}[{tp.partition}]")
    return found
