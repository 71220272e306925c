"""What runs the models of a serving process, as a person chooses it. Pure."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from schemas.errors import Misconfigured

MAX_PORT: Final = 65_535


class Runtime(StrEnum):
    """Who computes."""

    SAVED_MODEL = "saved-model"  # TensorFlow in this process
    REMOTE = "remote"  # a TensorFlow Serving of the same models folder, over gRPC
    LITERT = "litert"  # LiteRT in this process: versions of `release export-litert`


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePolicy:
    """Where the model server is, and how long we put up with it."""

    address: str  # HOST:PORT
    tls_roots: Path | None = None  # PEM; None: no TLS
    deadline_s: float = 1.0  # of one call with all its tries
    load_s: float = 30.0  # the same, while a version is loaded: a cold server compiles
    attempts: int = 3  # in all, while the server cannot be reached
    back_off_s: float = 0.02  # before the second attempt; doubles; up to half of it by chance
    max_message_bytes: int = 16 << 20
    max_values: int = 4_000_000  # of all tensors of an answer

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        if min(self.deadline_s, self.load_s) <= 0:
            raise ValueError(f"deadlines are above 0, got {self.deadline_s} and {self.load_s} s")

    def pause_s(self, attempt: int, chance: float) -> float:
        """
        How long to wait after this attempt, the first being 1.

        >>> RemotePolicy(address="h:1").pause_s(2, chance=0.0)
        0.02
        """
        return self.back_off_s * float(2 ** (attempt - 1)) * (0.5 + 0.5 * chance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What runs the models."""

    runtime: Runtime = Runtime.SAVED_MODEL
    remote: RemotePolicy | None = None  # with Runtime.REMOTE only


def chosen(runtime: Runtime, remote: str | None, tls_roots: Path | None) -> Backend:
    """
    The back end of `--backend`, `--remote` and `--remote-tls-roots`.

    Raises:
        Misconfigured: they do not go together; every problem, in one message.

    >>> chosen(Runtime.REMOTE, "models:8500", None).remote.address
    'models:8500'
    """
    problems = []
    if runtime is Runtime.REMOTE and remote is None:
        problems.append("--backend remote needs --remote HOST:PORT")
    if runtime is not Runtime.REMOTE and remote is not None:
        problems.append(f"--remote {remote} goes with --backend remote, not {runtime.value}")
    if remote is not None and not _is_address(remote):
        problems.append(f"--remote is HOST:PORT, got {remote!r}")
    if tls_roots is not None:
        if remote is None:
            problems.append("--remote-tls-roots goes with --remote")
        problems += _roots_problems(tls_roots)
    if problems:
        raise Misconfigured("; ".join(problems))
    if remote is None:
        return Backend(runtime=runtime)
    return Backend(runtime=runtime, remote=RemotePolicy(address=remote, tls_roots=tls_roots))


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) <= MAX_PORT


def _roots_problems(path: Path) -> list[str]:
    """gRPC would say nothing, and never connect."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:  # SSLError too
        return [f"--remote-tls-roots {path} holds no certificates: {error.strerror or error}"]
    return []
