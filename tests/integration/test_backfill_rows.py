"""`millstream features backfill --rows`: the archive into the store, and streaming goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run
from features.event_archive import ArchiveParts, ArchivePolicy, EventArchiver
from features.job import job_config, open_split, open_store
from features.join_worker import Rotation
from features.store import Update
from ingest.clock import SystemClock
from ingest.kafka import KafkaSource
from ingest.log import TopicPartition
from ingest.metrics import MemoryMetrics
from tests.feature_world import PARTITIONS, World, events, make_world

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]


@pytest.fixture
def world(
    kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str], tmp_path: Path
) -> World:
    made = make_world(kafka, valkey, registry, unique_name("backfill"))
    return World(settings=replace(made.settings, archive_dir=tmp_path / "archive"))


def test_rows_of_the_archive_are_where_streaming_goes_on(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = list(events(3_000))
    world.produce(told[:2_000])
    archive(world)
    world.produce(told[2_000:])  # the archive does not have these
    root = str(world.settings.archive_dir)

    code, found = backfill(world, capsys, "--from-files", root, "--runner", "fnapi")
    assert code == 0
    assert sum(report["counts"]["folded"] for report in found["partitions"]) == 2_000
    assert world.folded() == 2_000

    stream(world)
    assert world.contents() == world.fold_undisturbed().contents()
    assert world.counts().folded == 3_000

    # The log now, in a second store: equal; then one row is not what it should be.
    assert backfill(world, capsys, "--verify")[0] == 0
    spoil(world)
    code, found = backfill(world, capsys, "--verify", "--runner", "fnapi")
    assert code == 3
    assert sum(r["compared"]["rows"]["extra"] for r in found["partitions"]) == 1


def backfill(
    world: World, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, Any]]:
    settings = world.settings
    arguments = ["--bootstrap-servers", settings.bootstrap_servers]
    arguments += ["--registry-url", settings.registry_url, "--redis-url", settings.redis_url]
    arguments += ["--prefix", settings.topic_prefix, "features", "backfill", "--rows", "--json"]
    arguments += ["--archive-dir", str(settings.archive_dir), *options]
    capsys.readouterr()  # what was printed before
    code = run(arguments)
    return code, json.loads(capsys.readouterr().out)


def archive(world: World) -> None:
    """Archive what the log holds now."""
    source = KafkaSource(world.settings.bootstrap_servers)
    parts = ArchiveParts(
        log=world.log(),
        source=source,
        topics=world.topics,
        root=world.settings.archive_dir,
        clock=SystemClock(),
        metrics=MemoryMetrics(),
    )
    until = {TopicPartition(world.topics.user_events, p): end for p, end in world.ends().items()}
    policy = ArchivePolicy(rotation=Rotation(max_bytes=20_000), max_records=200)
    EventArchiver(parts, policy).run(threading.Event(), until)
    source.close()


def stream(world: World) -> None:
    """The streaming job's split, from where the store stands to the log's end."""
    split = open_split(job_config(world.settings))
    split.open()
    while not world.caught_up():
        split.handle(split.poll(1.0))
    split.close()


def spoil(world: World) -> None:
    store = open_store(world.settings)
    lease = store.claim(PARTITIONS - 1, None)
    at = lease.position.next_offset
    store.write(lease, Update(rows={"ghost": b"x"}, partials={}, next_offset=at))
    store.close()
