"""Asking about the log, and making topics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import confluent_kafka as ck
from confluent_kafka import admin as lib

from ingest.clock import Clock, SystemClock
from ingest.kafka.client import (
    CHECK_EVERY_S,
    Options,
    client_settings,
    mapped,
    mapping,
    settled,
)
from ingest.log import TopicPartition
from ingest.topics import TopicSpec, TopicState
from schemas.errors import BrokerUnavailable, Misconfigured

_MISSING = (ck.KafkaError.UNKNOWN_TOPIC_OR_PART, ck.KafkaError._UNKNOWN_TOPIC)


class _Client:
    """An admin client whose answers are waited for."""

    def __init__(self, bootstrap_servers: str, timeout_s: float, options: Options | None) -> None:
        settings = client_settings(bootstrap_servers, timeout_s) | dict(options or {})
        with mapping("open an admin client"):
            self.library = lib.AdminClient(settings)
        self.timeout_s = timeout_s

    def result(self, doing: str, future: Future[Any]) -> Any:
        try:
            with mapping(doing):
                # The library's own time-out comes first; this one is for a client that is stuck.
                return future.result(self.timeout_s + 1)
        except FutureTimeoutError as error:
            raise BrokerUnavailable(f"{doing}: no answer in {self.timeout_s:g} s") from error

    def described(self, names: Sequence[str]) -> dict[str, Any]:
        """Descriptions of those of `names` that exist."""
        if not names:
            return {}
        with mapping("describe topics"):
            futures = self.library.describe_topics(
                ck.TopicCollection(list(names)), request_timeout=self.timeout_s
            )
        found = {}
        for name, future in futures.items():
            try:
                found[name] = future.result(self.timeout_s + 1)
            except ck.KafkaException as error:
                if error.args[0].code() not in _MISSING:
                    raise mapped(error.args[0], f"describe topic {name}") from error
            except FutureTimeoutError as error:
                raise BrokerUnavailable(f"describe topic {name}: no answer") from error
        return found

    def offsets(self, asked: Mapping[ck.TopicPartition, Any]) -> dict[TopicPartition, int]:
        """Offsets by their leaders; one that does not lead (yet) is an error."""
        topics = ", ".join(sorted({tp.topic for tp in asked}))
        doing = f"ask for the offsets of {topics}"
        with mapping(doing):
            futures = self.library.list_offsets(
                dict(asked),
                isolation_level=ck.IsolationLevel.READ_COMMITTED,
                request_timeout=self.timeout_s,
            )
        return {
            TopicPartition(tp.topic, tp.partition): self.result(doing, future).offset
            for tp, future in futures.items()
        }


class KafkaLog:
    """`Log`: asked each time, nothing is cached."""

    def __init__(
        self,
        bootstrap_servers: str,
        timeout_s: float = 10.0,
        clock: Clock | None = None,
        options: Options | None = None,
    ) -> None:
        self._client = _Client(bootstrap_servers, timeout_s, options)
        self._clock = clock or SystemClock()

    def cluster_id(self) -> str:
        client = self._client
        with mapping("describe the cluster"):
            future = client.library.describe_cluster(request_timeout=client.timeout_s)
        return str(client.result("describe the cluster", future).cluster_id)

    def topic_id(self, topic: str) -> str:
        return str(self._described(topic).topic_id)

    def partitions(self, topic: str) -> int:
        return len(self._described(topic).partitions)

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        partitions = range(self.partitions(topic))
        first = self._offsets(topic, partitions, lib.OffsetSpec.earliest())
        end = self._offsets(topic, partitions, lib.OffsetSpec.latest())
        return {p: (first[p], end[p]) for p in partitions}

    def _described(self, topic: str) -> Any:
        client = self._client
        found = settled(lambda: client.described([topic]), self._clock, client.timeout_s)
        if topic not in found:
            raise Misconfigured(f"no topic {topic}. Run: millstream topics create")
        return found[topic]

    def _offsets(self, topic: str, partitions: Sequence[int], spec: Any) -> dict[int, int]:
        client, asked = self._client, {ck.TopicPartition(topic, p): spec for p in partitions}
        found = settled(lambda: client.offsets(asked), self._clock, client.timeout_s)
        return {partition: offset for (_, partition), offset in found.items()}


class KafkaAdmin:
    """`Admin`."""

    def __init__(
        self,
        bootstrap_servers: str,
        timeout_s: float = 10.0,
        clock: Clock | None = None,
        options: Options | None = None,
    ) -> None:
        self._client = _Client(bootstrap_servers, timeout_s, options)
        self._clock = clock or SystemClock()

    def topics(self, names: Sequence[str]) -> dict[str, TopicState]:
        found = self._client.described(names)
        settings = self._settings(list(found))
        return {
            name: TopicState(
                name=name,
                topic_id=str(topic.topic_id),
                partitions=len(topic.partitions),
                settings=settings[name],
            )
            for name, topic in found.items()
        }

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        new = [
            lib.NewTopic(s.name, s.partitions, s.replication, config=s.settings()) for s in specs
        ]
        if not new:
            return
        with mapping("create topics"):
            futures = self._client.library.create_topics(
                new, request_timeout=self._client.timeout_s
            )
        self._settle("create topic", futures, ck.KafkaError.TOPIC_ALREADY_EXISTS)
        names = [s.name for s in specs]
        self._wait("known", lambda: len(self._client.described(names)) == len(names))
        # A broker tells of a leader before it lets that one lead.
        latest = lib.OffsetSpec.latest()
        found = self._client.described(names)
        led = {
            ck.TopicPartition(name, p): latest
            for name, topic in found.items()
            for p in range(len(topic.partitions))
        }
        settled(lambda: self._client.offsets(led), self._clock, self._client.timeout_s)

    def configure_topics(self, specs: Sequence[TopicSpec]) -> None:
        resources = [
            lib.ConfigResource(
                lib.ConfigResource.Type.TOPIC,
                s.name,
                incremental_configs=[
                    lib.ConfigEntry(name, value, incremental_operation=lib.AlterConfigOpType.SET)
                    for name, value in s.settings().items()
                ],
            )
            for s in specs
        ]
        if resources:
            with mapping("configure topics"):
                futures = self._client.library.incremental_alter_configs(
                    resources, request_timeout=self._client.timeout_s
                )
            self._settle("configure", futures, None)

    def delete_topics(self, names: Sequence[str]) -> None:
        if not names:
            return
        with mapping("delete topics"):
            futures = self._client.library.delete_topics(
                list(names), request_timeout=self._client.timeout_s
            )
        self._settle("delete topic", futures, *_MISSING)
        self._wait("gone", lambda: not self._client.described(names))

    def _settings(self, names: Sequence[str]) -> dict[str, Mapping[str, str]]:
        if not names:
            return {}
        with mapping("read topic settings"):
            futures = self._client.library.describe_configs(
                [lib.ConfigResource(lib.ConfigResource.Type.TOPIC, name) for name in names],
                request_timeout=self._client.timeout_s,
            )
        return {
            resource.name: {
                name: entry.value
                for name, entry in self._client.result("read topic settings", future).items()
            }
            for resource, future in futures.items()
        }

    def _settle(self, doing: str, futures: Mapping[Any, Future[Any]], *fine: int | None) -> None:
        for name, future in futures.items():
            try:
                future.result(self._client.timeout_s + 1)
            except ck.KafkaException as error:
                if error.args[0].code() not in fine:
                    raise mapped(error.args[0], f"{doing} {name}") from error
            except FutureTimeoutError as error:
                raise BrokerUnavailable(f"{doing} {name}: no answer") from error

    def _wait(self, wanted: str, done: Callable[[], bool]) -> None:
        end = self._clock.monotonic_s() + self._client.timeout_s
        while not done():
            if self._clock.monotonic_s() > end:
                raise BrokerUnavailable(
                    f"topics were not {wanted} within {self._client.timeout_s:g} s"
                )
            self._clock.sleep(CHECK_EVERY_S)
