"""The guide in README, typed as it stands: every line runs, in order, on a real stack."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.supervise import Service, Supervisor, ready_line
from tests.neighbours import neighbours

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.splitlines()]
EXPORTS = dict(
    line.removeprefix("export ").split("=", 1) for line in LINES if line.startswith("export ")
)
# They work until they are stopped; the others end by themselves.
LASTING = ("features run", "features join", "features archive", "serve", "monitor", "control")
LASTING_TOO = ("simulate",)
# Part of a line -> the test that runs it: on data that is not here, or on a stack of its own.
ELSEWHERE = {
    "--flink": "integration/test_runners.py",
    "audit": "integration/test_audit.py",
    "experiment": "integration/test_experiment.py",
    "--rules": "integration/test_experiment.py",
    "features migrate": "chaos/test_migrate.py",
    "--backend": "integration/test_serve_backends.py",
    "export-litert": "integration/test_serve_backends.py",
    "--http-port": "integration/test_serve_network.py",
    "--share-ports": "integration/test_shared_ports.py",
    "--rows": "integration/test_backfill_rows.py",
    "repartition": "integration/test_repartition.py",
    "rebuild --user": "chaos/test_store_jobs.py",
    "ranklens": "integration/test_ingest_cli.py",
}

GUIDE = [
    line
    for line in LINES
    if line.startswith("millstream ") and not any(part in line for part in ELSEWHERE)
]
INLINE = sorted(
    {
        line
        for found in re.findall(r"`(millstream [a-z][^`]*)`", README)
        if (line := " ".join(found.split())) not in GUIDE
    }
)

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.timeout(900)]


@dataclass(frozen=True, slots=True)
class Shell:
    """Where the guide is followed: a folder of its own, ports of its own."""

    folder: Path
    environment: dict[str, str]
    supervisor: Supervisor
    running: dict[str, Service] = field(default_factory=dict)

    def type(self, line: str) -> None:
        """Run a line to its end, or, one that lasts, until it says that it is ready."""
        words = shlex.split(line)[1:]
        name = " ".join(words[:2] if words[0] in ("features", "stack") else words[:1])
        if name in LASTING or name in LASTING_TOO:
            self._lasting(line, words)
            return
        done = subprocess.run(
            self._command(words),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        # With one version there is nothing to roll back to: a refusal, and no failure.
        expected = 3 if line.endswith("rollback") else 0
        said = '"model_version": 1' if "--json" in words else "OK, recommender version 1"
        answered = words[0] != "request" or said in done.stdout
        assert answered, f"{line}: not answered by the model\n{done.stdout[-2000:]}"
        assert done.returncode == expected, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def _lasting(self, line: str, words: list[str]) -> None:
        log = self.folder / f"{'-'.join(words[:2])}.log"
        self.supervisor.start(
            Service(
                name=line,
                command=self._command(words),
                log=log,
                directory=self.folder,
                answers=ready_line(log),
                environment=self.environment,
                ready_timeout_s=120.0,
                stop_timeout_s=30.0,
            )
        )

    def _command(self, words: list[str]) -> tuple[str, ...]:
        return (sys.executable, "-m", "deploy.cli", *words)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    broker, store, registry = neighbours()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MILLSTREAM_")}  # noqa: TID251
    environment = {
        **inherited,
        **EXPORTS,
        "PYTHONPATH": str(ROOT),
        "MILLSTREAM_BOOTSTRAP_SERVERS": f"127.0.0.1:{broker}",
        "MILLSTREAM_REGISTRY_URL": f"http://127.0.0.1:{registry}",
        "MILLSTREAM_REDIS_URL": f"redis://127.0.0.1:{store}/0",
        "MILLSTREAM_DATA_DIR": str(ROOT / "out" / "data"),
    }
    with Supervisor() as supervisor:
        here = Shell(tmp_path, environment, supervisor)
        yield here
    subprocess.run(
        here._command(["stack", "down"]), cwd=tmp_path, env=environment, timeout=60, check=False
    )


def typed(line: str) -> str:
    """The line with what README leaves to the reader filled in."""
    return line.replace("VERSION", "1")


def test_every_command_of_the_guide_works_in_its_order(shell: Shell) -> None:
    for line in GUIDE:
        shell.type(typed(line))
    for line in INLINE:
        if typed(line) not in GUIDE and not any(part in line for part in ELSEWHERE):
            shell.type(typed(line))


@pytest.mark.parametrize(("words", "test"), sorted(ELSEWHERE.items()))
def test_what_is_not_typed_here_is_run_by_a_test_of_its_own(words: str, test: str) -> None:
    first = words.strip("-").split()[0]
    assert first in (ROOT / "tests" / test).read_text()
