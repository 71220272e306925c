"""
Connections to Redis or Valkey servers, one each. The one importer of `redis`.

An address is one URL:

* `redis://[user:password@]host:port/0`, `rediss://` with TLS, `unix:///path`: one server
* `redis+cluster://[user:password@]host:port,host:port`, `rediss+cluster://`: a cluster, found
  through any of the servers named

TLS takes redis-py's parameters: `?ssl_ca_certs=ca.pem&ssl_certfile=me.pem&ssl_keyfile=me.key`.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, HiredisRespSerializer
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    MovedError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from ingest.settings import masked
from schemas.errors import MillstreamError, Misconfigured, StoreUnavailable

Argument: TypeAlias = bytes | str | int
Command: TypeAlias = Sequence[Argument]
Address: TypeAlias = tuple[str, int]  # host and port

SETTING = "MILLSTREAM_REDIS_URL"
# A batch of rows comes in a few reads instead of one for every 64 kB.
READ_BYTES = 1 << 20
_PACKER: Any = HiredisRespSerializer()  # its annotations are wrong
_CLUSTER = "+cluster://"
_ALERT = "ALERT"  # in what TLS says when the other side refuses us
_FORBIDDEN = "NOPERM"  # also inside the error of a whole transaction
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class Redirected(Exception):
    """The keys stand on another server: for good (MOVED), or for this one time (ASK)."""

    def __init__(self, address: Address, asking: bool) -> None:
        super().__init__(address, asking)
        self.address = address
        self.asking = asking

    def __str__(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"


class Link:
    """
    One connection to one server, opened at need. Not thread-safe.

    Any error but Redirected closes it: whatever was watched or queued is gone.
    """

    def __init__(self, pool: ConnectionPool, address: Address | None = None) -> None:
        """`pool` is only redis-py's reader of addresses; `address` goes before its own."""
        options = {"socket_read_size": READ_BYTES, **pool.connection_kwargs}
        if address is not None:
            options |= {"host": address[0], "port": address[1]}
        self.host = str(options.get("host", "localhost"))
        self.name = str(options.get("path") or f"{self.host}:{options.get('port', 6379)}")
        self.opened = 0  # how often: tells a connection from the one before it
        self._connection: Connection = pool.connection_class(**options)

    @property
    def is_open(self) -> bool:
        """Whether the connection has been opened and no error has closed it."""
        return bool(self._connection.is_connected)

    def ask(self, *commands: Command) -> list[Any]:
        """
        Send the commands at once; their replies, in order.

        Raises:
            StoreUnavailable: the server did not answer, or refused for now.
            Misconfigured: it does not let us in.
            Redirected: another server of the cluster holds the keys.
        """
        self.send(*commands)
        return self.checked(self.receive(len(commands)), nested=commands[-1][0] == "EXEC")

    def send(self, *commands: Command) -> None:
        """The first half of `ask`."""
        try:
            if not self.is_open:
                self._connection.connect()
                self.opened += 1
            self._connection.send_packed_command([packed(commands)])
        except BaseException as error:
            raise self._closed(error) from error

    def receive(self, count: int) -> list[Any]:
        """As many replies; one that the server refused is its error, as a value."""
        try:
            return [self._reply() for _ in range(count)]
        except BaseException as error:
            raise self._closed(error) from error

    def checked(self, replies: list[Any], *, nested: bool = False) -> list[Any]:
        """Raise the error that says most: the first one, also inside an EXEC's reply."""
        inner = replies[-1] if nested and isinstance(replies[-1], list) else []
        for reply in (*replies, *inner):
            if isinstance(reply, AskError):
                raise Redirected((reply.host, reply.port), not isinstance(reply, MovedError))
            if isinstance(reply, Exception):
                raise self._closed(reply) from reply
        return replies

    def close(self) -> None:
        """Give the connection up. Idempotent."""
        self._connection.disconnect()

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error  # the replies behind it must be read too

    def _closed(self, error: BaseException) -> BaseException:
        """Close, and say what the error means to a caller."""
        self.close()
        return mapped(error) if isinstance(error, RedisError | OSError) else error


def pools(url: str, timeout_s: float) -> tuple[list[ConnectionPool], bool]:
    """
    What a URL says of each server that it names, and whether they are a cluster.

    Raises:
        Misconfigured: it is no address of a store.
    """
    clustered = _CLUSTER in url
    try:
        found = [
            ConnectionPool.from_url(
                one,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
            for one in (_apart(url) if clustered else [url])
        ]
        for pool in found:
            _check(pool.connection_kwargs, clustered)
    except (ValueError, TypeError) as error:
        raise Misconfigured(f"redis_url={masked(url)!r} is not an address: {error}") from error
    return found, clustered


def slot_of(key: str) -> int:
    """
    The cluster's slot of a key: of its hash tag, where it has one.

    >>> slot_of("u1234:{p0}:ann") == slot_of("pos1234:{p0}") == slot_of("p0")
    True
    """
    return int(key_slot(key.encode()))


def packed(commands: Sequence[Command]) -> bytes:
    """
    Commands as they go over the wire.

    redis-py checks and joins each argument on its own: 2.3 us for each, against 0.23 here.

    >>> packed([["GET", "k"], ["SET", b"k", 1]])
    b'*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n*3\\r\\n$3\\r\\nSET\\r\\n$1\\r\\nk\\r\\n$1\\r\\n1\\r\\n'
    """
    return b"".join([part for command in commands for part in _PACKER.pack(*command)])


def mapped(error: RedisError | OSError) -> MillstreamError:
    """What the caller is to do."""
    refusals = AuthenticationError | AuthorizationError | NoPermissionError
    if isinstance(error, refusals) or _FORBIDDEN in str(error):
        return Misconfigured(f"the store refuses us: {error}; check {SETTING}")
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Misconfigured(
                f"the store's certificate is not trusted ({cause.verify_message}); "
                f"check ssl_ca_certs and the host in {SETTING}"
            )
        if isinstance(cause, ssl.SSLError) and _ALERT in (cause.reason or ""):
            return Misconfigured(
                f"the store does not take our certificate ({cause.reason}); "
                f"check ssl_certfile and ssl_keyfile in {SETTING}"
            )
    return StoreUnavailable(f"{type(error).__name__}: {error}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _apart(url: str) -> list[str]:
    """
    The servers of a cluster's URL, each as a URL of its own.

    >>> _apart("rediss+cluster://me:pw@a:1,b:2/0?ssl_ca_certs=x")
    ['rediss://me:pw@a:1/0?ssl_ca_certs=x', 'rediss://me:pw@b:2/0?ssl_ca_certs=x']
    """
    parts = urlsplit(url)
    who, at, hosts = parts.netloc.rpartition("@")
    scheme = parts.scheme.removesuffix("+cluster")
    return [
        parts._replace(scheme=scheme, netloc=f"{who}{at}{host}").geturl()
        for host in hosts.split(",")
    ]


def _check(options: Mapping[str, Any], clustered: bool) -> None:
    """Raise ValueError for what would only fail later, or never."""
    if clustered and options.get("db"):
        raise ValueError("a cluster has only database 0")
    for name in _FILES:
        path = options.get(name)
        if path is not None and not Path(path).is_file():
            raise ValueError(f"{name}: there is no file {path}")
