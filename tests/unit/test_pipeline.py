"""The pipeline that each runner is given."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    StandardOptions,
    WorkerOptions,
)

from features import pipeline
from features.catalog import CATALOG
from features.declare import declared
from features.flink_keys import subtask
from features.job import JobConfig
from features.runner import JobServer, Runner, RunPlan
from ingest.settings import Settings
from schemas.errors import Misconfigured

CONFIG = JobConfig(
    settings=Settings(topic_prefix="a-"),
    partitions=(0, 1, 2, 3),
    declaration=declared(CATALOG),
)
SERVER = JobServer(endpoint="127.0.0.1:1", flink_master="127.0.0.1:2", worker_command="/worker")
GOOGLE = (
    *("--project=some-project", "--region=europe-west1", "--temp_location=gs://bucket/temp"),
    *("--num_workers=2", "--sdk_container_image=europe-docker.pkg.dev/some-project/millstream"),
)


@pytest.mark.parametrize("runner", [Runner.FNAPI, Runner.PRISM, Runner.DATAFLOW])
def test_elsewhere_than_on_flink_one_read_is_split(runner: Runner) -> None:
    (source,) = pipeline.sources(CONFIG, RunPlan(runner=runner, parallelism=2))
    assert [part.config.partitions for part in source.split(20)] == [(0, 2), (1, 3)]


@pytest.mark.parametrize("parallelism", [1, 2, 3, 4])
def test_on_flink_each_partition_has_a_read_in_the_subtask_whose_turn_it_is(
    parallelism: int,
) -> None:
    found = pipeline.sources(CONFIG, RunPlan(runner=Runner.FLINK, parallelism=parallelism))
    assert [source.config.partitions for source in found] == [(0,), (1,), (2,), (3,)]
    taken = [subtask(pipeline.element_key(source), parallelism) for source in found]
    assert taken == [at % parallelism for at in range(4)]


def test_a_pipeline_for_flink_has_a_fold_for_each_read() -> None:
    plan = RunPlan(runner=Runner.FLINK, parallelism=2, server=SERVER)
    names = _transforms(pipeline.planned(CONFIG, plan))
    assert {f"user-events-{p}" for p in range(4)} | {f"fold-{p}" for p in range(4)} <= names


def test_a_pipeline_for_dataflow_is_built_with_its_options_and_not_submitted() -> None:
    plan = RunPlan(runner=Runner.DATAFLOW, parallelism=4, beam_options=GOOGLE)
    made = pipeline.planned(CONFIG, plan)
    options = made.options
    assert options.view_as(StandardOptions).streaming
    assert options.view_as(StandardOptions).runner == "DataflowRunner"
    google = options.view_as(GoogleCloudOptions)
    assert (google.project, google.region, google.job_name[:-9]) == (
        "some-project",
        "europe-west1",
        "a-features",
    )
    assert google.enable_streaming_engine
    assert options.view_as(WorkerOptions).num_workers == 2
    assert {"user-events-0-1-2-3", "fold-0-1-2-3"} <= _transforms(made)


@pytest.mark.skipif(find_spec("apitools") is not None, reason="Google's client is installed")
def test_without_googles_client_a_job_for_dataflow_is_refused_with_what_to_install() -> None:
    plan = RunPlan(runner=Runner.DATAFLOW, beam_options=GOOGLE)
    with pytest.raises(Misconfigured, match=r"--runner dataflow: .*apache_beam\[gcp\]"):
        pipeline.submit(CONFIG, plan)


def _transforms(made) -> set[str]:
    proto = made.to_runner_api()
    return {one.unique_name for one in proto.components.transforms.values()}
