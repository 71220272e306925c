"""A Flink cluster's processes killed under a running job: nothing lost, nothing doubled."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.feature_world import Job, World, jobs, make_world
from tests.flink_course import WAIT_S, Course, Traffic
from tests.flink_world import Cluster

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.valkey,
    pytest.mark.chaos,
    pytest.mark.timeout(900),  # a busy machine's cluster needs minutes to come up
]

Eventually = Callable[..., None]


@pytest.fixture(scope="module")
def world(kafka: Any, valkey: Any, registry: Any) -> World:
    return make_world(kafka, valkey, registry, f"flink-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def start_job(world: World, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    with jobs(world, tmp_path) as start:
        yield start


@pytest.fixture
def traffic(world: World) -> Iterator[Traffic]:
    made = Traffic(world)
    yield made
    made.end()


def test_each_kind_of_kill_in_turn_loses_and_doubles_nothing(
    world: World,
    flink: Cluster,
    traffic: Traffic,
    start_job: Callable[..., Job],
    eventually: Eventually,
) -> None:
    course = Course(world, flink, eventually)
    job = start_job(*flink.run_options())
    course.begins(job)
    course.kill_worker()
    course.kill_task_manager()
    course.freeze_machine()
    assert job.process.poll() is None, job.output()
    course.kill_job_manager(job)
    job = start_job(*flink.run_options())
    course.begins(job)
    traffic.end()
    eventually(world.caught_up, WAIT_S)
    job.send(signal.SIGTERM)
    assert job.process.wait(60) == 0, job.output()
    assert all(one.over for one in flink.master.jobs())

    counts = world.counts()
    assert (counts.records, counts.folded) == (traffic.sent, traffic.sent)
    other = world.fold_undisturbed()
    assert world.contents() == other.contents()
    assert other.counts() == counts
    # Each partition was claimed by the first job and by its heir, some also after other kills.
    epochs = [at.epoch for at in world.positions().values() if at is not None]
    assert min(epochs) >= 2, epochs
    assert max(epochs) >= 4, epochs
