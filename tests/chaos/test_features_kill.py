"""Feature jobs killed, stores emptied, owners fenced: nothing lost, nothing doubled, every byte."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from features.job import rebuild_parts
from features.rebuild import verify
from ingest.kafka import KafkaSource
from ingest.reading import until_end
from schemas.codec import Decoder
from schemas.events import ItemFeatures
from schemas.registry import RemoteRegistry
from tests.feature_world import Job, World, events, jobs, make_world

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.chaos]

EVENTS = 120_000
Eventually = Callable[..., None]


@pytest.fixture
def world(
    kafka: object, valkey: object, registry: object, unique_name: Callable[[str], str]
) -> World:
    return make_world(kafka, valkey, registry, unique_name("kill"))


@pytest.fixture
def start_job(world: World, tmp_path: Path) -> Iterator[Callable[[], Job]]:
    with jobs(world, tmp_path) as start:
        yield start


@pytest.fixture
def replay(world: World) -> Iterator[threading.Thread]:
    """Events that keep coming while the test does its worst."""
    thread = threading.Thread(target=lambda: world.produce(events(EVENTS)))
    yield thread
    thread.join()


def assert_undisturbed(world: World) -> None:
    """By count, by refold in memory, and against a second store folded in peace."""
    assert sum(world.ends().values()) == EVENTS  # else it was lost before it was read
    counts = world.counts()
    assert (counts.records, counts.folded) == (EVENTS, EVENTS)
    assert (counts.duplicates, counts.late, counts.dead, counts.misplaced) == (0, 0, 0, 0)
    report = verify(rebuild_parts(world.settings))
    assert report.ok, report
    assert report.rows.equal > 200
    other = world.fold_undisturbed()
    assert world.contents() == other.contents()
    assert other.counts() == counts


def test_a_job_killed_in_mid_replay_loses_and_doubles_nothing(
    world: World,
    replay: threading.Thread,
    start_job: Callable[[], Job],
    eventually: Eventually,
) -> None:
    replay.start()
    for share in (0.1, 0.3, 0.6):
        job = start_job()
        eventually(lambda goal=share * EVENTS: world.folded() > goal, 60)
        job.kill()
    assert world.folded() < EVENTS
    replay.join()
    last = start_job()
    eventually(world.caught_up, 60)
    last.send(signal.SIGTERM)
    assert last.process.wait(20) == 0
    assert_undisturbed(world)
    stored = {(p, item): b for (p, kind, item), b in world.contents().items() if kind == "i"}
    assert published(world) == stored


def published(world: World) -> dict[tuple[int, str], bytes]:
    """The newest partials on item-features, by partition and item."""
    settings, topic = world.settings, world.topics.item_features
    decoder = Decoder(RemoteRegistry(settings.registry_url, settings.timeout_s), ItemFeatures)
    with closing(KafkaSource(settings.bootstrap_servers)) as source:
        found = [
            decoder.decode(value)
            for batch in until_end(world.log(), source, [topic])
            for value in batch.values
        ]
    return {(one.partition, one.item_id): one.partial for one in found}


def test_an_emptied_store_is_folded_again_from_the_log(
    world: World,
    replay: threading.Thread,
    start_job: Callable[[], Job],
    eventually: Eventually,
) -> None:
    replay.start()
    job = start_job()
    eventually(lambda: world.folded() > 0.3 * EVENTS, 60)
    world.empty_store()
    # The job finds its position gone and ends without writing into the void.
    assert job.process.wait(60) == 1, job.output()
    assert "PositionMoved" in job.output()
    assert world.folded() == 0
    replay.join()
    start_job()
    eventually(world.caught_up, 60)
    assert_undisturbed(world)


def test_a_worker_that_comes_back_after_a_takeover_writes_nothing(
    world: World,
    replay: threading.Thread,
    start_job: Callable[[], Job],
    eventually: Eventually,
) -> None:
    replay.start()
    zombie = start_job()
    eventually(lambda: world.folded() > 0.1 * EVENTS, 60)
    zombie.send(signal.SIGSTOP)  # in the midst of a batch
    heir = start_job()
    eventually(lambda: "ready" in heir.output(), 60)
    at_takeover = world.folded()
    eventually(lambda: world.folded() > at_takeover or world.caught_up(), 60)
    zombie.send(signal.SIGCONT)
    assert zombie.process.wait(60) == 1, zombie.output()
    assert "PositionMoved" in zombie.output()
    replay.join()
    eventually(world.caught_up, 60)
    assert heir.process.poll() is None, heir.output()
    assert_undisturbed(world)
