"""
The servers behind one address, and which of them holds a key: one server, or a cluster.

A cluster's map of slots is learnt at first use, and again after every sign that it has changed: a
MOVED reply, a lost connection, an error. While a slot is on its way, its keys stand on two servers:
single reads follow (ASK), but whoever writes or lists waits, since only one server has all of it.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from features.redis_link import SETTING, Address, Command, Link, Redirected, pools, slot_of
from schemas.errors import Misconfigured, StoreUnavailable

T = TypeVar("T")

REDIRECTS = 5
_NO_CLUSTER = "cluster support disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A connection as it was when it answered: what is watched on it, only it knows."""

    link: Link
    opened: int

    @property
    def holds(self) -> bool:
        """Whether the connection is still the very same."""
        return self.link.is_open and self.link.opened == self.opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Which server holds which slots: ranges in order, from `firsts` to `lasts`."""

    firsts: Sequence[int]
    lasts: Sequence[int]
    owners: Sequence[Address]

    def owner(self, slot: int) -> Address | None:
        """
        Who holds a slot; None: nobody does.

        >>> slots = Slots(firsts=[0, 100], lasts=[49, 200], owners=[("a", 1), ("b", 2)])
        >>> slots.owner(49), slots.owner(50), slots.owner(100)
        (('a', 1), None, ('b', 2))
        """
        at = bisect_right(self.firsts, slot) - 1
        return self.owners[at] if at >= 0 and slot <= self.lasts[at] else None


class Servers:
    """
    One connection to each server that is needed. Thread-safe: one call at a time.

    `key` names what a call is about: all keys of its commands must have its hash tag.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        """
        Connects at first use.

        Raises:
            Misconfigured: the URL is no address of a store.
        """
        self._pools, self.clustered = pools(url, timeout_s)
        self._seeds = [Link(pool) for pool in self._pools]
        self._links: dict[Address, Link] = {}
        self._slots: Slots | None = None  # None: to be learnt
        self._told = ""  # name of who told the last map
        self._lock = threading.Lock()

    def ask(self, key: str, *commands: Command) -> tuple[Route, list[Any]]:
        """
        Ask the server that holds the whole slot of the key; and which connection it was.

        For what may safely be done twice: a stale connection gets a second try.

        Raises:
            StoreUnavailable: it did not answer, or refused for now; or the slot is on its way.
            Misconfigured: it does not let us in.
        """
        with self._lock:
            return self._tried(lambda: self._held(key, commands), self._stale())

    def go_on(self, route: Route, *commands: Command) -> list[Any]:
        """
        Ask on the very connection of an earlier answer, which holds its watch.

        Raises:
            StoreUnavailable: also if that connection is gone, or the key no longer there.
        """
        with self._lock:
            if not route.holds:
                raise StoreUnavailable("the connection and its watch were lost")
            try:
                return route.link.ask(*commands)
            except Redirected as moved:
                self._slots = None
                raise StoreUnavailable(f"the keys are moving to {moved}") from moved
            except StoreUnavailable:
                self._slots = None
                raise

    def each(self, keyed: Sequence[tuple[str, Command]]) -> list[Any]:
        """
        One command for each key, sent to all servers at once; their replies, in order.

        For what may safely be done twice, as `ask`.
        """
        with self._lock:
            return self._tried(lambda: self._each(keyed), self._stale())

    def drop(self, route: Route) -> None:
        """Give up the connection of an answer, and what is watched on it."""
        with self._lock:
            if route.holds:
                route.link.close()

    def close(self) -> None:
        """Give up all connections. Idempotent."""
        with self._lock:
            for link in (*self._seeds, *self._links.values()):
                link.close()

    def _stale(self) -> bool:
        """Whether an error may be only of an old connection, or of an old map."""
        return self.clustered or self._seeds[0].is_open

    def _tried(self, work: Callable[[], T], twice: bool) -> T:
        try:
            return work()
        except StoreUnavailable:
            self._slots = None
            if not twice:
                raise
        return self._tried(work, False)

    def _held(self, key: str, commands: Sequence[Command]) -> tuple[Route, list[Any]]:
        link = self._owner(key)
        for _ in range(REDIRECTS):
            try:
                replies = link.ask(*commands)
            except Redirected as redirected:
                if redirected.asking:
                    raise StoreUnavailable(f"{key} is on its way to {redirected}") from redirected
                link = self._redirected(redirected)
            else:
                return Route(link=link, opened=link.opened), replies
        raise StoreUnavailable(f"{REDIRECTS} servers in turn said that others hold {key}")

    def _each(self, keyed: Sequence[tuple[str, Command]]) -> list[Any]:
        by_link: dict[Link, list[int]] = {}
        for at, (key, _) in enumerate(keyed):
            by_link.setdefault(self._owner(key), []).append(at)
        came: list[tuple[int, Link, Any]] = []
        try:
            for link, places in by_link.items():
                link.send(*(keyed[at][1] for at in places))
            for link, places in by_link.items():
                replies = link.receive(len(places))
                came += [(at, link, reply) for at, reply in zip(places, replies, strict=True)]
        except BaseException:
            for link in by_link:
                link.close()  # replies may wait there that nobody will read
            raise
        came.sort(key=lambda one: one[0])
        return [self._reply(link, reply, *keyed[at]) for at, link, reply in came]

    def _reply(self, link: Link, reply: Any, key: str, command: Command) -> Any:
        """A reply that came, or that of the server that the key has gone to."""
        try:
            return link.checked([reply])[0]
        except Redirected as redirected:
            if not redirected.asking:
                return self._held(key, [command])[1][0]
            there = self._link(redirected.address)
        try:
            return there.ask(["ASKING"], command)[1]
        except Redirected as again:
            raise StoreUnavailable(f"{key} is on its way past {there.name} to {again}") from again

    def _owner(self, key: str) -> Link:
        if not self.clustered:
            return self._seeds[0]
        if self._slots is None:
            self._slots = self._learnt()
        address = self._slots.owner(slot_of(key))
        if address is None:
            self._slots = None
            raise StoreUnavailable(f"no server of the cluster holds the slot of {key}")
        return self._link(address)

    def _redirected(self, redirected: Redirected) -> Link:
        """Where a MOVED reply sends us; the whole map is learnt again, from there."""
        if not self.clustered:
            raise Misconfigured(
                f"{self._seeds[0].name} belongs to a cluster: write redis+cluster:// (or "
                f"rediss+cluster://) in {SETTING}"
            ) from redirected
        self._slots = self._learnt(redirected.address)
        return self._link(redirected.address)

    def _learnt(self, first: Address | None = None) -> Slots:
        """
        The map of slots, by the first server that tells it.

        Whoever told the last one is asked last: a server that the others have given up may go on
        believing that its slots are its own.
        """
        known = sorted(
            (*self._links.values(), *self._seeds), key=lambda link: link.name == self._told
        )
        asked = known if first is None else [self._link(first), *known]
        problems: list[str] = []
        for link in dict.fromkeys(asked):
            try:
                slots = _slots(link)
            except StoreUnavailable as error:
                problems.append(f"{link.name}: {error}")
            else:
                self._told = link.name
                return slots
        raise StoreUnavailable(f"no server of the cluster answers: {'; '.join(problems)}")

    def _link(self, address: Address) -> Link:
        if address not in self._links:
            self._links[address] = Link(self._pools[0], address)
        return self._links[address]


def _slots(link: Link) -> Slots:
    """What a server says of its cluster."""
    try:
        ranges = sorted(link.ask(["CLUSTER", "SLOTS"])[0], key=lambda one: int(one[0]))
    except StoreUnavailable as error:
        if _NO_CLUSTER not in str(error):
            raise
        raise Misconfigured(
            f"{link.name} is no cluster: write redis:// (or rediss://) in {SETTING}"
        ) from error
    # A server that does not know its own host leaves it empty: the one that we came by.
    owners = [(one[2][0].decode() or link.host, int(one[2][1])) for one in ranges]
    return Slots(
        firsts=[int(one[0]) for one in ranges],
        lasts=[int(one[1]) for one in ranges],
        owners=owners,
    )
