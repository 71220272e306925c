"""The small schema registry of `schemas.registry_server`, as a process of its own."""

from __future__ import annotations

import http.client
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.ports import LOOPBACK
from deploy.supervise import Service

_ANSWER_TIMEOUT_S = 1.0
_ROOT = Path(__file__).resolve().parent.parent  # where `schemas` is importable from


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """One registry. Its store under `directory` survives a restart."""

    directory: Path
    port: int

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"http://{LOOPBACK}:{self.port}"


def service(options: RegistryOptions, *, log: Path | None = None) -> Service:
    """Say how to run the registry."""
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    store = directory / "schemas.jsonl"
    return Service(
        name="registry",
        command=(
            *(sys.executable, "-m", "schemas.registry_server"),
            *("--port", str(options.port), "--store", str(store)),
        ),
        directory=_ROOT,
        log=log or directory / "registry.log",
        answers=lambda: answers(options.port),
        address=options.url,
    )


def answers(port: int) -> bool:
    """Whether a registry on this loopback port lists its subjects."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", "/subjects")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
