"""A cluster of one test's own: its replication can be cut, its primaries killed and replaced."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from deploy import ports, valkey_cluster
from deploy.supervise import Supervisor
from deploy.valkey_cluster import SLOTS, ClusterOptions, ask, name_of, take_over
from features.redis_link import slot_of


class BreakableCluster:
    """Three primaries with a replica each, which one test may break."""

    def __init__(self, options: ClusterOptions, supervisor: Supervisor) -> None:
        self.options = options
        self._supervisor = supervisor
        # The primary of partitions 0 and 1 (they stand on the same server), and its replica.
        self.primary = slot_of("p0") * options.primaries // SLOTS
        assert self.primary == slot_of("p1") * options.primaries // SLOTS
        self.replica = self.primary + options.primaries

    def process(self, at: int) -> psutil.Process:
        return psutil.Process(self._supervisor.child(name_of(at)).pid)

    def caught_up(self) -> bool:
        """Whether the replica has all that the primary wrote."""
        written = _field(ask(self.options, self.primary, "INFO", "replication"), "master_repl_")
        copied = _field(ask(self.options, self.replica, "INFO", "replication"), "slave_repl_")
        return written == copied

    def cut(self) -> None:
        """From now on the replica hears nothing: it is stopped, and its connection gone."""
        self.process(self.replica).send_signal(signal.SIGSTOP)
        ask(self.options, self.primary, "CLIENT", "KILL", "TYPE", "REPLICA")

    def kill_primary(self) -> None:
        self.process(self.primary).kill()

    def promote(self) -> None:
        self.process(self.replica).send_signal(signal.SIGCONT)
        take_over(self.options, self.replica)


def _field(info: bytes, prefix: str) -> str:
    return next(
        line.partition(":")[2]
        for line in info.decode().splitlines()
        if line.startswith(prefix + "offset:")
    )


@contextmanager
def breakable_cluster(directory: Path) -> Iterator[BreakableCluster]:
    """Three primaries with a replica each, until the end of the block."""
    with Supervisor() as supervisor, ports.reserve(12) as reserved:
        options = ClusterOptions(directory=directory, ports=reserved.numbers, replicated=True)
        valkey_cluster.start(options, supervisor)
        yield BreakableCluster(options, supervisor)
        for child in supervisor.children():
            child.kill()  # some may be stopped, and none has anything to save
