"""
Prism, Beam's own runner in Go: built once into the cache, run as a process beside the job.

It schedules and streams; rows are folded in the process that submitted the pipeline.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as distribution_version
from pathlib import Path

from deploy.ports import LOOPBACK, reserve
from deploy.supervise import Service, Supervisor
from features.runner import JobServer
from ingest.settings import Settings
from schemas.errors import Misconfigured

MODULE = "github.com/apache/beam/sdks/v2/go/cmd/prism"
REMEDY = "install Go (https://go.dev/dl) and run `make setup`"
_BUILD_TIMEOUT_S = 1_200.0
_ANSWER_TIMEOUT_S = 1.0


def version() -> str:
    """The one that belongs to the installed Beam."""
    return f"v{distribution_version('apache-beam')}"


def binary(cache_dir: Path) -> Path:
    """Where the built program lies, or shall lie."""
    return cache_dir.expanduser() / f"prism-{version()}"


def build(cache_dir: Path) -> Path:
    """
    Have the program in the cache, built by Go if it is not there. Safe to call from many processes.

    Raises:
        Misconfigured: there is no Go on this machine, or it cannot build it.
    """
    target = binary(cache_dir)
    if target.exists():
        return target
    go = shutil.which("go")
    if go is None:
        raise Misconfigured(f"Prism is not built, and there is no Go: {REMEDY}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():  # another process may have been first
            _install(go, target)
    return target


def _install(go: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as staging:
        done = subprocess.run(
            [go, "install", f"{MODULE}@{version()}"],
            env={**os.environ, "GOBIN": staging},  # noqa: TID251 - handed on, not read
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise Misconfigured(f"Go could not build Prism: {done.stderr.strip()[-500:]}")
        os.replace(Path(staging) / "prism", target)


def service(program: Path, port: int, log: Path) -> Service:
    """Say how to run Prism, with its job server on this loopback port."""
    return Service(
        name="prism",
        command=(
            str(program),
            *(f"-job_port={port}", "-serve_http=false", "-log_level=warn"),
        ),
        log=log,
        answers=lambda: answers(port),
        address=f"{LOOPBACK}:{port}",
    )


def answers(port: int) -> bool:
    """Whether somebody listens on this loopback port."""
    try:
        socket.create_connection((LOOPBACK, port), _ANSWER_TIMEOUT_S).close()
    except OSError:
        return False
    return True


@contextmanager
def serving(settings: Settings) -> Iterator[JobServer]:
    """
    A Prism of one job's own, which ends with it.

    Raises:
        Misconfigured: it is not built and cannot be built here.
        ProcessFailed: it did not come up.
    """
    program = binary(settings.cache_dir)
    if not program.exists():
        raise Misconfigured(f"Prism is not in the cache: {REMEDY}")
    with Supervisor() as supervisor:
        with reserve(1) as reserved:
            port = reserved.numbers[0]
            made = service(program, port, settings.stack_dir / "logs" / f"prism-{os.getpid()}.log")
            supervisor.start(made)
        yield JobServer(endpoint=made.address)


if __name__ == "__main__":
    build(Settings.load().cache_dir)
