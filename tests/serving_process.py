"""A real `millstream serve` on topics of its own, requests for it, and a count of its answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import redis

from ingest.kafka import KafkaAdmin, KafkaLog, KafkaProducer, KafkaSource
from ingest.log import Headers, Outgoing, TopicPartition
from ingest.settings import Settings
from ingest.topics import Topics, ensure_topics, topic_specs
from schemas.codec import Codec, Decoder
from schemas.events import Item, Recommendation, RecommendationRequest
from schemas.registry import RemoteRegistry

PARTITIONS = 4
DATABASE = 8  # of the shared store, for tests that serve
ITEMS = [f"item-{i}" for i in range(60)]


@dataclass
class Answer:
    """What a test looks at in an answer."""

    partition: int
    value: Recommendation
    headers: Headers = ()


class Place:
    """Topics with a prefix of their own, and what is on them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics = Topics(settings.topic_prefix)
        self.registry = RemoteRegistry(settings.registry_url, 10)
        self.log = KafkaLog(settings.bootstrap_servers)
        admin = KafkaAdmin(settings.bootstrap_servers)
        ensure_topics(admin, topic_specs(settings.topic_prefix, PARTITIONS, replay=False))
        self._requests = Codec(self.registry, RecommendationRequest, self.topics.requests)
        self.producer = KafkaProducer(settings.bootstrap_servers)
        self._answers = KafkaSource(settings.bootstrap_servers)
        self._answers.assign(
            {TopicPartition(self.topics.recommendations, p): 0 for p in range(PARTITIONS)}
        )
        self._decoder = Decoder(self.registry, Recommendation)
        self.answers: list[Answer] = []
        items = Codec(self.registry, Item, self.topics.item_updates)
        for item_id in ITEMS:
            value = items.encode(Item(item_id=item_id, title=item_id.upper()))
            self.send(self.topics.item_updates, item_id, value)
        self.producer.flush(30)

    def ask(self, numbers: range, users: int = 97) -> None:
        """Send requests r<number>."""
        for n in numbers:
            user = f"user-{n % users}"
            request = RecommendationRequest(request_id=f"r{n}", user_id=user, k=5)
            self.send(self.topics.requests, user, self._requests.encode(request))
        self.producer.flush(30)

    def ask_with(self, headers: Headers, request_id: str, user: str = "ann", k: int = 5) -> None:
        """Send one request with these headers."""
        request = RecommendationRequest(request_id=request_id, user_id=user, k=k)
        self.send(self.topics.requests, user, self._requests.encode(request), headers)
        self.producer.flush(30)

    def answer(self, request_id: str) -> Answer | None:
        """The answer to a request, if it has come."""
        self.read()
        return next((a for a in self.answers if a.value.request_id == request_id), None)

    def raw(self, key: bytes, value: bytes) -> None:
        """Send anything as a request."""
        self.producer.send(Outgoing(topic=self.topics.requests, key=key, value=value))
        self.producer.flush(30)

    def read(self) -> int:
        """Take in the committed answers that came; how many there are in all."""
        while batch := self._answers.poll(5_000, 0.05):
            self.answers += [
                Answer(batch.partition, self._decoder.decode(value), batch.headers.get(at, ()))
                for at, value in enumerate(batch.values)
            ]
        return len(self.answers)

    def counts(self) -> Counter[str]:
        """Answers by request id."""
        return Counter(answer.value.request_id for answer in self.answers)

    def close(self) -> None:
        """Give the connections back."""
        self._answers.close()
        self.producer.close()

    def flush(self) -> None:
        """Return when everything sent is on the log."""
        self.producer.flush(60)

    def new_source(self) -> KafkaSource:
        """Another reader. The caller closes it."""
        return KafkaSource(self.settings.bootstrap_servers)

    def send(self, topic: str, key: str, value: bytes, headers: Headers = ()) -> None:
        """Send one record."""
        record = Outgoing(topic=topic, key=key.encode(), value=value, headers=headers)
        self.producer.send(record)


class Server:
    """One `millstream serve` process."""

    def __init__(self, settings: Settings, folder: Path, name: str = "0", *more: str) -> None:
        environment = {
            **os.environ,  # noqa: TID251 - the child needs our PATH
            "MILLSTREAM_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "MILLSTREAM_REGISTRY_URL": settings.registry_url,
            "MILLSTREAM_REDIS_URL": settings.redis_url,
            "MILLSTREAM_TOPIC_PREFIX": settings.topic_prefix,
            "MILLSTREAM_MODELS_DIR": str(settings.models_dir),
            "MILLSTREAM_KEYS_DIR": str(settings.keys_dir),
            "MILLSTREAM_OTLP_ENDPOINT": settings.otlp_endpoint,
            "MILLSTREAM_LOG_FORMAT": settings.log_format,
        }
        self.errors = folder / f"serve-{name}-{len(list(folder.iterdir()))}.log"
        command = [sys.executable, "-m", "deploy.cli", "serve", "--instance", name, *more]
        with self.errors.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[1],
            )

    def ready(self) -> bool:
        """Whether it has said so. Fails the test when the process has ended instead."""
        text = self.errors.read_text()
        assert self._process.poll() is None, text[-3000:]
        return "ready: serve" in text

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def ended(self) -> int:
        """The exit code of one that ends by itself."""
        return self._process.wait(60)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self._process.terminate()
        return self._process.wait(60)

    def close(self) -> None:
        """End it, however it stands."""
        if self._process.poll() is None:
            self.kill()


def settings_for(kafka, valkey, registry, prefix: str, folder: Path) -> Settings:
    """Settings of a place of its own, with an empty store: rows of other topics are refused."""
    redis_url = f"{valkey.url.rpartition('/')[0]}/{DATABASE}"
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    return Settings(
        bootstrap_servers=kafka.bootstrap_servers,
        registry_url=registry.url,
        redis_url=redis_url,
        topic_prefix=f"{prefix}-",
        models_dir=folder / "models",
        keys_dir=folder / "keys",
    )
