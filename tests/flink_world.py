"""A Flink cluster of processes that can be killed one by one."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy import flink
from deploy.supervise import Child, Service, Supervisor
from features.flink_rest import JobManager


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """JobManager, TaskManagers and job server, children of the test's supervisor."""

    options: flink.FlinkOptions
    services: tuple[Service, ...]
    supervisor: Supervisor
    logs: Path

    @property
    def master(self) -> JobManager:
        return JobManager(self.options.server.flink_master or "")

    def run_options(self, parallelism: int = 2) -> tuple[str, ...]:
        """Of `millstream features run`."""
        server = self.options.server
        return (
            *("--runner", "flink", "--parallelism", str(parallelism)),
            *("--job-endpoint", server.endpoint),
            *("--flink-master", str(server.flink_master)),
            *("--worker-command", str(server.worker_command)),
        )

    def child(self, name: str) -> Child:
        return self.supervisor.child(name)

    def kill(self, name: str) -> None:
        """SIGKILL to a Java process; its Python workers end by themselves."""
        os.kill(self.child(name).pid, signal.SIGKILL)

    def start(self, *names: str) -> None:
        """Start again what was killed."""
        self.supervisor.start_together([one for one in self.services if one.name in names])

    def workers(self) -> dict[str, list[psutil.Process]]:
        """Python workers that run now, by TaskManager."""
        found = {}
        for name in self.options.processes:
            process = self.child(name).process()
            children = [] if process is None else process.children(recursive=True)
            if name.startswith("taskmanager"):
                found[name] = [one for one in children if _is_worker(one)]
        return found

    def worker_log(self) -> str:
        log = self.logs / "flink-workers.log"
        return log.read_text() if log.exists() else ""


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "features.harness" in process.cmdline()
    except psutil.NoSuchProcess:
        return False
