"""A Valkey cluster on this machine: servers on loopback that share the slots among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy import valkey
from deploy.ports import LOOPBACK
from deploy.supervise import Service, Supervisor
from features.redis_link import Link, pools
from ingest.clock import Clock, SystemClock
from schemas.errors import ProcessFailed

SLOTS = 16_384
_ASK_TIMEOUT_S = 5.0
_FORM_TIMEOUT_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """
    Servers without persistence: first the primaries, then as many replicas in the same order.

    No replica takes over by itself: `take_over` says when, so a test knows.
    """

    directory: Path
    ports: Sequence[int]  # two for each server: of clients, and of the cluster's own talk
    replicated: bool = False
    node_timeout_ms: int = 2_000

    def __post_init__(self) -> None:
        if len(self.ports) % (4 if self.replicated else 2):
            raise ValueError(f"two ports for each server are needed, got {len(self.ports)}")

    @property
    def servers(self) -> list[tuple[int, int]]:
        """Both ports of each server."""
        return list(zip(self.ports[::2], self.ports[1::2], strict=True))

    @property
    def primaries(self) -> int:
        return len(self.servers) // (2 if self.replicated else 1)

    @property
    def url(self) -> str:
        """What a client connects to."""
        hosts = ",".join(f"{LOOPBACK}:{port}" for port, _ in self.servers)
        return f"redis+cluster://{hosts}"


def name_of(at: int) -> str:
    """What the supervisor calls a server."""
    return f"valkey-{at}"


def start(options: ClusterOptions, supervisor: Supervisor, clock: Clock | None = None) -> None:
    """
    Start the servers and make them one cluster; returns when all of it answers.

    Raises:
        Misconfigured: there is no binary for this machine.
        ProcessFailed: a server did not start, or they did not find each other.
    """
    for at in range(len(options.servers)):
        supervisor.start(_service(options, at))
    _form(options, clock or SystemClock())


def ask(options: ClusterOptions, at: int, *command: str | int) -> Any:
    """One server's reply to one command."""
    link = Link(pools(f"redis://{LOOPBACK}:{options.servers[at][0]}", _ASK_TIMEOUT_S)[0][0])
    try:
        return link.ask(command)[0]
    finally:
        link.close()


def take_over(options: ClusterOptions, replica: int) -> None:
    """Let a replica take its primary's place at once, whatever the others think of it."""
    ask(options, replica, "CLUSTER", "FAILOVER", "TAKEOVER")


def _service(options: ClusterOptions, at: int) -> Service:
    port, talk_port = options.servers[at]
    one = valkey.service(
        valkey.ValkeyOptions(directory=options.directory / name_of(at), port=port, durable=False)
    )
    clustered = (
        *("--cluster-enabled", "yes", "--cluster-port", str(talk_port)),
        *("--cluster-node-timeout", str(options.node_timeout_ms)),
        *("--cluster-replica-no-failover", "yes"),
        *("--repl-diskless-sync-delay", "0"),
    )
    return replace(one, name=name_of(at), command=(*one.command, *clustered))


def _form(options: ClusterOptions, clock: Clock) -> None:
    count = options.primaries
    everyone = range(len(options.servers))
    for at in everyone:
        ask(options, at, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        if at < count:
            first, end = SLOTS * at // count, SLOTS * (at + 1) // count
            ask(options, at, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
    for port, talk_port in options.servers[1:]:
        ask(options, 0, "CLUSTER", "MEET", LOOPBACK, port, talk_port)
    known = f"cluster_known_nodes:{len(options.servers)}\r".encode()

    def met(at: int) -> bool:
        info = ask(options, at, "CLUSTER", "INFO")
        return b"cluster_state:ok" in info and known in info

    _wait(clock, "the servers do not find each other", lambda: all(map(met, everyone)))
    replicas = everyone[count:]
    for at in replicas:
        ask(options, at, "CLUSTER", "REPLICATE", ask(options, at - count, "CLUSTER", "MYID"))
    _wait(clock, "the replicas do not follow", lambda: all(in_step(options, at) for at in replicas))


def in_step(options: ClusterOptions, replica: int) -> bool:
    """Whether a replica is connected to its primary, and has all of its data."""
    return b"master_link_status:up" in ask(options, replica, "INFO", "replication")


def _wait(clock: Clock, problem: str, done: Callable[[], bool]) -> None:
    until_s = clock.monotonic_s() + _FORM_TIMEOUT_S
    while not done():
        if clock.monotonic_s() > until_s:
            raise ProcessFailed(f"{problem} within {_FORM_TIMEOUT_S:g} s")
        clock.sleep(_POLL_S)
