"""The real parts of one run: a broker, a store, a registry, and what is put on the log."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import confluent_kafka as ck

from deploy import kafka, ports, registry, valkey
from deploy.supervise import Service, Supervisor, ready_line
from ingest.kafka import KafkaAdmin, KafkaLog
from ingest.settings import Settings
from ingest.topics import Topics, topic_specs
from schemas.codec import Codec
from schemas.events import UserEvent
from schemas.registry import RemoteRegistry
from tests.bench.measure import CLOCK, Cores, seconds
from tests.bench.shop import Shop

ROOT = Path(__file__).resolve().parent.parent.parent
PARTITIONS = 4
MAIN, FRESH = "bench-", "fresh-"
FLUSH_S = 60.0
ROWS_DB, BEAM_DB, FRESH_DB, LIMIT_DB = 0, 1, 2, 3
SAME_DB, PEER_DB, GROWTH_DB, MEMORY_DB = 4, 5, 6, 7
_NOTHING_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured. The defaults take about four minutes in all."""

    events: int = 1_200_000
    serve_requests: int = 16_000
    paced_s: float = 10.0
    catalogue: int = 3_400
    passes: int = 3
    swaps: int = 100

    def scaled(self, share: float) -> Sizes:
        """A quicker look. The figures of a small run are not those of a large one."""
        return replace(
            self,
            events=max(20_000, int(self.events * share)),
            serve_requests=max(1_000, int(self.serve_requests * share)),
            paced_s=max(3.0, self.paced_s * share),
            swaps=max(30, int(self.swaps * share)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One record to produce."""

    key: bytes
    value: bytes | None
    timestamp_ms: int


class World:
    """Started parts, and the events that are on `bench-user-events`."""

    def __init__(self, directory: Path, sizes: Sizes, supervisor: Supervisor) -> None:
        self.directory = directory
        self.sizes = sizes
        self.supervisor = supervisor
        self.shop = Shop()
        self.settings = self._started()
        self.notes: dict[str, Any] = {}  # what later parts take from earlier ones
        self.samples: dict[str, Any] = {}  # what is drawn
        self.curves: dict[str, dict[int, float]] = {}  # events/s by size, drawn too

    def named(self, prefix: str, database: int = ROWS_DB) -> Settings:
        """The settings of another prefix and database of the same parts."""
        url = self.settings.redis_url.rpartition("/")[0]
        return replace(self.settings, topic_prefix=prefix, redis_url=f"{url}/{database}")

    @cached_property
    def registry(self) -> RemoteRegistry:
        """The stack's registry, over HTTP."""
        return RemoteRegistry(self.settings.registry_url, self.settings.timeout_s)

    @cached_property
    def log(self) -> KafkaLog:
        """To ask about topics."""
        return KafkaLog(self.settings.bootstrap_servers, self.settings.timeout_s)

    @cached_property
    def records(self) -> list[Sent]:
        """The main topic's records, encoded; made once."""
        codec = Codec(self.registry, UserEvent, Topics(MAIN).user_events)
        now_ms = CLOCK.now_ms()
        events = list(self.shop.events(self.sizes.events, now_ms))
        values = codec.encode_many(events)
        return [
            Sent(key=e.user_id.encode(), value=v, timestamp_ms=e.event_time)
            for e, v in zip(events, values, strict=True)
        ]

    @cached_property
    def user_events(self) -> str:
        """The main topic, with all records on it."""
        self.create_topics(MAIN)
        topic = Topics(MAIN).user_events
        records = self.records
        taken_s = seconds(lambda: self.produce(topic, records))
        self.notes["produced_per_s"] = len(records) / taken_s
        self.notes["bytes_per_event"] = sum(len(r.value or b"") for r in records) / len(records)
        return topic

    def create_topics(self, prefix: str) -> None:
        """The ten topics of a prefix."""
        admin = KafkaAdmin(self.settings.bootstrap_servers, self.settings.timeout_s)
        admin.create_topics(topic_specs(prefix, PARTITIONS, replay=True))

    def ends(self, topic: str) -> dict[int, int]:
        """Next offset to be written, by partition."""
        return {p: end for p, (_, end) in self.log.bounds(topic).items()}

    def producer(self, **settings: Any) -> ck.Producer:
        """An uncompressed producer that places keys as Kafka does."""
        return ck.Producer(
            {
                "bootstrap.servers": self.settings.bootstrap_servers,
                "partitioner": "murmur2_random",
                "compression.type": "none",
                "acks": "all",
                "linger.ms": 20,
                "queue.buffering.max.messages": 500_000,
                "queue.buffering.max.kbytes": 262_144,
                **settings,
            }
        )

    def produce(self, topic: str, records: Iterable[Sent]) -> None:
        """Put records on a topic and wait until they are there."""
        lost: list[object] = []
        producer = self.producer()
        for record in records:
            while True:
                try:
                    producer.produce(
                        topic,
                        value=record.value,
                        key=record.key,
                        timestamp=record.timestamp_ms,
                        on_delivery=lambda error, _: lost.append(error) if error else None,
                    )
                    break
                except BufferError:
                    producer.poll(0.05)
        left = producer.flush(FLUSH_S)
        if lost or left:
            raise RuntimeError(f"{topic}: {left} records left, {len(lost)} lost: {lost[:1]}")

    def consumer(self, positions: dict[int, int], topic: str, **settings: Any) -> ck.Consumer:
        """A plain consumer with the settings that ours has."""
        consumer = ck.Consumer(
            {
                "bootstrap.servers": self.settings.bootstrap_servers,
                "group.id": "bench",
                "enable.auto.commit": False,
                "queued.max.messages.kbytes": 65_536,
                "fetch.queue.backoff.ms": 10,
                **settings,
            }
        )
        consumer.assign([ck.TopicPartition(topic, p, at) for p, at in positions.items()])
        return consumer

    def consume_all(self, topic: str, only: int | None = None) -> int:
        """Read a whole topic with nothing done to the records: the limit of all that read it."""
        return sum(map(len, self._messages(topic, only)))

    def values(self, topic: str, only: int | None = None) -> list[bytes]:
        """All values of a topic, or of one partition."""
        return [m.value() for part in self._messages(topic, only) for m in part]

    def _messages(self, topic: str, only: int | None) -> Iterator[list[ck.Message]]:
        """Everything up to the topic's present end, as it comes."""
        ends = {p: end for p, end in self.ends(topic).items() if end and only in (None, p)}
        settings = {"enable.partition.eof": True, "isolation.level": "read_committed"}
        consumer = self.consumer(dict.fromkeys(ends, 0), topic, **settings)
        left = set(ends)  # markers take offsets: only the end itself says that it is reached
        last_s = CLOCK.monotonic_s()
        while left:
            found = consumer.consume(8_192, 0.02)
            good = [m for m in found if m.error() is None]
            for message in found:
                if message.error() is not None:
                    if message.error().code() != ck.KafkaError._PARTITION_EOF:
                        raise RuntimeError(f"{topic}: {message.error()}")
                    left.discard(message.partition())
            if found:
                last_s = CLOCK.monotonic_s()
            elif CLOCK.monotonic_s() - last_s > _NOTHING_S:
                raise RuntimeError(f"{topic}: nothing for {_NOTHING_S:g} s before its end")
            yield good
        consumer.close()

    @contextmanager
    def command(
        self, settings: Settings, *words: str, environment: dict[str, str] | None = None
    ) -> Iterator[Path]:
        """`millstream WORDS` as a process of its own, ready; stopped at the end."""
        name = "-".join(words[:2]).strip("-")
        log = self.directory / f"{name}-{settings.topic_prefix}.log"
        self.supervisor.start(
            Service(
                name=name,
                command=(sys.executable, "-m", "deploy.cli", *words),
                log=log,
                answers=ready_line(log),
                environment={**variables(settings), **(environment or {})},
                directory=ROOT,
                ready_timeout_s=150.0,  # above what serve waits for its first model
            )
        )
        try:
            yield log
        finally:
            self.supervisor.stop(name)

    def cores(self) -> Cores:
        """A measure of what every process of the run uses from now on."""
        pids = {child.name: child.pid for child in self.supervisor.children()}
        return Cores({"this process": os.getpid(), **pids})

    def _started(self) -> Settings:
        """Broker, store and registry on free ports, data below `directory`."""
        cache = Settings().cache_dir.expanduser()
        with ports.reserve(4) as held:
            one, two, three, four = held.numbers
            broker = kafka.KafkaOptions(
                directory=self.directory / "kafka",
                cache_dir=cache,
                port=one,
                controller_port=two,
                partitions=PARTITIONS,
            )
            store = valkey.ValkeyOptions(
                directory=self.directory / "valkey", port=three, durable=False
            )
            schemas = registry.RegistryOptions(directory=self.directory / "registry", port=four)
            for service in (
                kafka.service(broker),
                valkey.service(store),
                registry.service(schemas),
            ):
                self.supervisor.start(service)
        return Settings(
            bootstrap_servers=broker.bootstrap_servers,
            registry_url=schemas.url,
            redis_url=store.url,
            topic_prefix=MAIN,
            archive_dir=self.directory / "archive",
            models_dir=self.directory / "models",
            keys_dir=self.directory / "keys",
            cache_dir=cache,
        )


@contextmanager
def world(directory: Path, sizes: Sizes) -> Iterator[World]:
    """The parts of one run, in an emptied folder; nothing of them is left behind but logs."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with Supervisor() as supervisor:
        yield World(directory, sizes, supervisor)
    for data in ("kafka/data", "valkey", "archive"):
        shutil.rmtree(directory / data, ignore_errors=True)


def by_partition(records: Sequence[Sent], place: Callable[[list[bytes]], Any]) -> list[list[Sent]]:
    """Records apart by partition, in order."""
    found: list[list[Sent]] = [[] for _ in range(PARTITIONS)]
    for record, partition in zip(records, place([r.key for r in records]), strict=True):
        found[int(partition)].append(record)
    return found


def variables(settings: Settings) -> dict[str, str]:
    """What a `millstream` process has to be told to work with these settings."""
    names = (
        *("bootstrap_servers", "registry_url", "redis_url", "topic_prefix", "profile"),
        *("archive_dir", "models_dir", "keys_dir", "cache_dir"),
    )
    return {f"MILLSTREAM_{name.upper()}": str(getattr(settings, name)) for name in names}
