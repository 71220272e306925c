"""
Child processes: started in a session of their own, waited for, restarted, stopped in reverse.

A service is a value (`Service`); `start` makes a `Child` of it. A tied child dies with the thread
that started it, however that died; a free one goes on, and `Child` can be written down and found
again by another process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ingest.clock import Clock, SystemClock
from schemas.errors import ProcessFailed

# Runs in the child before the real program, in the same pid: ask the kernel for SIGKILL when the
# parent dies, then become the program. A program of its own rather than `preexec_fn`, which may
# deadlock in a parent with threads. Elsewhere than on Linux the child is only stopped by us.
_TIE = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""
_POLL_S = 0.02
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What to run, where it logs, and how to know that it answers."""

    name: str
    command: tuple[str, ...]
    log: Path  # stdout and stderr are appended here
    answers: Callable[[], bool]  # asked until true; must not block for long
    address: str = ""  # what to tell a client
    environment: Mapping[str, str] = field(default_factory=dict)  # added to ours
    directory: Path | None = None
    ready_timeout_s: float = 60.0
    stop_timeout_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """
    A running process. `started_s` tells it from a later process with the same pid.

    >>> Child(name="gone", pid=2**22 + 1, started_s=0.0, log="").alive()
    False
    """

    name: str
    pid: int
    started_s: float  # seconds since the epoch, as the kernel tells it
    log: str

    def process(self) -> psutil.Process | None:
        """The process while any thread of it lives, else None."""
        if exit_code(self) is not None:
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_s) < 1.0
            # A process whose first thread has ended looks like a zombie while others go on.
            over = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        except psutil.NoSuchProcess:
            return None
        return process if same and not over else None

    def alive(self) -> bool:
        """Whether the very process that was started still runs."""
        return self.process() is not None

    def resident_bytes(self) -> int:
        """Memory held by it and its children now; 0 when it is gone."""
        process = self.process()
        if process is None:
            return 0
        try:
            family = [process, *process.children(recursive=True)]
            return sum(int(p.memory_info().rss) for p in family)
        except psutil.NoSuchProcess:
            return 0

    def kill(self) -> None:
        """SIGKILL, at once: what a crash looks like."""
        _signal_group(self.pid, signal.SIGKILL)


def start(service: Service, *, tied: bool) -> Child:
    """
    Start `service` in a session of its own and return at once.

    Args:
        tied: it gets SIGKILL when the calling thread ends (Linux ties to the thread, not to the
            process), so start tied children from a thread that lives as long as they shall.
    """
    service.log.parent.mkdir(parents=True, exist_ok=True)
    tie = (sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid())) if tied else ()
    with service.log.open("ab") as log:
        popen = subprocess.Popen(
            [*tie, *service.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=service.directory,
            env={**os.environ, **service.environment},  # noqa: TID251 - handed on, not read
            start_new_session=True,
        )
    started_s = psutil.Process(popen.pid).create_time()
    _ours[popen.pid, started_s] = popen
    return Child(name=service.name, pid=popen.pid, started_s=started_s, log=str(service.log))


# Our own children must be waited for, or they stay zombies: (pid, started_s) -> Popen.
_ours: dict[tuple[int, float], subprocess.Popen[bytes]] = {}


def exit_code(child: Child) -> int | None:
    """How a child of this very process ended; None while it runs, or when it is not ours."""
    popen = _ours.get((child.pid, child.started_s))
    return None if popen is None else popen.poll()


def wait_ready(service: Service, child: Child, clock: Clock) -> None:
    """
    Return when `service` answers.

    Raises:
        ProcessFailed: it stopped, or did not answer in time. Its log's end is in the message.
    """
    deadline_s = clock.monotonic_s() + service.ready_timeout_s
    while not service.answers():
        if not child.alive():
            raise ProcessFailed(f"{service.name} stopped while starting\n{_tail(service.log)}")
        if clock.monotonic_s() > deadline_s:
            raise ProcessFailed(
                f"{service.name} did not answer within {service.ready_timeout_s:g} s\n"
                f"{_tail(service.log)}"
            )
        clock.sleep(_POLL_S)


def stop(child: Child, *, timeout_s: float, clock: Clock) -> bool:
    """SIGTERM, then SIGKILL after `timeout_s`. True if it stopped by itself. Idempotent."""
    process = child.process()
    if process is None:
        return True
    process.send_signal(signal.SIGTERM)
    if _gone(child, timeout_s, clock):
        _signal_group(child.pid, signal.SIGKILL)  # what it may have left behind
        return True
    child.kill()
    _gone(child, timeout_s, clock)
    return False


def ready_line(log: Path, marker: str = "ready:") -> Callable[[], bool]:
    """Whether a line starting with `marker` was logged after this call: a worker's readiness."""
    start_byte = log.stat().st_size if log.exists() else 0

    def seen() -> bool:
        if not log.exists():
            return False
        with log.open("rb") as file:
            file.seek(start_byte)
            return any(line.startswith(marker.encode()) for line in file)

    return seen


def _gone(child: Child, timeout_s: float, clock: Clock) -> bool:
    deadline_s = clock.monotonic_s() + timeout_s
    while child.alive():
        if clock.monotonic_s() > deadline_s:
            return False
        clock.sleep(_POLL_S)
    return True


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)  # a session leader's pid is its group's id
    except (ProcessLookupError, PermissionError):
        return


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join([f"last lines of {log}:", *(f"  {line}" for line in lines)])


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How often a process may die: `limit` deaths within `window_s`, each waited out longer."""

    limit: int = 5
    window_s: float = 60.0
    first_delay_s: float = 0.5
    most_delay_s: float = 10.0

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")

    def delay_s(self, deaths_s: list[float], now_s: float) -> float | None:
        """
        Seconds to wait before the next start; None to give up.

        Args:
            deaths_s: when it died, the last one included, on the same clock as `now_s`.

        >>> policy = RestartPolicy(limit=2, first_delay_s=0.5)
        >>> policy.delay_s([0.0], 0.0), policy.delay_s([0.0, 1.0], 1.0)
        (0.5, 1.0)
        >>> policy.delay_s([0.0, 1.0, 2.0], 2.0) is None
        True
        """
        recent = [death_s for death_s in deaths_s if now_s - death_s <= self.window_s]
        if len(recent) > self.limit:
            return None
        return float(min(self.most_delay_s, self.first_delay_s * 2 ** max(0, len(recent) - 1)))


NEVER = RestartPolicy(limit=0)


class Supervisor:
    """
    Runs services as tied children; stops them in reverse order when closed.

    `check` must be called now and then: it restarts what died, as each one's policy allows.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._running: dict[str, _Supervised] = {}

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, service: Service, policy: RestartPolicy = NEVER) -> Child:
        """Start `service` and return when it answers."""
        child = self.begin(service, policy)
        self.wait(service.name)
        return child

    def begin(self, service: Service, policy: RestartPolicy = NEVER) -> Child:
        """Start `service`; `wait` for it later."""
        child = start(service, tied=True)
        self._running[service.name] = _Supervised(service, policy, child)
        return child

    def wait(self, name: str) -> None:
        """
        Return when a service that was begun answers.

        Raises:
            ProcessFailed: it ended, or did not answer in time; then it is stopped.
        """
        one = self._running[name]
        try:
            wait_ready(one.service, one.child, self._clock)
        except BaseException:
            self.stop(name)
            raise

    def start_together(self, services: Sequence[Service]) -> None:
        """Start services that wait for one another, and return when all of them answer."""
        for service in services:
            self.begin(service)
        try:
            for service in services:
                self.wait(service.name)
        except BaseException:
            for service in reversed(services):
                if service.name in self._running:
                    self.stop(service.name)
            raise

    def run(self, service: Service) -> None:
        """
        Run a service that ends by itself, to its end.

        Raises:
            ProcessFailed: it ended with another code than 0. Its log's end is in the message.
        """
        child = start(service, tied=True)
        self._running[service.name] = _Supervised(service, NEVER, child)
        try:
            while (code := exit_code(child)) is None:
                self._clock.sleep(_POLL_S)
        finally:
            self.stop(service.name)
        if code:
            raise ProcessFailed(f"{service.name} ended with code {code}\n{_tail(service.log)}")

    def child(self, name: str) -> Child:
        """The process that runs under this name now."""
        return self._running[name].child

    def children(self) -> list[Child]:
        """All of them, in the order of their first start."""
        return [supervised.child for supervised in self._running.values()]

    def check(self) -> list[str]:
        """
        Restart what died and may be restarted. The names restarted now.

        Raises:
            ProcessFailed: one died more often than its policy allows.
        """
        return [one.service.name for one in self._running.values() if self._revive(one)]

    def stop(self, name: str) -> None:
        """Stop one and forget it."""
        supervised = self._running.pop(name)
        stop(supervised.child, timeout_s=supervised.service.stop_timeout_s, clock=self._clock)

    def close(self) -> None:
        """Stop all, the last started first. Idempotent."""
        for name in reversed(list(self._running)):
            self.stop(name)

    def _revive(self, one: _Supervised) -> bool:
        now_s = self._clock.monotonic_s()
        if one.start_at_s is None:
            if one.child.alive():
                return False
            one.deaths_s.append(now_s)
            delay_s = one.policy.delay_s(one.deaths_s, now_s)
            if delay_s is None:
                raise ProcessFailed(f"{one.service.name} stopped\n{_tail(one.service.log)}")
            one.start_at_s = now_s + delay_s
        if now_s < one.start_at_s:
            return False
        one.start_at_s = None
        one.child = start(one.service, tied=True)
        return True


@dataclass(slots=True)
class _Supervised:
    """One supervised service: mutable, owned by the Supervisor."""

    service: Service
    policy: RestartPolicy
    child: Child
    deaths_s: list[float] = field(default_factory=list)
    start_at_s: float | None = None
