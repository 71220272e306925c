"""Where the network API listens, and what connections may do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificate (with its chain) and private key, both PEM."""

    cert_file: Path
    key_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Where to listen, and what connections may do."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one
    shared: bool = False  # with other processes that share it too
    tls: Tls | None = None
    header_s: float = 5.0  # in which the head of a request must come, and its body must begin
    max_header_bytes: int = 32 << 10
    keep_alive_s: int = 30
    unread_s: float = 30.0  # in which a client must read what was sent to it
    max_connections: int = 1024
    stop_s: int = 10  # how long calls under way may take when the server stops


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcOptions:
    """Where to listen, and what connections may do."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one
    shared: bool = False  # with other processes that share it too
    tls: Tls | None = None
    max_message_bytes: int = 4 << 20
    max_metadata_bytes: int = 32 << 10
    max_values: int = 1_000_000  # of all tensors of a call together
    max_calls: int = 1024  # under way
    # Of one connection. A stream counts until its end is acknowledged: a client with 60 calls under
    # way may have 100, and what is over the limit is refused, not queued.
    max_streams: int = 1024
    idle_s: int = 300  # a connection without calls is closed
    age_s: int = 3600  # after which a client has to connect anew
    message_s: float = 10.0  # in which the message of a call must come
    answer_s: float = 30.0
    stop_s: float = 10.0  # how long calls under way may take when the server stops
