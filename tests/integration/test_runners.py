"""The same events on every runner: the same rows and partials, byte for byte."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy import prism
from ingest.settings import Settings
from tests.conftest import missing
from tests.feature_world import Job, World, events, jobs, make_world
from tests.flink_world import Cluster

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.valkey,
    pytest.mark.timeout(600),  # a busy machine's Flink needs minutes to come up
]

EVENTS = 10_000
TIMEOUT_S = 240.0  # a Flink job brings 152 MB of jars to each TaskManager
Eventually = Callable[..., None]
Contents = dict[tuple[int, str, str], bytes | None]


@pytest.fixture(scope="module")
def world(kafka: Any, valkey: Any, registry: Any) -> World:
    """Topics with events on them, for all tests of this module."""
    made = make_world(kafka, valkey, registry, f"runners-{uuid.uuid4().hex[:8]}")
    made.produce(events(EVENTS))
    return made


@pytest.fixture(scope="module")
def undisturbed(world: World) -> Contents:
    return world.fold_undisturbed().contents()


@pytest.fixture
def start_job(world: World, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    world.empty_store()
    with jobs(world, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def _prism() -> None:
    if not prism.binary(Settings().cache_dir).exists():
        missing(f"Prism is not built: {prism.REMEDY}")


def folded(world: World, job: Job, eventually: Eventually) -> None:
    """Wait until a job has folded all there is."""
    eventually(lambda: world.caught_up() or job.process.poll() is not None, TIMEOUT_S)
    assert job.process.poll() is None, job.output()


def end(job: Job) -> None:
    """As an operator ends it."""
    job.send(signal.SIGTERM)
    assert job.process.wait(60) == 0, job.output()


def test_the_runner_in_this_process_folds_as_an_undisturbed_fold_does(
    world: World,
    undisturbed: Contents,
    start_job: Callable[..., Job],
    eventually: Eventually,
) -> None:
    job = start_job()
    folded(world, job, eventually)
    end(job)
    assert world.contents() == undisturbed


@pytest.mark.usefixtures("_prism")
def test_prism_folds_as_an_undisturbed_fold_does(
    world: World,
    undisturbed: Contents,
    start_job: Callable[..., Job],
    eventually: Eventually,
) -> None:
    job = start_job("--runner", "prism")
    folded(world, job, eventually)
    end(job)
    assert world.contents() == undisturbed


def test_flink_folds_as_an_undisturbed_fold_does_with_a_worker_on_each_task_manager(
    world: World,
    undisturbed: Contents,
    flink: Cluster,
    start_job: Callable[..., Job],
    eventually: Eventually,
) -> None:
    job = start_job(*flink.run_options(parallelism=2))
    folded(world, job, eventually)
    eventually(lambda: "ready: features of 4 partitions on flink" in job.output())
    assert [len(workers) for workers in flink.workers().values()] == [1, 1]
    end(job)
    assert all(one.over for one in flink.master.jobs())
    assert world.contents() == undisturbed


def test_a_job_that_fails_on_flink_ends_with_its_reason_and_exit_code(
    world: World,
    undisturbed: Contents,
    flink: Cluster,
    start_job: Callable[..., Job],
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    folded(world, start_job(), eventually)
    # The rows of one log, and another log of the same store: a person must act.
    foreign = World(settings=replace(world.settings, topic_prefix=f"other-{uuid.uuid4().hex[:8]}-"))
    foreign.create_topics()
    with jobs(foreign, tmp_path) as start:
        # Flink starts a failed task again, until it has failed too often; here not at all.
        job = start(*flink.run_options(), "--", "--number_of_execution_retries=0")
        eventually(lambda: job.process.poll() is not None, TIMEOUT_S)
    assert job.process.wait() == 2, job.output()
    assert "PositionForeign" in job.output()
    assert "run `millstream features rebuild --partition" in job.output()
    assert world.contents() == undisturbed


@pytest.mark.usefixtures("_prism")
def test_splits_grow_from_one_to_four_and_back_and_change_runners_on_the_way(
    kafka: Any, valkey: Any, registry: Any, tmp_path: Path, eventually: Eventually
) -> None:
    world = make_world(kafka, valkey, registry, f"scale-{uuid.uuid4().hex[:8]}")
    stages = (("fnapi", 1), ("fnapi", 4), ("prism", 4), ("prism", 1))
    with jobs(world, tmp_path) as start:
        for at, (runner, splits) in enumerate(stages):
            world.produce(events(EVENTS // len(stages), seed=at))
            job = start("--runner", runner, "--parallelism", str(splits))
            folded(world, job, eventually)
            end(job)
    counts, other = world.counts(), world.fold_undisturbed()
    assert counts.records == EVENTS
    assert (counts, world.contents()) == (other.counts(), other.contents())
