"""The same events on every runner: the same rows and partials, byte for byte."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import prism
from ingest.settings import Settings
from tests.conftest import missing
from tests.feature_world import Job, World, events, jobs, make_world

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]

EVENTS = 10_000
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


def fold(world: World, job: Job, eventually: Eventually) -> None:
    """Let a job fold all there is, and end it as an operator would."""
    eventually(lambda: world.caught_up() or job.process.poll() is not None, 100)
    assert job.process.poll() is None, job.output()
    job.send(signal.SIGTERM)
    assert job.process.wait(40) == 0, job.output()


@pytest.mark.parametrize("parallelism", [1, 4])
@pytest.mark.usefixtures("_prism")
def test_prism_folds_as_an_undisturbed_fold_does(
    world: World,
    undisturbed: Contents,
    start_job: Callable[..., Job],
    eventually: Eventually,
    parallelism: int,
) -> None:
    fold(world, start_job("--runner", "prism", "--parallelism", str(parallelism)), eventually)
    assert world.contents() == undisturbed
