"""
The feature store in Redis or Valkey. The one importer of `redis`.

Keys, with the partition as cluster hash tag and the feature set's short fingerprint `<set>`:

* `u<set>:{pN}:<user>`  a user row; expires a week after its lifetime, which only collects garbage
* `i<set>:{pN}:<item>`  the absolute partial of an item
* `pos<set>:{pN}`       the position: cluster and topic id, lease epoch, next offset
* `d<set>:{pN}`         sorted set of unpublished items, scored by the next offset of their change

A batch is read by `WATCH` and `MGET` in one round trip and written by `MULTI .. EXEC`, both on one
dedicated connection. A lost connection has lost its watch: what follows starts with `WATCH` again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from features.declare import DAY_MS
from features.position import decoded, encoded
from features.store import Keys, Lease, Position, Snapshot, Unpublished, Update, Values
from features.store_memory import check_unmoved, claimed
from schemas.errors import Misconfigured, PositionMoved, StoreUnavailable

Argument: TypeAlias = bytes | str | int
Command: TypeAlias = Sequence[Argument]

TTL_MARGIN_MS = 7 * DAY_MS
SCAN_COUNT = 1_000
CLAIM_TRIES = 10

# Removes the members whose score has not passed the mark; one script, so no change slips between.
_SETTLE = """
for i = 2, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) <= tonumber(ARGV[1]) then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
"""


class RedisStore:
    """
    Implements RowWriter, RowReader and PartialOutbox of `features.store`.

    Writing and reading go over one connection each, so a serving or publishing thread may read
    while the worker's thread writes.
    """

    def __init__(
        self,
        url: str,
        fingerprint: str,
        *,
        lifetime_ms: int = 90 * DAY_MS,
        timeout_s: float = 5.0,
    ) -> None:
        """Connects at first use. `lifetime_ms` is the row policy's."""
        self.set_name = fingerprint[:8]
        self._ttl_ms = lifetime_ms + TTL_MARGIN_MS
        self._writer = _Link(url, timeout_s)
        self._reader = _Link(url, timeout_s)
        self._watched: Lease | None = None
        self._has_msetex: bool | None = None  # None: not asked yet

    def close(self) -> None:
        """Give up the connections. Idempotent."""
        self._watched = None
        self._writer.close()
        self._reader.close()

    def claim(self, partition: int, start: Position | None) -> Lease:
        self._check_server()
        key = self._position_key(partition)
        for _ in range(CLAIM_TRIES):
            with self._watching():
                stored = self._writer.ask(["UNWATCH"], ["WATCH", key], ["GET", key])[-1]
                position = claimed(partition, decoded(stored), start)
                only = ["NX"] if stored is None else ["XX"]
                done = self._writer.ask(
                    ["MULTI"], ["SET", key, encoded(position), *only], ["EXEC"], held=True
                )
            if done[-1] is not None and done[-1][0] is not None:
                return Lease(partition=partition, position=position)
        raise StoreUnavailable(f"partition {partition} was claimed by others {CLAIM_TRIES} times")

    def read(self, lease: Lease, users: Sequence[str], items: Sequence[str]) -> Values:
        self._watched = None
        position = self._position_key(lease.partition)
        rows = self._prefix("u", lease.partition)
        partials = self._prefix("i", lease.partition)
        keys = [position, *[rows + user for user in users], *[partials + item for item in items]]
        found = self._writer.ask(["UNWATCH"], ["WATCH", position], ["MGET", *keys])[-1]
        check_unmoved(lease, decoded(found[0]))
        self._watched = lease
        return Values(rows=found[1 : len(users) + 1], partials=found[len(users) + 1 :])

    def write(self, lease: Lease, update: Update) -> Lease:
        if self._watched != lease:
            self.read(lease, (), ())
        moved = Lease(partition=lease.partition, position=lease.position.after(update))
        with self._watching():
            done = self._writer.ask(["MULTI"], *self._changes(moved, update), ["EXEC"], held=True)[
                -1
            ]
        if done is None:
            raise PositionMoved(f"partition {lease.partition} was written while {lease} folded")
        return moved

    def clear(self, lease: Lease, *, position: bool = False) -> int:
        pages = self._scan(self._patterns(lease.partition))
        count = sum(self._delete(lease, keys) for keys in pages)
        if position:
            self._delete(lease, [self._position_key(lease.partition)])
        return count

    def snapshots(self, users: Mapping[int, Sequence[str]]) -> dict[int, Snapshot]:
        commands = []
        for partition, wanted in users.items():
            prefix = self._prefix("u", partition)
            commands.append(
                ["MGET", self._position_key(partition), *[prefix + user for user in wanted]]
            )
        found = self._reader.ask_again(*commands) if commands else []
        return {
            partition: Snapshot(position=decoded(values[0]), rows=values[1:])
            for partition, values in zip(users, found, strict=True)
        }

    def positions(self, partitions: Sequence[int]) -> dict[int, Position | None]:
        snapshots = self.snapshots(dict.fromkeys(partitions, ()))
        return {partition: snapshot.position for partition, snapshot in snapshots.items()}

    def partials(self, partition: int, items: Sequence[str]) -> Snapshot:
        prefix = self._prefix("i", partition)
        found = self._reader.ask_again(
            ["MGET", self._position_key(partition), *[prefix + item for item in items]]
        )[0]
        return Snapshot(position=decoded(found[0]), rows=found[1:])

    def keys(self, partition: int) -> Keys:
        found: dict[str, set[str]] = {}
        for kind in ("u", "i"):
            prefix = self._prefix(kind, partition)
            found[kind] = {
                key.decode()[len(prefix) :] for page in self._scan([prefix + "*"]) for key in page
            }
        return Keys(users=frozenset(found["u"]), items=frozenset(found["i"]))

    def unpublished(self, partition: int, limit: int) -> Unpublished:
        waiting = self._reader.ask_again(
            ["ZRANGE", self._waiting_key(partition), 0, limit - 1, "WITHSCORES"]
        )[0]
        items = [item.decode() for item in waiting[::2]]
        # Bytes newer than the mark are sent again later: settle keeps what has changed since.
        found = self.partials(partition, items)
        values = zip(items, found.rows, strict=True)
        return Unpublished(
            partials={item: value for item, value in values if value is not None},
            mark=int(waiting[-1]) if waiting else 0,
            events_offset=found.position.next_offset if found.position else 0,
        )

    def settle(self, partition: int, mark: int, items: Sequence[str]) -> None:
        if items:
            key = self._waiting_key(partition)
            self._reader.ask_again(["EVAL", _SETTLE, 1, key, mark, *items])

    def _delete(self, lease: Lease, keys: Sequence[bytes | str]) -> int:
        """Delete keys while the lease holds; their number."""
        self.read(lease, (), ())
        with self._watching():
            done = self._writer.ask(["MULTI"], ["UNLINK", *keys], ["EXEC"], held=True)[-1]
        if done is None:
            raise PositionMoved(f"partition {lease.partition} was taken over while cleared")
        return int(done[0])

    def _changes(self, moved: Lease, update: Update) -> list[Command]:
        partition = moved.partition
        commands: list[Command] = []
        if update.rows and self._has_msetex:
            rows = self._keyed("u", partition, update.rows)
            commands.append(["MSETEX", len(update.rows), *rows, "PX", self._ttl_ms])
        elif update.rows:
            rows = self._keyed("u", partition, update.rows)
            pairs = zip(rows[::2], rows[1::2], strict=True)
            commands += [["SET", key, row, "PX", self._ttl_ms] for key, row in pairs]
        if update.partials:
            scores: list[Argument] = []
            for item in update.partials:
                scores += (update.next_offset, item)
            # Without expiry: there are as many as the catalogue has items.
            commands += [
                ["MSET", *self._keyed("i", partition, update.partials)],
                ["ZADD", self._waiting_key(partition), *scores],
            ]
        return [*commands, ["SET", self._position_key(partition), encoded(moved.position)]]

    def _keyed(self, kind: str, partition: int, values: Mapping[str, bytes]) -> list[bytes]:
        """Keys and values in turn."""
        prefix = self._prefix(kind, partition)
        flat: list[bytes] = []
        for name, value in values.items():
            flat += ((prefix + name).encode(), value)
        return flat

    def _check_server(self) -> None:
        """Once a store: what the server can and may do."""
        if self._has_msetex is not None:
            return
        known, memory = self._writer.ask(["COMMAND", "INFO", "MSETEX"], ["INFO", "memory"])
        policy = _info(memory, "maxmemory_policy")
        if policy != "noeviction":
            raise Misconfigured(
                f"the store may evict rows (maxmemory-policy is {policy}); run "
                "`valkey-cli CONFIG SET maxmemory-policy noeviction` and set it in its config file"
            )
        self._has_msetex = bool(known and known[0])

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Leave no watch behind: a transaction ends it, a failure drops the connection."""
        self._watched = None
        try:
            yield
        except BaseException:
            self._writer.close()
            raise

    def _scan(self, patterns: Sequence[str]) -> Iterator[Sequence[bytes]]:
        """Pages of the keys that match."""
        for pattern in patterns:
            cursor: bytes | int = 0
            while True:
                cursor, page = self._reader.ask_again(
                    ["SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT]
                )[0]
                if page:
                    yield page
                if cursor == b"0":
                    break

    def _patterns(self, partition: int) -> list[str]:
        """What matches all that a partition has, its position excepted."""
        prefixes = [self._prefix(kind, partition) + "*" for kind in ("u", "i")]
        return [*prefixes, self._waiting_key(partition)]

    def _prefix(self, kind: str, partition: int) -> str:
        return f"{kind}{self.set_name}:{{p{partition}}}:"

    def _position_key(self, partition: int) -> str:
        return f"pos{self.set_name}:{{p{partition}}}"

    def _waiting_key(self, partition: int) -> str:
        return f"d{self.set_name}:{{p{partition}}}"


class _Link:
    """
    One connection. It is opened at need, but never while a caller holds a watch on it.

    Any error closes it: whatever was watched or queued is gone, and the next call starts afresh.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            # The pool is only redis-py's reader of addresses; it never holds a connection.
            pool = ConnectionPool.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError as error:
            raise Misconfigured(f"redis_url={url!r} is not an address: {error}") from error
        self._connection: Connection = pool.connection_class(**pool.connection_kwargs)
        self._lock = threading.Lock()

    def ask(self, *commands: Command, held: bool = False) -> list[Any]:
        """
        Send the commands at once; their replies, in order.

        With `held`, the connection must be the one of the last call: it is not opened again.

        Raises:
            StoreUnavailable: the server did not answer, or refused for now.
            Misconfigured: it does not let us in.
        """
        with self._lock:
            if held and not self._connection.is_connected:
                raise StoreUnavailable("the connection and its watch were lost")
            try:
                self._connection.send_packed_command([packed(commands)])
                replies = [self._reply() for _ in commands]
                _check(replies, nested=commands[-1][0] == "EXEC")
            except BaseException as error:
                self._connection.disconnect()
                if isinstance(error, RedisError | OSError):
                    raise _mapped(error) from error
                raise
            return replies

    def ask_again(self, *commands: Command) -> list[Any]:
        """As `ask`, for what may safely be done twice: a stale connection gets a second try."""
        fresh = not self._connection.is_connected
        try:
            return self.ask(*commands)
        except StoreUnavailable:
            if fresh:
                raise
            return self.ask(*commands)

    def close(self) -> None:
        with self._lock:
            self._connection.disconnect()

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error  # the replies behind it must be read too


def packed(commands: Sequence[Command]) -> bytes:
    """
    Commands as they go over the wire.

    redis-py checks and joins each argument on its own: 2.3 us for each, against 0.35 here.

    >>> packed([["GET", "k"], ["SET", b"k", 1]])
    b'*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n*3\\r\\n$3\\r\\nSET\\r\\n$1\\r\\nk\\r\\n$1\\r\\n1\\r\\n'
    """
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for argument in command:
            value = argument if isinstance(argument, bytes) else str(argument).encode()
            parts += (b"$%d\r\n" % len(value), value, b"\r\n")
    return b"".join(parts)


def _check(replies: Sequence[Any], *, nested: bool) -> None:
    """Raise the error that says most: the first one, also inside an EXEC's reply."""
    inner = replies[-1] if nested and isinstance(replies[-1], list) else []
    for reply in (*replies, *inner):
        if isinstance(reply, Exception):
            raise reply


def _mapped(error: RedisError | OSError) -> Misconfigured | StoreUnavailable:
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return Misconfigured(f"the store refuses us: {error}; check MILLSTREAM_REDIS_URL")
    return StoreUnavailable(f"{type(error).__name__}: {error}")


def _info(text: bytes, name: str) -> str:
    """One field of INFO's reply."""
    for line in text.decode().splitlines():
        if line.startswith(name + ":"):
            return line[len(name) + 1 :]
    return "unknown"
