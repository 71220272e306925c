"""`millstream`'s own commands as child processes."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from deploy.supervise import Service, ready_line
from ingest.settings import PREFIX, Settings

READY_TIMEOUT_S = 90.0
STOP_S = 20.0


def environment(settings: Settings) -> dict[str, str]:
    """The settings as MILLSTREAM_* variables, for a child process."""
    return {PREFIX + f.name.upper(): str(getattr(settings, f.name)) for f in fields(settings)}


def command(*arguments: str) -> tuple[str, ...]:
    """A `millstream` command of this very installation."""
    return (sys.executable, "-m", "deploy.cli", *arguments)


def worker(name: str, settings: Settings, log: Path, *arguments: str) -> Service:
    """A command that runs until it is stopped, and says when it is ready."""
    return Service(
        name=name,
        command=command(*arguments),
        log=log,
        answers=ready_line(log),
        environment=environment(settings),
        ready_timeout_s=READY_TIMEOUT_S,
        stop_timeout_s=STOP_S,
    )
