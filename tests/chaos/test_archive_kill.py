"""The event archive on real Kafka, killed and tidied up in the middle of its work, is the log."""

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
from features.compaction import Tidied, TidyPolicy, tidy
from features.event_archive import KINDS, ArchiveParts, EventArchiver, read_events
from ingest.clock import SystemClock
from ingest.kafka import KafkaLog, KafkaSource
from ingest.log import RecordBatch, TopicPartition
from ingest.metrics import MemoryMetrics
from ingest.reading import until_end
from tests.chaos.test_join_kill import PARTITIONS, PROGRAM, Shop

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

Entry = tuple[int, bytes | None, bytes | None, int]
POLICY = TidyPolicy(min_files=2, grace_s=0.0)


def start(shop: Shop, root: Path) -> subprocess.Popen[str]:
    """`millstream features archive` as a process."""
    return subprocess.Popen(
        [
            *(sys.executable, "-c", PROGRAM, "archive", "--archive-dir", str(root)),
            *("--rotate-s", "0.2"),
        ],
        env={
            "MILLSTREAM_BOOTSTRAP_SERVERS": shop.servers,
            "MILLSTREAM_REGISTRY_URL": shop.registry_url,
            "MILLSTREAM_TOPIC_PREFIX": shop.topics.prefix,
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )


def archived(root: Path) -> int:
    """Records that count."""
    return sum(m.records for kind in KINDS for m in archive.manifests(root, kind).values())


def tidied(root: Path) -> Tidied:
    passes = (
        tidy(root, kind, p, POLICY, SystemClock())
        for kind in KINDS
        for p in archive.partitions(root, kind)
    )
    return sum(passes, Tidied())


def entries(batch: RecordBatch) -> list[Entry]:
    stamps = batch.timestamps_ms.tolist()
    return list(zip(batch.offsets.tolist(), batch.keys, batch.values, stamps, strict=True))


def finish(shop: Shop, root: Path) -> dict[TopicPartition, list[Entry]]:
    """Archive what is left, in this process; and what the log holds."""
    log = KafkaLog(shop.servers)
    topics = [shop.topics.prefix + kind for kind in KINDS]
    ends = {TopicPartition(t, p): end for t in topics for p, (_, end) in log.bounds(t).items()}
    with closing(KafkaSource(shop.servers)) as source:
        parts = ArchiveParts(
            log=log,
            source=source,
            topics=shop.topics,
            root=root,
            clock=SystemClock(),
            metrics=MemoryMetrics(),
        )
        EventArchiver(parts).run(threading.Event(), ends)
    found: dict[TopicPartition, list[Entry]] = {tp: [] for tp in ends}
    with closing(KafkaSource(shop.servers)) as source:
        for batch in until_end(log, source, topics):
            found[TopicPartition(batch.topic, batch.partition)] += entries(batch)
    return found


@pytest.mark.timeout(240)
def test_an_event_archive_killed_again_and_again_holds_every_record_once(
    kafka: Any,
    registry: Any,
    unique_name: Callable[[str], str],
    eventually: Callable[..., None],
    tmp_path: Path,
) -> None:
    shop = Shop(kafka.bootstrap_servers, registry.url, unique_name("archive") + "-")
    merged = Tidied()
    for _ in range(3):
        before = archived(tmp_path)
        process = start(shop, tmp_path)
        try:
            for _ in range(4):
                shop.live(60)
                eventually(lambda before=before: archived(tmp_path) > before, 60)
                merged += tidied(tmp_path)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    logged = finish(shop, tmp_path)
    assert merged.merged > merged.into > 0
    assert len(logged) == len(KINDS) * PARTITIONS
    for tp, expected in logged.items():
        kind = tp.topic.removeprefix(shop.topics.prefix)
        batches = read_events(tmp_path, kind, tp.partition)
        assert [entry for batch in batches for entry in entries(batch)] == expected
        assert len(expected) > 50
    assert [problem for kind in KINDS for problem in archive.verify(tmp_path, kind)] == []
