"""What each runner is told, and what is read from what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from features.runner import JobServer, Runner, RunPlan, beam_arguments, cause, local_server
from ingest.settings import Settings
from schemas.errors import Misconfigured, PositionMoved, ProcessFailed

SERVER = JobServer(
    endpoint="127.0.0.1:1", flink_master="127.0.0.1:2", worker_command="/opt/it's/worker"
)

JAVA_TRACE = """\
java.util.concurrent.ExecutionException: java.lang.RuntimeException: Error received from SDK harness
for instruction 4: Traceback (most recent call last):
  File "split.py", line 1, in handle
schemas.errors.StoreUnavailable: no answer

During handling of the above exception, another exception occurred:
schemas.errors.PositionMoved: partition 1 was taken over [while running 'fold-1/ParDo(FoldBatches)']

\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient.get(FnApiControlClient.java:180)
"""


def test_flink_is_told_as_many_key_groups_as_subtasks_and_what_to_run() -> None:
    told = beam_arguments(RunPlan(runner=Runner.FLINK, parallelism=3, server=SERVER), "job")
    assert {"--parallelism=3", "--max_parallelism=3", "--job_endpoint=127.0.0.1:1"} <= set(told)
    assert '--environment_config={"command": "/opt/it\'s/worker"}' in told
    assert not any("checkpoint" in one for one in told)


def test_options_of_the_user_come_last_so_that_they_win() -> None:
    plan = RunPlan(runner=Runner.PRISM, server=SERVER, beam_options=("--environment_type=DOCKER",))
    assert beam_arguments(plan, "job")[-1] == "--environment_type=DOCKER"


@pytest.mark.parametrize("runner", [Runner.PRISM, Runner.FLINK])
def test_a_runner_without_a_job_server_is_told(runner: Runner) -> None:
    with pytest.raises(Misconfigured, match="--job-endpoint"):
        beam_arguments(RunPlan(runner=runner), "job")


@pytest.mark.parametrize("left_out", ["flink_master", "worker_command"])
def test_flink_elsewhere_needs_its_rest_api_and_the_command_of_its_workers(left_out: str) -> None:
    plan = RunPlan(runner=Runner.FLINK, server=replace(SERVER, **{left_out: None}))
    with pytest.raises(Misconfigured, match=r"--flink-master .* --worker-command"):
        beam_arguments(plan, "job")


def test_a_runner_that_nobody_serves_is_told() -> None:
    with pytest.raises(Misconfigured, match="--job-endpoint"):
        local_server(Runner.DATAFLOW, Settings())


def test_the_last_error_of_ours_in_a_java_trace_is_the_cause() -> None:
    found = cause(JAVA_TRACE)
    assert type(found) is PositionMoved
    assert str(found) == "partition 1 was taken over"


@pytest.mark.parametrize("text", ["java.lang.OutOfMemoryError", "schemas.errors.NoSuch: x", ""])
def test_a_text_without_an_error_of_ours_is_a_failed_process(text: str) -> None:
    assert isinstance(cause(text), ProcessFailed)
    assert text[:20] in str(cause(text))


def test_an_error_with_two_arguments_does_not_break_the_telling() -> None:
    assert str(cause("schemas.errors.Rejected: poison: why")) == "poison: why"


def test_no_share_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        RunPlan(parallelism=0)
