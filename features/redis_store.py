"""
The feature store in Redis or Valkey, one server or a cluster.

Keys, with the partition as cluster hash tag and the feature set's short fingerprint `<set>`:

* `u<set>:{pN}:<user>`  a user row; expires a week after its lifetime, which only collects garbage
* `i<set>:{pN}:<item>`  the absolute partial of an item
* `pos<set>:{pN}`       the position: cluster and topic id, lease epoch, next offset
* `d<set>:{pN}`         sorted set of unpublished items, scored by the next offset of their change

A batch is read by `WATCH` and `MGET` in one round trip and written by `MULTI .. EXEC`, both on the
writer's connection to the server that holds the partition. A lost connection has lost its watch,
and so has a partition that went to another server: what follows starts with `WATCH` again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from features.declare import DAY_MS
from features.position import decoded, encoded
from features.redis_link import Argument, Command
from features.redis_servers import Route, Servers
from features.store import Keys, Lease, Position, Snapshot, Unpublished, Update, Values
from features.store_memory import check_unmoved, claimed
from schemas.errors import Misconfigured, PositionMoved, StoreUnavailable

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

    Writing and reading have connections of their own, so a serving or publishing thread may read
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
        self._writer = Servers(url, timeout_s)
        self._reader = Servers(url, timeout_s)
        self._watched: tuple[Lease, Route] | None = None
        self._has_msetex: dict[str, bool] = {}  # of the servers that were asked

    def close(self) -> None:
        """Give up the connections. Idempotent."""
        self._watched = None
        self._writer.close()
        self._reader.close()

    def claim(self, partition: int, start: Position | None) -> Lease:
        self._watched = None
        key = self._position_key(partition)
        for _ in range(CLAIM_TRIES):
            route, replies = self._writer.ask(key, ["UNWATCH"], ["WATCH", key], ["GET", key])
            with self._dropped(route):
                self._check_server(route)
                stored = replies[-1]
                position = claimed(partition, decoded(stored), start)
                only = ["NX"] if stored is None else ["XX"]
                done = self._writer.go_on(
                    route, ["MULTI"], ["SET", key, encoded(position), *only], ["EXEC"]
                )
            if done[-1] is not None and done[-1][0] is not None:
                return Lease(partition=partition, position=position)
        raise StoreUnavailable(f"partition {partition} was claimed by others {CLAIM_TRIES} times")

    def read(self, lease: Lease, users: Sequence[str], items: Sequence[str]) -> Values:
        self._watched = None
        route, values = self._watch(lease, users, items)
        self._watched = lease, route
        return values

    def write(self, lease: Lease, update: Update) -> Lease:
        moved = Lease(partition=lease.partition, position=lease.position.after(update))
        with self._ending(lease) as route:
            self._check_server(route)
            changes = self._changes(moved, update, self._has_msetex[route.link.name])
            done = self._writer.go_on(route, ["MULTI"], *changes, ["EXEC"])[-1]
        if done is None:
            raise PositionMoved(f"partition {lease.partition} was written while {lease} folded")
        return moved

    def clear(self, lease: Lease, *, position: bool = False) -> int:
        pages = self._scan(lease.partition, self._patterns(lease.partition))
        count = sum(self._delete(lease, keys) for keys in pages)
        if position:
            self._delete(lease, [self._position_key(lease.partition)])
        return count

    def snapshots(self, users: Mapping[int, Sequence[str]]) -> dict[int, Snapshot]:
        keyed: list[tuple[str, Command]] = []
        for partition, wanted in users.items():
            position, prefix = self._position_key(partition), self._prefix("u", partition)
            keyed.append((position, ["MGET", position, *[prefix + user for user in wanted]]))
        found = self._reader.each(keyed)
        return {
            partition: Snapshot(position=decoded(values[0]), rows=values[1:])
            for partition, values in zip(users, found, strict=True)
        }

    def positions(self, partitions: Sequence[int]) -> dict[int, Position | None]:
        snapshots = self.snapshots(dict.fromkeys(partitions, ()))
        return {partition: snapshot.position for partition, snapshot in snapshots.items()}

    def partials(self, partition: int, items: Sequence[str]) -> Snapshot:
        position, prefix = self._position_key(partition), self._prefix("i", partition)
        found = self._asked(position, ["MGET", position, *[prefix + item for item in items]])
        return Snapshot(position=decoded(found[0]), rows=found[1:])

    def keys(self, partition: int) -> Keys:
        found: dict[str, set[str]] = {}
        for kind in ("u", "i"):
            prefix = self._prefix(kind, partition)
            found[kind] = {
                key.decode()[len(prefix) :]
                for page in self._scan(partition, [prefix + "*"])
                for key in page
            }
        return Keys(users=frozenset(found["u"]), items=frozenset(found["i"]))

    def unpublished(self, partition: int, limit: int) -> Unpublished:
        key = self._waiting_key(partition)
        waiting = self._asked(key, ["ZRANGE", key, 0, limit - 1, "WITHSCORES"])
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
            self._asked(key, ["EVAL", _SETTLE, 1, key, mark, *items])

    def _asked(self, key: str, command: Command) -> Any:
        """The reply to what may safely be done twice, by whoever holds the key."""
        return self._reader.each([(key, command)])[0]

    def _delete(self, lease: Lease, keys: Sequence[bytes | str]) -> int:
        """Delete keys while the lease holds; their number."""
        with self._ending(lease) as route:
            done = self._writer.go_on(route, ["MULTI"], ["UNLINK", *keys], ["EXEC"])[-1]
        if done is None:
            raise PositionMoved(f"partition {lease.partition} was taken over while cleared")
        return int(done[0])

    def _changes(self, moved: Lease, update: Update, has_msetex: bool) -> list[Command]:
        partition = moved.partition
        commands: list[Command] = []
        if update.rows and has_msetex:
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

    def _check_server(self, route: Route) -> None:
        """Once for each server: what it can and may do."""
        name = route.link.name
        if name in self._has_msetex:
            return
        known, memory = self._writer.go_on(route, ["COMMAND", "INFO", "MSETEX"], ["INFO", "memory"])
        policy = _info(memory, "maxmemory_policy")
        if policy != "noeviction":
            raise Misconfigured(
                f"the store at {name} may evict rows (maxmemory-policy is {policy}); run "
                "`valkey-cli CONFIG SET maxmemory-policy noeviction` and set it in its config file"
            )
        self._has_msetex[name] = bool(known and known[0])

    def _watch(
        self, lease: Lease, users: Sequence[str], items: Sequence[str]
    ) -> tuple[Route, Values]:
        """Values as of the lease's position, and the connection that watches it."""
        position = self._position_key(lease.partition)
        rows = self._prefix("u", lease.partition)
        partials = self._prefix("i", lease.partition)
        keys = [position, *[rows + user for user in users], *[partials + item for item in items]]
        watch = [["UNWATCH"], ["WATCH", position], ["MGET", *keys]]
        route, (_, _, found) = self._writer.ask(position, *watch)
        check_unmoved(lease, decoded(found[0]))
        return route, Values(rows=found[1 : len(users) + 1], partials=found[len(users) + 1 :])

    @contextmanager
    def _ending(self, lease: Lease) -> Iterator[Route]:
        """
        The connection that watches the lease's position, from `read` on or from now.

        Leaves no watch behind: a transaction ends it, a failure drops the connection.
        """
        watched, self._watched = self._watched, None
        if watched is not None and watched[0] == lease:
            route = watched[1]
        else:
            route, _ = self._watch(lease, (), ())
        with self._dropped(route):
            yield route

    @contextmanager
    def _dropped(self, route: Route) -> Iterator[None]:
        """A failure drops the connection, and what is watched on it."""
        try:
            yield
        except BaseException:
            self._writer.drop(route)
            raise

    def _scan(self, partition: int, patterns: Sequence[str]) -> Iterator[Sequence[bytes]]:
        """
        Pages of the keys that match, all from the one server that holds the partition.

        A server lists what it has, and says nothing of keys that are on their way to another. So
        each page is followed by a question for a key that never is: answered by who holds the
        whole slot, and by nobody else.

        Raises:
            StoreUnavailable: also if the partition is moved meanwhile.
        """
        never = self._prefix("never", partition)
        route, _ = self._reader.ask(never, ["EXISTS", never])
        for pattern in patterns:
            cursor: bytes = b"0"
            while True:
                page: Command = ["SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT]
                (cursor, found), _ = self._reader.go_on(route, page, ["EXISTS", never])
                if found:
                    yield found
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


def _info(text: bytes, name: str) -> str:
    """One field of INFO's reply."""
    for line in text.decode().splitlines():
        if line.startswith(name + ":"):
            return line[len(name) + 1 :]
    return "unknown"
