"""Backfill by Beam: on every runner, however the input is cut, what streaming gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from features.batch_job import Work
from tests.past import logged, story
from tests.recorded_world import contents, folded, recorded, streamed

PARTITIONS = 3


def runners() -> list[object]:
    """Beam's runners that are here; Prism where its binary is."""
    prism = shutil.which("prism")
    there = pytest.mark.skipif(
        prism is None, reason="no prism (go install .../sdks/v2/go/cmd/prism, on the PATH)"
    )
    return [
        pytest.param(Work(runner="fnapi"), id="fnapi"),
        pytest.param(
            Work(runner="prism", options=(f"--prism_location={prism}",)), id="prism", marks=there
        ),
    ]


@pytest.mark.parametrize("work", runners())
def test_rows_are_the_streaming_jobs_on_every_runner(work: Work, tmp_path: Path) -> None:
    log, registry = logged(story(300, users=9), PARTITIONS)
    expected = contents(streamed(log, registry), PARTITIONS)
    found = folded(recorded(log, registry, batch=17), registry, tmp_path, work)
    assert len(found) > 20
    assert found == expected
