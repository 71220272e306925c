"""The features job on a cluster: a failover, then what the command line makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run
from features.job import open_store
from features.store import Update
from ingest.settings import Settings
from tests.breakable_cluster import BreakableCluster, breakable_cluster
from tests.feature_world import World, events, jobs

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.chaos]

EVENTS = 30_000
START_S = 150  # a job loads Beam: seconds, or minutes on a machine with much else to do
Eventually = Callable[..., None]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[BreakableCluster]:
    with breakable_cluster(tmp_path / "cluster") as made:
        yield made


@pytest.fixture
def world(
    kafka: Any, registry: Any, cluster: BreakableCluster, unique_name: Callable[[str], str]
) -> World:
    settings = Settings(
        bootstrap_servers=kafka.bootstrap_servers,
        registry_url=registry.url,
        redis_url=cluster.options.url,
        topic_prefix=unique_name("cluster") + "-",
        timeout_s=5,
    )
    made = World(settings=settings)
    made.create_topics()
    return made


@pytest.fixture
def millstream(
    world: World, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    settings = world.settings

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = run(
            [
                *("--bootstrap-servers", settings.bootstrap_servers),
                *("--registry-url", settings.registry_url),
                *("--redis-url", settings.redis_url),
                *("--prefix", settings.topic_prefix),
                *arguments,
            ]
        )
        return code, json.loads(capsys.readouterr().out or "{}")

    return call


def spoil(world: World, user: str, partition: int) -> None:
    store = open_store(world.settings)
    lease = store.claim(partition, None)
    at = lease.position.next_offset
    store.write(lease, Update(rows={user: b"rubbish"}, partials={}, next_offset=at))
    store.close()


def test_a_job_rides_over_a_failover_and_its_rows_are_those_of_an_undisturbed_run(
    world: World,
    cluster: BreakableCluster,
    valkey: Any,
    tmp_path: Path,
    eventually: Eventually,
    millstream: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    found = list(events(EVENTS))
    third = EVENTS // 3
    with jobs(world, tmp_path) as start:
        job = start()
        eventually(lambda: "ready" in job.output(), START_S)
        world.produce(found[:third])
        eventually(world.caught_up, 60)
        eventually(cluster.caught_up)
        cluster.cut()
        world.produce(found[third : 2 * third])
        eventually(world.caught_up, 60)
        cluster.kill_primary()
        cluster.promote()
        # The job stands further than the store: it ends, and writes nothing of what it has folded.
        world.produce(found[2 * third :])
        assert job.process.wait(60) == 1, job.output()
        assert "PositionMoved" in job.output()
        last = start()
        eventually(lambda: "ready" in last.output(), START_S)
        eventually(world.caught_up, 60)
    undisturbed = world.fold_undisturbed(valkey.url)
    assert world.contents() == undisturbed.contents()
    assert world.counts() == undisturbed.counts()
    assert world.counts().folded == EVENTS
    check_rebuild(world, millstream)


def check_rebuild(world: World, millstream: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    """The command, on a cluster: finds a spoilt row, and puts it right."""
    before = world.contents()
    (partition, _, user), _ = next(iter(before.items()))
    spoil(world, user, partition)
    place = ("--partition", str(partition))
    code, told = millstream("features", "rebuild", "--verify", *place, "--json")
    assert (code, told["ok"], told["replaced"]) == (3, False, False)
    assert [p["partition"] for p in told["partitions"]] == [partition]
    assert told["partitions"][0]["rows"]["different"] == 1
    assert told["partitions"][0]["named"] == [f"{user}: different"]
    code, told = millstream("features", "rebuild", "--verify", "--user", user, "--json")
    assert (code, told["ok"], told["found"], told["replaced"]) == (3, False, "different", False)
    code, told = millstream("features", "rebuild", "--user", user, "--json")
    assert (code, told["found"], told["replaced"]) == (0, "different", True)
    assert (told["user"], told["partition"]) == (user, partition)
    assert world.contents() == before
    spoil(world, user, partition)
    code, told = millstream("features", "rebuild", *place, "--json")
    assert (code, told["ok"], told["replaced"]) == (0, False, True)
    assert world.contents() == before
    code, told = millstream("features", "rebuild", "--verify", "--json")
    assert (code, told["ok"], len(told["partitions"])) == (0, True, 4)
    assert millstream("features", "rebuild", "--user", user, *place)[0] == 2
    assert millstream("features", "rebuild", "--partition", "9")[0] == 2
