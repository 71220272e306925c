"""A store that is full, read-only, killed or spoilt: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from deploy import ports, valkey
from deploy.supervise import Service, Supervisor
from features.counts import Counts
from features.rebuild import rebuild_partition, rebuild_user, verify, verify_user
from features.redis_link import packed
from features.redis_store import RedisStore
from features.rows import encode
from features.split import Split
from ingest.clock import SystemClock
from ingest.placement import partition_of
from schemas.errors import Misconfigured, PositionMoved, StoreUnavailable
from tests.contracts.store import START, update
from tests.memory_world import PARTITIONS, USERS, World

pytestmark = [pytest.mark.valkey, pytest.mark.chaos]

Eventually = Callable[..., None]


class Server:
    """A server of one test's own that keeps its data, and that can be killed and started again."""

    def __init__(self, service: Service, url: str, supervisor: Supervisor) -> None:
        self._service = service
        self._supervisor = supervisor
        self.url = url
        self.start()

    def start(self) -> None:
        self._supervisor.start(self._service)

    def kill(self) -> None:
        self._supervisor.child(self._service.name).kill()
        self._supervisor.stop(self._service.name)

    def ask(self, *command: str | int) -> object:
        with redis.Redis.from_url(self.url) as client:
            return client.execute_command(*command)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Supervisor() as supervisor, ports.reserve(1) as reserved:
        options = valkey.ValkeyOptions(directory=tmp_path, port=reserved.numbers[0], durable=True)
        yield Server(valkey.service(options), options.url, supervisor)


@pytest.fixture
def store(server: Server) -> Iterator[RedisStore]:
    made = RedisStore(server.url, uuid.uuid4().hex, timeout_s=1)
    yield made
    made.close()


class WatchedClock(SystemClock):
    """Remembers how long it was waited on."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        super().sleep(seconds)


@pytest.fixture
def world(store: RedisStore) -> World:
    made = World(store)
    made.clock = WatchedClock()
    return made


@pytest.fixture
def split(world: World) -> Iterator[Split]:
    made = world.split()
    made.open()
    world.put(range(200))
    fold(world, made)
    yield made
    made.close()


def fold(world: World, split: Split) -> None:
    while batches := split.poll(0):
        split.handle(batches)


def counts(world: World) -> Counts:
    found = world.store.positions(range(PARTITIONS)).values()
    return sum((Counts.of(p.counts) for p in found if p is not None), Counts())


def assert_undisturbed(world: World) -> None:
    peace = world.in_peace()
    assert world.contents() == peace.contents()
    assert counts(world) == counts(peace)


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (("CONFIG", "SET", "maxmemory", "1mb"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CLIENT", "PAUSE", "600000", "WRITE"), ("CLIENT", "UNPAUSE")),
    ],
    ids=["full", "read-only", "hanging"],
)
def test_a_store_that_cannot_be_written_holds_the_worker_up_and_loses_nothing(
    world: World,
    split: Split,
    server: Server,
    eventually: Eventually,
    spoil: tuple[str, ...],
    mend: tuple[str, ...],
) -> None:
    before, tried = world.contents(), attempts(server)
    server.ask(*spoil)
    world.put(range(200, 300))
    worker = threading.Thread(target=fold, args=(world, split))
    worker.start()
    told = world.store.positions(range(PARTITIONS))
    eventually(lambda: attempts(server) > tried + 1)
    assert worker.is_alive()  # it waits and tries again: back-pressure
    assert world.store.positions(range(PARTITIONS)) == told
    assert world.contents() == before
    server.ask(*mend)
    worker.join(30)
    assert not worker.is_alive()
    assert counts(world).folded == 300
    assert_undisturbed(world)


def attempts(server: Server) -> int:
    """Transactions that the server was asked to begin."""
    stats = server.ask("INFO", "commandstats")
    assert isinstance(stats, dict)
    return int(stats["cmdstat_multi"]["calls"])


def test_a_worker_outlasts_a_server_that_is_killed_and_comes_back(
    world: World, split: Split, server: Server, eventually: Eventually
) -> None:
    clock = world.clock
    assert isinstance(clock, WatchedClock)
    server.kill()
    world.put(range(200, 300))
    worker = threading.Thread(target=fold, args=(world, split))
    worker.start()
    eventually(lambda: len(clock.waits_s) > 3)
    server.start()
    worker.join(30)
    assert not worker.is_alive()
    assert clock.waits_s[:3] == [0.05, 0.1, 0.2]  # each longer than the last, up to a limit
    assert_undisturbed(world)


def test_a_server_killed_in_the_middle_of_a_transaction_has_all_of_it_or_nothing(
    server: Server, store: RedisStore
) -> None:
    lease = store.write(store.claim(0, START), update(1, {"ann": b"1", "bob": b"1"}))
    half: list[list[str | int]] = [
        ["MULTI"],
        ["SET", f"u{store.set_name}:{{p0}}:ann", "half"],
        ["SET", f"pos{store.set_name}:{{p0}}", "half"],
    ]
    with redis.Redis.from_url(server.url, single_connection_client=True) as client:
        client.ping()
        connection = client.connection
        connection.send_packed_command([packed(half)])
        assert [connection.read_response() for _ in half] == [b"OK", b"QUEUED", b"QUEUED"]
        server.kill()
    server.start()
    assert list(store.read(lease, ["ann", "bob"], []).rows) == [b"1", b"1"]
    store.write(lease, update(2, {"ann": b"2"}))


def test_a_server_killed_under_load_keeps_every_acknowledged_batch_whole(
    server: Server, store: RedisStore
) -> None:
    users = [f"user-{i}" for i in range(300)]
    lease = store.claim(0, START)
    for kill in range(3):
        # With `everysec` a write to the file waits while the last one is still synced, so that a
        # death on a slow disk takes whole batches along, their positions with them.
        server.ask("CONFIG", "SET", "appendfsync", "always")
        acknowledged = lease.position.next_offset
        killer = threading.Timer(0.1 + 0.07 * kill, server.kill)
        killer.start()
        try:
            while True:
                acknowledged = lease.position.next_offset
                row = str(acknowledged + 1).encode() * 100
                lease = store.write(lease, update(acknowledged + 1, dict.fromkeys(users, row)))
        except StoreUnavailable:
            killer.join()
        server.start()
        snapshot = store.snapshots({0: users})[0]
        assert snapshot.position is not None
        at = snapshot.position.next_offset
        assert at in (acknowledged, acknowledged + 1)  # the last may be done, and not yet told
        assert set(snapshot.rows) == {str(at).encode() * 100}
        lease = store.claim(0, None)
        assert lease.position.next_offset == at


def test_a_store_flushed_under_a_worker_is_folded_again(
    world: World, split: Split, server: Server
) -> None:
    server.ask("FLUSHALL")
    world.put(range(200, 300))
    with pytest.raises(PositionMoved):
        fold(world, split)
    assert server.ask("DBSIZE") == 0
    world.fold()
    assert_undisturbed(world)


def test_a_server_that_may_evict_is_refused_at_start(world: World, server: Server) -> None:
    server.ask("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
    with pytest.raises(Misconfigured, match="CONFIG SET maxmemory-policy noeviction"):
        world.split().open()
    assert server.ask("DBSIZE") == 0


def truncated(row: bytes) -> bytes:
    return row[:-3]


def flipped(row: bytes) -> bytes:
    return row[:-1] + bytes([row[-1] ^ 1])


def foreign(row: bytes) -> bytes:
    """A row of another feature set, whole and with its own checksum."""
    from features.catalog import CATALOG
    from features.rows import decode

    return encode(decode([row], CATALOG.fingerprint).rows, "0" * len(CATALOG.fingerprint))[0]


def rubbish(row: bytes) -> bytes:
    return b"not a row at all"


@pytest.mark.parametrize("spoil", [truncated, flipped, foreign, rubbish])
def test_a_spoilt_row_is_never_folded_on_and_is_rebuilt_alone(
    world: World, split: Split, store: RedisStore, server: Server, spoil: Callable[[bytes], bytes]
) -> None:
    split.close()
    before = world.contents()
    user = USERS[0]
    home = partition_of(user.encode(), PARTITIONS)
    key = f"u{store.set_name}:{{p{home}}}:{user}"
    with redis.Redis.from_url(server.url) as client:
        row = client.get(key)
        assert isinstance(row, bytes)
        client.set(key, spoil(row))
    spoilt = world.contents()
    world.put(range(200, 300))
    with pytest.raises(Misconfigured, match=f"features rebuild --user {user}"):
        world.fold()
    assert {k: v for k, v in world.contents().items() if k[0] == home} == {
        k: v for k, v in spoilt.items() if k[0] == home
    }
    assert verify_user(world.parts(), user).found == "different"
    rebuild_user(world.parts(), user)
    assert world.contents()[home, "u", user] == before[home, "u", user]
    world.fold()
    assert_undisturbed(world)
    assert verify(world.parts()).ok


def test_a_spoilt_partial_is_never_folded_on_and_its_partition_is_rebuilt(
    world: World, split: Split, store: RedisStore, server: Server
) -> None:
    split.close()
    server.ask("SET", f"i{store.set_name}:{{p0}}:item-1", "rubbish")
    world.put(range(200, 300))
    with pytest.raises(Misconfigured, match="features rebuild --partition 0"):
        world.fold()
    report = rebuild_partition(world.parts(), 0)
    assert (report.partials.different, report.named) == (1, ("item-1: different",))
    world.fold()
    assert_undisturbed(world)
