"""
The Beam runners that the features job knows, and what each is told.

Who starts a runner's job server (Prism) or knows where one is (Flink) is above this package: it
says so with `serve_with`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from ingest.settings import Settings
from schemas import errors
from schemas.errors import MillstreamError, Misconfigured, ProcessFailed

_CAUSE_CHARS = 2_000


class Runner(StrEnum):
    """Who runs the pipeline."""

    FNAPI = "fnapi"  # Beam's own, in this process
    PRISM = "prism"  # a process of ours schedules, this one folds
    FLINK = "flink"  # a cluster: its TaskManagers start the processes that fold
    DATAFLOW = "dataflow"  # Google's

    @property
    def here(self) -> bool:
        """Whether rows are folded in this very process."""
        return self in (Runner.FNAPI, Runner.PRISM)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobServer:
    """Where a pipeline is submitted to."""

    endpoint: str  # host:port of Beam's job service
    flink_master: str | None = None  # host:port of the JobManager's REST API
    worker_command: str | None = None  # what a TaskManager runs to have a Python worker


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """How the pipeline is to be run."""

    runner: Runner = Runner.FNAPI
    parallelism: int = 1  # shares of the partitions that are folded side by side
    server: JobServer | None = None  # of Prism and Flink
    beam_options: tuple[str, ...] = ()  # as the user gave them: they win

    def __post_init__(self) -> None:
        if self.parallelism < 1:
            raise ValueError(f"parallelism must be at least 1, got {self.parallelism}")


def job_name(settings: Settings, fingerprint: str) -> str:
    """
    What a cluster calls the job: each feature set has its own.

    >>> job_name(Settings(topic_prefix="a-"), "0123456789abcdef")
    'a-features-01234567'
    """
    return f"{settings.topic_prefix}features-{fingerprint[:8]}"


def beam_arguments(plan: RunPlan, job_name: str) -> list[str]:
    """
    Beam's options of a plan.

    Raises:
        Misconfigured: the runner needs a job server, or a worker's command, and none is known.

    >>> beam_arguments(RunPlan(), "features")
    ['--streaming', '--job_name=features']
    """
    general = ["--streaming", f"--job_name={job_name}"]
    match plan.runner:
        case Runner.FNAPI:
            own = []
        case Runner.PRISM:
            own = [f"--job_endpoint={_server(plan).endpoint}", "--environment_type=LOOPBACK"]
        case Runner.FLINK:
            own = _flink_arguments(_server(plan), plan.parallelism)
        case Runner.DATAFLOW:
            # Splittable reads need the portable worker; its state is kept by the service.
            own = [
                "--runner=DataflowRunner",
                *("--experiments=use_runner_v2", "--enable_streaming_engine"),
            ]
    return [*general, *own, *plan.beam_options]


def _server(plan: RunPlan) -> JobServer:
    if plan.server is None:
        raise Misconfigured(f"--runner {plan.runner} needs a job server: give --job-endpoint")
    return plan.server


def _flink_arguments(server: JobServer, parallelism: int) -> list[str]:
    if server.worker_command is None or server.flink_master is None:
        raise Misconfigured(
            "--runner flink with --job-endpoint needs --flink-master (host:port of its REST API, "
            "where a job is cancelled) and --worker-command (the program that a TaskManager runs "
            "to have a Python worker: `python -m features.harness` with the arguments it is given)"
        )
    return [
        f"--job_endpoint={server.endpoint}",
        "--environment_type=PROCESS",
        f"--environment_config={json.dumps({'command': server.worker_command})}",
        f"--parallelism={parallelism}",
        # As many groups of keys as subtasks: less kept for each bundle's end, and `features.keys`
        # can say which subtask gets which read.
        f"--max_parallelism={parallelism}",
    ]


def cause(text: str) -> MillstreamError:
    """
    The error that a remote job ended with, found in what its runner says.

    >>> cause("java.lang.Exception: Traceback\\n  schemas.errors.Misconfigured: no rows [while"
    ...       " running 'fold']\\n\\tat org.apache...")
    Misconfigured('no rows')
    """
    found = re.findall(r"schemas\.errors\.(\w+): (.*)", text)
    for name, message in reversed(found):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, MillstreamError):
            plain = re.sub(r" \[while running .*", "", message)
            return ProcessFailed(plain) if kind is errors.Rejected else kind(plain)
    return ProcessFailed(f"the job failed: {text.strip()[:_CAUSE_CHARS]}")


OpenJobServer = Callable[[Settings], AbstractContextManager[JobServer]]
_servers: dict[Runner, OpenJobServer] = {}


def serve_with(runner: Runner, open_server: OpenJobServer) -> None:
    """How this machine's job server of a runner is had: a package above says it."""
    _servers[runner] = open_server


def local_server(runner: Runner, settings: Settings) -> AbstractContextManager[JobServer]:
    """
    This machine's job server of a runner, started if that is how it is had.

    Raises:
        Misconfigured: nobody knows one.
    """
    if runner not in _servers:
        raise Misconfigured(f"--runner {runner} needs a job server: give --job-endpoint")
    return _servers[runner](settings)
