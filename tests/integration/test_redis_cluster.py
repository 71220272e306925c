"""What only a cluster does: several servers, slots that move from one to another."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest

from deploy import valkey_cluster
from deploy.valkey_cluster import ClusterOptions
from features.redis_link import slot_of
from features.redis_store import RedisStore
from schemas.errors import Misconfigured, StoreUnavailable
from tests.contracts.store import START, update

pytestmark = pytest.mark.valkey

MOVING = 7  # a partition that no other test uses
APART = (0, 3, 10)  # on the third, first and second server


@pytest.fixture
def servers(valkey_cluster) -> ClusterOptions:
    return valkey_cluster.options


@pytest.fixture
def open_store(servers: ClusterOptions) -> Iterator[Callable[[], RedisStore]]:
    opened: list[RedisStore] = []
    fingerprint = uuid.uuid4().hex

    def open_one() -> RedisStore:
        opened.append(RedisStore(servers.url, fingerprint, timeout_s=5))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


class Slot:
    """The slot of partition MOVING, and its way from server to server."""

    def __init__(self, servers: ClusterOptions) -> None:
        self._servers = servers
        self._ids = [self._ask(at, "CLUSTER", "MYID").decode() for at in range(3)]
        self.number = slot_of(f"p{MOVING}")
        self.holder = next(at for at in range(3) if self._holds(at))

    @property
    def other(self) -> int:
        return (self.holder + 1) % 3

    def begin(self) -> None:
        """From now on the holder says ASK for what it does not have."""
        self._ask(
            self.other, "CLUSTER", "SETSLOT", self.number, "IMPORTING", self._ids[self.holder]
        )
        self._ask(
            self.holder, "CLUSTER", "SETSLOT", self.number, "MIGRATING", self._ids[self.other]
        )

    def carry(self, keys: list[bytes]) -> None:
        host, port = "127.0.0.1", self._servers.servers[self.other][0]
        self._ask(self.holder, "MIGRATE", host, port, "", 0, 5_000, "KEYS", *keys)

    def keys(self) -> list[bytes]:
        return self._ask(self.holder, "CLUSTER", "GETKEYSINSLOT", self.number, 100_000)

    def end(self) -> None:
        """From now on the former holder says MOVED."""
        for at in (self.other, self.holder, 3 - self.holder - self.other):
            self._ask(at, "CLUSTER", "SETSLOT", self.number, "NODE", self._ids[self.other])
        self.holder = self.other

    def move(self) -> None:
        self.begin()
        self.carry(self.keys())
        self.end()

    def redirections(self) -> int:
        """How often clients were sent elsewhere, by all servers."""
        told = [self._ask(at, "INFO", "errorstats").decode() for at in range(3)]
        return sum(int(n) for n in re.findall(r"errorstat_MOVED:count=(\d+)", "".join(told)))

    def _holds(self, at: int) -> bool:
        mine = self._ask(at, "CLUSTER", "SLOTS")
        return any(
            first <= self.number <= last and node[2].decode() == self._ids[at]
            for first, last, node, *_ in mine
        )

    def _ask(self, at: int, *command: str | int | bytes):
        return valkey_cluster.ask(self._servers, at, *command)


@pytest.fixture
def slot(servers: ClusterOptions) -> Slot:
    return Slot(servers)


def test_partitions_of_different_servers_are_read_by_one_call(open_store, servers) -> None:
    store = open_store()
    for partition in APART:
        store.write(store.claim(partition, START), update(partition, {"ann": b"%d" % partition}))
    ours = [f"pos{store.set_name}:{{p{partition}}}".encode() for partition in APART]
    found = [valkey_cluster.ask(servers, at, "KEYS", f"pos{store.set_name}*") for at in range(3)]
    assert sorted(map(len, found)) == [1, 1, 1], found
    assert {key for keys in found for key in keys} == set(ours)
    snapshots = open_store().snapshots({p: ["ann", "nobody"] for p in APART})
    assert {p: list(s.rows) for p, s in snapshots.items()} == {p: [b"%d" % p, None] for p in APART}
    assert [snapshots[p].position for p in APART] == [START.at(p) for p in APART]


def test_a_slot_that_moved_is_followed_by_readers_and_writers(open_store, slot: Slot) -> None:
    store, reader = open_store(), open_store()
    lease = store.write(store.claim(MOVING, START), update(1, {"ann": b"A"}, {"film": b"F"}))
    neighbour = store.claim(0, START)
    wanted = {MOVING: ["ann"], 0: ["ann"]}
    assert list(reader.snapshots(wanted)[MOVING].rows) == [b"A"]
    slot.move()
    found = reader.snapshots(wanted)  # with the map of before
    assert (found[MOVING].position, list(found[MOVING].rows)) == (lease.position, [b"A"])
    assert found[0].position == neighbour.position
    redirected = slot.redirections()
    reader.snapshots(wanted)
    assert slot.redirections() == redirected  # the new map is known
    assert list(store.read(lease, ["ann"], ["film"]).rows) == [b"A"]
    store.write(lease, update(2, {"ann": b"B"}))
    assert list(reader.snapshots(wanted)[MOVING].rows) == [b"B"]
    assert reader.keys(MOVING).users == {"ann"}


def test_a_slot_that_moves_between_read_and_write_is_not_written(open_store, slot: Slot) -> None:
    store = open_store()
    lease = store.claim(MOVING, START)
    store.read(lease, ["ann"], [])
    slot.move()
    with pytest.raises(StoreUnavailable, match="moving to"):
        store.write(lease, update(1, {"ann": b"A"}))
    assert store.positions([MOVING]) == {MOVING: START}
    store.read(lease, ["ann"], [])
    store.write(lease, update(1, {"ann": b"A"}))
    assert store.positions([MOVING]) == {MOVING: START.at(1)}


def test_a_slot_on_its_way_holds_the_writer_up_and_loses_nothing(open_store, slot: Slot) -> None:
    store, reader = open_store(), open_store()
    lease = store.write(store.claim(MOVING, START), update(1, {"ann": b"A", "bob": b"B"}))
    slot.begin()
    slot.carry([f"pos{store.set_name}:{{p{MOVING}}}".encode()])
    # The position is there already: ASK is followed. The rows are not: no batch can be read.
    assert reader.positions([MOVING]) == {MOVING: lease.position}
    with pytest.raises(StoreUnavailable, match="on its way"):
        store.read(lease, ["ann", "bob"], [])
    with pytest.raises(StoreUnavailable, match="on its way"):
        store.write(lease, update(2, {"ann": b"there, while the old row is still here"}))
    with pytest.raises(StoreUnavailable, match="on its way"):
        reader.keys(MOVING)
    slot.carry(slot.keys())
    slot.end()
    assert list(store.read(lease, ["ann", "bob"], []).rows) == [b"A", b"B"]
    lease = store.write(lease, update(2, {"ann": b"new"}))
    assert list(store.read(lease, ["ann", "bob"], []).rows) == [b"new", b"B"]
    assert reader.keys(MOVING).users == {"ann", "bob"}


def test_keys_are_not_listed_while_their_slot_moves(open_store, slot: Slot) -> None:
    store, reader = open_store(), open_store()
    rows = {f"user-{i}": b"row" for i in range(3_000)}
    store.write(store.claim(MOVING, START), update(1, rows))
    pages = reader._scan(MOVING, [f"u{store.set_name}:{{p{MOVING}}}:*"])
    next(pages)
    slot.move()
    with pytest.raises(StoreUnavailable):
        list(pages)
    assert reader.keys(MOVING).users == set(rows)


def test_one_server_of_a_cluster_is_not_taken_for_a_store(open_store, servers) -> None:
    alone = RedisStore(f"redis://127.0.0.1:{servers.servers[0][0]}", "f" * 16)
    with pytest.raises(Misconfigured, match=r"belongs to a cluster: write redis\+cluster://"):
        alone.positions(APART)
    alone.close()


def test_a_single_server_is_not_taken_for_a_cluster(valkey) -> None:
    store = RedisStore(valkey.url.replace("redis://", "redis+cluster://"), "f" * 16)
    with pytest.raises(Misconfigured, match="no cluster: write redis://"):
        store.positions([0])
    store.close()


def test_any_named_server_that_answers_shows_the_way(servers) -> None:
    (_, _), (one, _), _ = servers.servers
    store = RedisStore(f"redis+cluster://127.0.0.1:1,127.0.0.1:{one}", uuid.uuid4().hex)
    assert store.positions(APART) == dict.fromkeys(APART)
    store.close()
    nobody = RedisStore("redis+cluster://127.0.0.1:1,127.0.0.1:2", "f" * 16)
    with pytest.raises(StoreUnavailable, match="no server of the cluster answers"):
        nobody.positions([0])


def test_a_server_that_the_others_have_given_up_does_not_mislead(servers) -> None:
    """It says that all slots are its own, and can do nothing with them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        alone = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port

        def mislead() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                while asked := connection.recv(65_536):
                    down = b"-CLUSTERDOWN The cluster is down\r\n"
                    commands = len(re.findall(rb"\*\d+\r\n", asked))
                    connection.sendall(alone if b"SLOTS" in asked else down * commands)

        threading.Thread(target=mislead, daemon=True).start()
        there = f"127.0.0.1:{servers.servers[0][0]}"
        store = RedisStore(f"redis+cluster://127.0.0.1:{port},{there}", uuid.uuid4().hex)
        assert store.positions(APART) == dict.fromkeys(APART)
        store.close()
        listener.shutdown(socket.SHUT_RDWR)


def test_the_addresses_of_a_cluster_are_checked() -> None:
    with pytest.raises(Misconfigured, match="only database 0"):
        RedisStore("redis+cluster://a:1,b:2/3", "f" * 16)
    with pytest.raises(Misconfigured, match=r"redis\+cluster://me:\*\*\*@a:port"):
        RedisStore("redis+cluster://me:secret@a:port", "f" * 16)
