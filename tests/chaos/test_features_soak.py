"""
Long runs of the features job on Flink: every kill again and again, scaling, and memory.

`make soak ONLY=features MINUTES=20` writes out/soak/features.json.
"""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ingest.clock import SystemClock
from tests.feature_world import Job, World, jobs, make_world
from tests.flink_course import WAIT_S, Course, Traffic
from tests.flink_world import Cluster

pytestmark = [pytest.mark.soak, pytest.mark.kafka, pytest.mark.valkey, pytest.mark.chaos]

OUT = Path(__file__).parents[2] / "out" / "soak" / "features.json"
ROUNDS = 5  # of each kind of kill
SETTLED_S = 300.0  # memory before that is start-up
MOST_GROWTH = 0.02
# A job that grows faster than this is to be restarted by plan, and this says how often.
MOST_MB_AN_HOUR = 120.0
LOOK_S = 5.0
Eventually = Callable[..., None]


@pytest.fixture(scope="module")
def report() -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    yield found
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")


@pytest.fixture
def world(kafka: Any, valkey: Any, registry: Any) -> World:
    return make_world(kafka, valkey, registry, f"soak-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def start_job(world: World, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    with jobs(world, tmp_path) as start:
        yield start


@pytest.fixture
def traffic(world: World) -> Iterator[Traffic]:
    made = Traffic(world)
    yield made
    made.end()


def verdict(world: World, traffic: Traffic) -> dict[str, Any]:
    """Counts and equality with an undisturbed fold of the same log."""
    counts, other = world.counts(), world.fold_undisturbed()
    return {
        "sent": traffic.sent,
        "folded": counts.folded,
        "lost": traffic.sent - counts.records,
        "doubled": counts.duplicates,
        "equal": world.contents() == other.contents() and other.counts() == counts,
    }


def ended(job: Job) -> None:
    job.send(signal.SIGTERM)
    assert job.process.wait(120) == 0, job.output()


def assert_equal(found: dict[str, Any]) -> None:
    assert (found["lost"], found["doubled"], found["equal"]) == (0, 0, True), found


def test_features_outlive_every_kind_of_kill_many_times(
    world: World,
    flink: Cluster,
    traffic: Traffic,
    start_job: Callable[..., Job],
    eventually: Eventually,
    report: dict[str, Any],
) -> None:
    course, clock = Course(world, flink, eventually), SystemClock()
    job = start_job(*flink.run_options())
    course.begins(job)
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for kill in (course.kill_worker, course.kill_task_manager, course.freeze_machine):
            started_s = clock.monotonic_s()
            kill()
            seconds.setdefault(kill.__name__, []).append(clock.monotonic_s() - started_s)
        assert job.process.poll() is None, job.output()
        started_s = clock.monotonic_s()
        course.kill_job_manager(job)
        job = start_job(*flink.run_options())
        course.begins(job)
        seconds.setdefault("kill_job_manager", []).append(clock.monotonic_s() - started_s)
    traffic.end()
    eventually(world.caught_up, WAIT_S)
    ended(job)
    report["kills"] = {"rounds": ROUNDS, "seconds": seconds, **verdict(world, traffic)}
    assert_equal(report["kills"])


def test_features_scale_from_one_split_to_four_and_back(
    world: World,
    flink: Cluster,
    traffic: Traffic,
    start_job: Callable[..., Job],
    eventually: Eventually,
    report: dict[str, Any],
) -> None:
    course = Course(world, flink, eventually)
    for parallelism in (1, 4, 1):
        job = start_job(*flink.run_options(parallelism))
        course.begins(job)
        ended(job)
    traffic.end()
    job = start_job(*flink.run_options(1))
    course.begins(job)
    eventually(world.caught_up, WAIT_S)
    ended(job)
    report["scaling"] = {"splits": [1, 4, 1], **verdict(world, traffic)}
    assert_equal(report["scaling"])


def test_features_on_flink_keep_their_memory(
    world: World,
    flink: Cluster,
    traffic: Traffic,
    start_job: Callable[..., Job],
    eventually: Eventually,
    report: dict[str, Any],
) -> None:
    minutes = float(os.environ.get("MINUTES", "20"))  # noqa: TID251
    course, clock = Course(world, flink, eventually), SystemClock()
    job = start_job(*flink.run_options())
    course.begins(job)
    samples: list[dict[str, float]] = []
    start_s = clock.monotonic_s()
    while (now_s := clock.monotonic_s() - start_s) < 60 * minutes:
        samples.append({"at_s": now_s, **resident_mb(flink, job)})
        clock.sleep(LOOK_S)
    traffic.end()
    eventually(world.caught_up, WAIT_S)
    ended(job)
    grown = {name: growth(samples, name) for name in samples[-1] if name != "at_s"}
    report["memory"] = {
        "minutes": minutes,
        "samples": samples,
        "growth": grown,
        **verdict(world, traffic),
    }
    assert_equal(report["memory"])
    for name, one in grown.items():
        flat = one["share"] < MOST_GROWTH
        assert flat or one["mb_an_hour"] < MOST_MB_AN_HOUR, f"{name}: {one}"


def resident_mb(cluster: Cluster, job: Job) -> dict[str, float]:
    """Of each Java process, of its Python workers, and of the job's submitter."""
    found = {"submitter": psutil.Process(job.process.pid).memory_info().rss / 1e6}
    for name in cluster.options.processes:
        process = cluster.child(name).process()
        assert process is not None, f"{name} is gone"
        found[name] = process.memory_info().rss / 1e6
    for name, workers in cluster.workers().items():
        found[f"worker of {name}"] = sum(one.memory_info().rss for one in workers) / 1e6
    return found


def growth(samples: list[dict[str, float]], name: str) -> dict[str, float]:
    """Between the tenth after start-up and the last tenth: share, and MB an hour."""
    later = [one for one in samples if one["at_s"] >= min(SETTLED_S, samples[-1]["at_s"] / 2)]
    tenth = max(1, len(later) // 10)
    first, last = later[:tenth], later[-tenth:]
    before = sum(one[name] for one in first) / tenth
    after = sum(one[name] for one in last) / tenth
    hours = (last[0]["at_s"] - first[0]["at_s"]) / 3600
    return {
        "before_mb": round(before, 1),
        "after_mb": round(after, 1),
        "share": round((after - before) / before, 4),
        "mb_an_hour": round((after - before) / hours, 1) if hours else 0.0,
    }
