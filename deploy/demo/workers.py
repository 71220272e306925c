"""The demo's processes: the stack and the workers, each what a user would start by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from deploy import stack
from deploy.commands import STOP_S, command, environment, worker
from deploy.ports import LOOPBACK, is_free
from deploy.supervise import Service, Supervisor
from ingest.settings import Settings
from schemas.errors import Misconfigured

_PORTS_FROM = 19_192


def demo_settings(base: Settings, root: Path) -> Settings:
    """Everything of the demo below one folder and on ports of its own."""
    kafka, _controller, redis, registry = _free_ports()
    return replace(
        base,
        bootstrap_servers=f"{LOOPBACK}:{kafka}",
        redis_url=f"redis://{LOOPBACK}:{redis}/0",
        registry_url=f"http://{LOOPBACK}:{registry}",
        profile="demo",
        stack_dir=root / "stack",
        archive_dir=root / "archive",
        models_dir=root / "models",
        keys_dir=root / "keys",
    )


def _free_ports() -> tuple[int, int, int, int]:
    """Four neighbours, the first such that are free; the broker takes the first two."""
    for first in range(_PORTS_FROM, _PORTS_FROM + 1_000, 10):
        ports = (first, first + 1, first + 2, first + 3)
        if all(map(is_free, ports)):
            return ports
    raise Misconfigured(f"no four free ports from {_PORTS_FROM} on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Starts and stops the demo's processes."""

    settings: Settings
    supervisor: Supervisor
    logs: Path

    def start_stack(self, partitions: int) -> None:
        """Kafka, Valkey and the registry, and the topics."""
        for part in stack.parts(self.settings, partitions):
            self.supervisor.start(part.service())
        stack.create_topics(self.settings, partitions)

    def worker(self, name: str, *arguments: str) -> None:
        """Start a long-running command and return when it says that it is ready."""
        self.begin(name, *arguments)
        self.supervisor.wait(name)

    def begin(self, name: str, *arguments: str) -> None:
        """Start a long-running command; the supervisor waits for it when told to."""
        log = self.logs / f"{name}.log"
        self.supervisor.begin(worker(name, self.settings, log, *arguments))

    def finished(self, name: str, *arguments: str) -> None:
        """Run a command to its end.

        Raises:
            ProcessFailed: it failed; the end of its log is in the message.
        """
        log = self.logs / f"{name}.log"
        service = Service(
            name=name,
            command=command(*arguments),
            log=log,
            answers=lambda: True,
            environment=environment(self.settings),
            stop_timeout_s=STOP_S,
        )
        self.supervisor.run(service)
