"""`millstream replay` beside a running features job: the counts that it prints are exact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run
from tests.feature_world import World, jobs, make_world

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]


@pytest.fixture
def world(kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str]) -> World:
    return make_world(kafka, valkey, registry, unique_name("replay"))


def millstream(world: World, *arguments: str) -> int:
    settings = world.settings
    return run(
        [
            *("--bootstrap-servers", settings.bootstrap_servers),
            *("--registry-url", settings.registry_url),
            *("--redis-url", settings.redis_url),
            *("--prefix", settings.topic_prefix),
            *arguments,
        ]
    )


def kuairand() -> Path:
    for parent in Path(__file__).parents:
        if (found := parent / "shared/data/kuairand").is_dir():
            return found
    pytest.skip("real data is not here: put kuairand into ../shared/data")


def test_kuairand_is_folded_with_exactly_its_counts(
    world: World,
    tmp_path: Path,
    eventually: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = kuairand()
    with jobs(world, tmp_path) as start:
        job = start()
        eventually(lambda: "ready: " in job.output(), 60)
        code = millstream(world, "replay", "kuairand", str(folder), "--json")
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    sent, folded = told["sent"], told["folded"]
    assert (sent["rows"], sent["repeated_rows"]) == (94_784, 2_750)
    profiles = folded["accepted"].pop("PROFILE")
    assert profiles == sent["events"]["PROFILE"]
    assert folded["accepted"] == {
        "IMPRESSION": 92_034, "CLICK": 41_118, "LIKE": 1_603, "SHARE": 76, "DISLIKE": 63,
        "VIEW": 28_946,
    }  # fmt: skip
    repeated = sum(sent["events"].values()) - sum(sent["distinct"].values())
    assert repeated > 2_750  # a row is several events
    assert folded["duplicates"] == repeated
    assert (folded["late"], folded["rejected"], folded["lost"]) == (0, 0, 0)


def test_a_replay_says_soon_that_no_features_job_runs(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n7,Heat (1995),Action\n")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,7,3.0,9\n")
    films = ("replay", "movielens", str(tmp_path))
    assert millstream(world, *films) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "no features job" in told
    assert "millstream features run" in told
    assert sum(world.ends().values()) == 0  # nothing was sent
    assert millstream(world, *films, "--no-wait") == 0
