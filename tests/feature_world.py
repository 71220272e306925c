"""A topic prefix of its own with known events on it, and feature jobs that can be killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis

from features.counts import Counts
from features.job import job_config, open_split, open_store
from features.store import Position
from ingest.kafka import KafkaAdmin, KafkaLog, KafkaProducer
from ingest.log import Outgoing
from ingest.settings import Settings
from ingest.topics import Topics, topic_specs
from schemas.codec import Codec
from schemas.events import EventType, UserEvent
from schemas.registry import RemoteRegistry

PARTITIONS = 4
DATABASE, OTHER_DATABASE = 5, 6  # of the shared store; 0 is everybody's
NOW_MS = 1_750_000_000_000


def events(count: int, *, users: int = 300, items: int = 80, seed: int = 7) -> Iterator[UserEvent]:
    """Distinct events of skewed users, a second apart, the same for the same arguments."""
    chance = random.Random(seed)
    kinds = [EventType.IMPRESSION, EventType.VIEW, EventType.CLICK, EventType.RATING]
    for i in range(count):
        kind = chance.choice(kinds)
        yield UserEvent(
            event_id=f"{seed}-{i}",
            user_id=f"user-{int(users * chance.random() ** 2)}",
            item_id=f"item-{int(items * chance.random() ** 2)}",
            event_type=kind,
            event_time=NOW_MS + i * 1000,
            value=float(chance.randint(1, 5)) if kind is EventType.RATING else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Topics of a prefix, and the store that their rows go to."""

    settings: Settings

    @property
    def topics(self) -> Topics:
        return Topics(self.settings.topic_prefix)

    def log(self) -> KafkaLog:
        return KafkaLog(self.settings.bootstrap_servers, self.settings.timeout_s)

    def create_topics(self) -> None:
        admin = KafkaAdmin(self.settings.bootstrap_servers, self.settings.timeout_s)
        admin.create_topics(topic_specs(self.settings.topic_prefix, PARTITIONS, replay=True))

    def produce(self, found: Iterable[UserEvent]) -> None:
        """Put events on the log, each at its own time."""
        registry = RemoteRegistry(self.settings.registry_url, self.settings.timeout_s)
        codec = Codec(registry, UserEvent, self.topics.user_events)
        producer = KafkaProducer(self.settings.bootstrap_servers)
        for event in found:
            producer.send(
                Outgoing(
                    topic=self.topics.user_events,
                    key=event.user_id.encode(),
                    value=codec.encode(event),
                    timestamp_ms=event.event_time,
                )
            )
        producer.flush(60)
        producer.close()

    def ends(self) -> dict[int, int]:
        return {p: end for p, (_, end) in self.log().bounds(self.topics.user_events).items()}

    def positions(self) -> dict[int, Position | None]:
        store = open_store(self.settings)
        try:
            return store.positions(range(PARTITIONS))
        finally:
            store.close()

    def folded(self) -> int:
        """Offsets that the rows have passed, of all partitions."""
        return sum(p.next_offset for p in self.positions().values() if p is not None)

    def caught_up(self) -> bool:
        ends = self.ends()
        return all(p is not None and p.next_offset >= ends[n] for n, p in self.positions().items())

    def counts(self) -> Counts:
        """What became of all records, as the store says."""
        stored = (Counts.of(p.counts) for p in self.positions().values() if p is not None)
        return sum(stored, Counts())

    def contents(self) -> dict[tuple[int, str, str], bytes | None]:
        """Every row and partial, byte for byte."""
        store = open_store(self.settings)
        found: dict[tuple[int, str, str], bytes | None] = {}
        for partition in range(PARTITIONS):
            keys = store.keys(partition)
            users, items = sorted(keys.users), sorted(keys.items)
            rows = store.snapshots({partition: users})[partition].rows
            partials = store.partials(partition, items).rows
            found |= {(partition, "u", u): row for u, row in zip(users, rows, strict=True)}
            found |= {(partition, "i", i): part for i, part in zip(items, partials, strict=True)}
        store.close()
        return found

    def empty_store(self) -> None:
        """FLUSHDB: tests have a database of their own."""
        with redis.Redis.from_url(self.settings.redis_url) as client:
            client.flushdb()

    def fold_undisturbed(self, server: str | None = None) -> World:
        """The same log folded into another store, without runner, pause or failure."""
        url = (server or self.settings.redis_url).rpartition("/")[0] + f"/{OTHER_DATABASE}"
        other = World(settings=replace(self.settings, redis_url=url))
        other.empty_store()
        split = open_split(job_config(other.settings))
        split.open()
        while not other.caught_up():
            split.handle(split.poll(1.0))
        split.close()
        return other


def make_world(kafka: Any, valkey: Any, registry: Any, prefix: str) -> World:
    """Topics of their own on the shared broker, and an empty database of the shared store."""
    settings = Settings(
        bootstrap_servers=kafka.bootstrap_servers,
        registry_url=registry.url,
        redis_url=valkey.url.rpartition("/")[0] + f"/{DATABASE}",
        topic_prefix=prefix + "-",
    )
    world = World(settings=settings)
    world.empty_store()
    world.create_topics()
    return world


class Job:
    """`millstream features run` as a process, its standard error in a file."""

    def __init__(self, world: World, log_file: Path, options: Sequence[str] = ()) -> None:
        settings = world.settings
        self._log_file = log_file
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "deploy.cli"),
                    *("--bootstrap-servers", settings.bootstrap_servers),
                    *("--registry-url", settings.registry_url),
                    *("--redis-url", settings.redis_url),
                    *("--prefix", settings.topic_prefix),
                    *("features", "run", *options),
                ],
                stdout=log,
                stderr=log,
            )

    def output(self) -> str:
        return self._log_file.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def jobs(world: World, directory: Path) -> Iterator[Callable[..., Job]]:
    """Starts jobs with the options given; whatever still runs at the end is killed."""
    started: list[Job] = []

    def start(*options: str) -> Job:
        started.append(Job(world, directory / f"job-{len(started)}.log", options))
        return started[-1]

    try:
        yield start
    finally:
        for job in started:
            job.kill()
