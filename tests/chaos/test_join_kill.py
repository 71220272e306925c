"""The label join on real Kafka, killed in the middle of its work, gives the same examples once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from features import archive
from features.catalog import CATALOG
from features.declare import Level
from features.join import JoinPolicy
from features.join_worker import KIND, JoinParts, JoinWorker, Rotation, WorkPolicy
from ingest.clock import SystemClock
from ingest.kafka import KafkaAdmin, KafkaLog, KafkaProducer, KafkaSource
from ingest.log import Outgoing
from ingest.metrics import MemoryMetrics
from ingest.placement import partition_of
from ingest.topics import Topics, topic_specs
from schemas.codec import Codec
from schemas.events import EventType, Recommendation, ScoredItem, UserEvent
from schemas.registry import RemoteRegistry
from tests.join_world import answer, event
from tests.tfexample import read_examples

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

PARTITIONS = 2
# The command itself, without the other packages' ones.
PROGRAM = """
import sys, typer
from features.archive_cli import register
from ingest.settings import Settings
app = typer.Typer()
@app.callback()
def options(context: typer.Context) -> None:
    context.obj = Settings.load()
register(app)
app()
"""


class Shop:
    """Users who are shown things and click on them, on real Kafka."""

    def __init__(self, servers: str, registry_url: str, prefix: str) -> None:
        self.servers, self.registry_url, self.topics = servers, registry_url, Topics(prefix)
        KafkaAdmin(servers).create_topics(topic_specs(prefix, PARTITIONS, replay=True))
        self.registry = RemoteRegistry(registry_url, 10.0)
        self._answers = Codec(self.registry, Recommendation, self.topics.recommendations)
        self._events = Codec(self.registry, UserEvent, self.topics.user_events)
        self._offsets = dict.fromkeys(range(PARTITIONS), 0)
        self._told = 0

    def live(self, rounds: int) -> None:
        """So many lists more, each with what followed."""
        with closing(KafkaProducer(self.servers)) as producer:
            for i in range(self._told, self._told + rounds):
                user = f"u{i % 23}"
                partition = partition_of(user.encode(), PARTITIONS)
                at_ms = 20 * i
                self._send(producer, self.topics.recommendations, self._shown(i, user, at_ms))
                clicks = [event(f"e{i}-{n}", user, "abc"[n], at_ms + 5 + n) for n in range(i % 4)]
                for click in [
                    *clicks,
                    event(f"v{i}", user, None, at_ms, event_type=EventType.VIEW),
                ]:
                    self._send(producer, self.topics.user_events, click)
                    self._offsets[partition] += 1
            self._told += rounds
            producer.flush(30.0)

    def end(self) -> None:
        """An event in each partition that closes every list."""
        with closing(KafkaProducer(self.servers)) as producer:
            for p in range(PARTITIONS):
                user = next(f"k{i}" for i in range(99) if partition_of(f"k{i}".encode(), 2) == p)
                last = event(f"end{p}", user, None, 20 * self._told + 10_000)
                self._send(producer, self.topics.user_events, last)
            producer.flush(30.0)

    def _shown(self, i: int, user: str, at_ms: int) -> Recommendation:
        wide = {
            (level, dtype): CATALOG.width(level, dtype)
            for level in Level
            for dtype in ("int64", "float32")
        }
        partition = partition_of(user.encode(), PARTITIONS)
        found = answer(
            f"r{i}",
            user,
            at_ms,
            fingerprint=CATALOG.fingerprint,
            events_partition=partition,
            events_offset=self._offsets[partition],
            user_longs=(i,) * wide[Level.USER, "int64"],
            user_floats=(0.5,) * wide[Level.USER, "float32"],
        )
        item = {
            "longs": (1,) * wide[Level.ITEM, "int64"],
            "floats": (2.0,) * wide[Level.ITEM, "float32"],
        }
        scored = tuple(ScoredItem(item_id=x, score=1.0, **item) for x in "abc")
        values = {name: getattr(found, name) for name in Recommendation.__slots__}
        return Recommendation(**(values | {"items": scored}))

    def _send(self, producer: KafkaProducer, topic: str, value: Any) -> None:
        codec: Codec[Any] = self._events if isinstance(value, UserEvent) else self._answers
        producer.send(
            Outgoing(
                topic=topic,
                key=value.user_id.encode(),
                value=codec.encode(value),
                timestamp_ms=value.event_time,
            )
        )

    def start(self, root: Path) -> subprocess.Popen[str]:
        """`millstream features join` as a process."""
        return subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, "join", "--archive-dir", str(root)),
                *("--window-s", "1", "--lateness-s", "0.1", "--idle-close-s", "600"),
                *("--rotate-s", "0.2"),
            ],
            env={
                "MILLSTREAM_BOOTSTRAP_SERVERS": self.servers,
                "MILLSTREAM_REGISTRY_URL": self.registry_url,
                "MILLSTREAM_TOPIC_PREFIX": self.topics.prefix,
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )

    def calm(self, root: Path) -> None:
        """The join undisturbed, in this process."""
        lists, events = KafkaSource(self.servers), KafkaSource(self.servers)
        with closing(lists), closing(events):
            parts = JoinParts(
                log=KafkaLog(self.servers),
                lists=lists,
                events=events,
                registry=self.registry,
                topics=self.topics,
                features=CATALOG,
                root=root,
                clock=SystemClock(),
                metrics=MemoryMetrics(),
            )
            policy = JoinPolicy(window_ms=1_000, lateness_ms=100, idle_close_s=600)
            work = WorkPolicy(rotation=Rotation(max_age_s=0.2))
            JoinWorker(parts, policy, work).run(threading.Event(), self.ends())

    def ends(self) -> dict[int, int]:
        log = KafkaLog(self.servers)
        return {p: end for p, (_, end) in log.bounds(self.topics.recommendations).items()}

    def lists_written(self, root: Path) -> int:
        found = archive.manifests(root, KIND).values()
        return sum(m.position["recommendations"] for m in found)


def examples(root: Path) -> dict[int, list[dict[str, list[Any]]]]:
    return {
        p: [r for f in m.files for r in read_examples(root / KIND / f.path)]
        for p, m in archive.manifests(root, KIND).items()
    }


@pytest.mark.timeout(240)
def test_a_join_killed_again_and_again_gives_the_examples_of_one_that_was_not(
    kafka: Any,
    registry: Any,
    unique_name: Callable[[str], str],
    eventually: Callable[..., None],
    tmp_path: Path,
) -> None:
    shop = Shop(kafka.bootstrap_servers, registry.url, unique_name("join") + "-")
    harmed, calm = tmp_path / "harmed", tmp_path / "calm"
    for _ in range(3):
        shop.live(600)
        before = shop.lists_written(harmed)
        worker = shop.start(harmed)
        eventually(lambda b=before: shop.lists_written(harmed) > b, 60.0)
        worker.kill()  # -9
        worker.wait(10.0)
        assert worker.returncode == -signal.SIGKILL
    shop.end()
    worker = shop.start(harmed)
    every = sum(shop.ends().values())
    eventually(lambda: shop.lists_written(harmed) == every, 60.0)
    worker.terminate()
    assert worker.wait(20.0) == 0
    shop.calm(calm)
    found = examples(harmed)
    assert found == examples(calm)
    assert sum(map(len, found.values())) == 3 * 1_800
    # A user is shown a list every 460 ms: what follows the next two is within the window, too.
    clicks = sum(j % 4 for i in range(1_800) for j in (i, i + 23, i + 46) if j < 1_800)
    assert sum(sum(r["labels"]) for part in found.values() for r in part) == clicks
    assert list(archive.verify(harmed, KIND)) == []
