"""Traffic that goes on, and what is done meanwhile to the cluster that folds it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

from ingest.clock import SystemClock
from schemas.errors import Retryable
from schemas.events import UserEvent
from tests.feature_world import Job, World, events
from tests.flink_world import Cluster

WAIT_S = 240.0  # a busy machine
MOST_EVENTS = 5_000_000
WRITES_WITHIN_S = 30.0  # a worker that has a bundle; on an idle machine it takes one
FREEZES = 5
REFUSED = "PositionMoved("  # of a worker whose partition is another's
Eventually = Callable[..., None]


class Traffic:
    """Events that keep coming until the end: 1,000 a second, or what a busy machine can."""

    def __init__(self, world: World) -> None:
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=world.produce, args=(self._events(),))
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _events(self) -> Iterator[UserEvent]:
        clock = SystemClock()
        for event in events(MOST_EVENTS):
            if self._stop.is_set():
                return
            yield event
            self.sent += 1
            if self.sent % 100 == 0:
                clock.sleep(0.1)


class Course:
    """A job on the cluster, and the kills that it outlives."""

    def __init__(self, world: World, cluster: Cluster, eventually: Eventually) -> None:
        self.world, self.cluster, self._eventually = world, cluster, eventually
        self._clock = SystemClock()

    def begins(self, job: Job) -> None:
        """The job has claimed the partitions: what an earlier one still folds does not count."""
        self._eventually(lambda: "ready" in job.output(), WAIT_S)
        self.goes_on()

    def goes_on(self) -> None:
        """Every partition is folded past where the log ends now."""
        ends: dict[int, int] = {}

        def asked() -> bool:
            with suppress(Retryable):  # a topic that was just created may have no leader yet
                ends.update(self.world.ends())
            return bool(ends)

        self._eventually(asked)
        self._eventually(
            lambda: all(
                at is not None and at.next_offset >= ends[partition]
                for partition, at in self.world.positions().items()
            ),
            WAIT_S,
        )

    def owner(self) -> tuple[str, psutil.Process]:
        """A TaskManager with its worker: each folds two partitions."""
        found: list[tuple[str, psutil.Process]] = []

        def two_workers() -> bool:
            found[:] = [(n, w[0]) for n, w in self.cluster.workers().items() if w]
            return len(found) > 0

        self._eventually(two_workers, WAIT_S)
        return found[0]

    def kill_worker(self) -> None:
        self.owner()[1].kill()
        self.goes_on()

    def kill_task_manager(self) -> None:
        name, worker = self.owner()
        self.cluster.kill(name)
        # It holds the worker's standard input: no orphan goes on folding.
        self._eventually(lambda: not worker.is_running(), 60)
        self.goes_on()
        self.cluster.start(name)

    def freeze_machine(self) -> None:
        """
        A TaskManager and its worker stand still until others own their partitions; then the worker
        wakes up and is refused. It can be caught between two bundles, with nothing to write until
        its TaskManager, which sleeps on, gives it more: then it is done again.
        """
        self._eventually(self._zombie_was_refused, FREEZES * WAIT_S)

    def _zombie_was_refused(self) -> bool:
        name, worker = self.owner()
        manager = self.cluster.child(name).pid
        for pid in (manager, worker.pid):
            os.kill(pid, signal.SIGSTOP)
        self.goes_on()
        refused = self.cluster.worker_log().count(REFUSED)
        # The worker alone: it folds on where it stood, as nobody has told it to stop.
        os.kill(worker.pid, signal.SIGCONT)
        deadline_s = self._clock.monotonic_s() + WRITES_WITHIN_S
        while not (found := self.cluster.worker_log().count(REFUSED) > refused):
            if self._clock.monotonic_s() > deadline_s:
                break
            self._clock.sleep(0.1)
        os.kill(manager, signal.SIGCONT)
        self._eventually(lambda: name in self.cluster.master.task_managers(), WAIT_S)
        self.goes_on()
        return found

    def kill_job_manager(self, job: Job) -> None:
        """The job is gone with it; another one is submitted by the caller."""
        self.cluster.kill("jobmanager")
        job.kill()
        self.cluster.start("jobmanager")
        names = {n for n in self.cluster.options.processes if n.startswith("task")}
        self._eventually(lambda: names <= set(self.cluster.master.task_managers()), WAIT_S)
