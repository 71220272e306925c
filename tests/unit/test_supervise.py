"""Child processes start, are waited for, restarted and stopped, and nothing outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.supervise import (
    Child,
    RestartPolicy,
    Service,
    Supervisor,
    exit_code,
    ready_line,
    start,
    stop,
    wait_ready,
)
from ingest.clock import SystemClock
from schemas.errors import ProcessFailed

WAITS = "import sys, time; print('ready: waiting', flush=True); time.sleep(600)"
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('ready: deaf', flush=True); time.sleep(600)"
)


def python(name: str, program: str, log: Path, ready_timeout_s: float = 20.0) -> Service:
    return Service(
        name=name,
        command=(sys.executable, "-I", "-S", "-c", program),
        log=log,
        answers=ready_line(log),
        ready_timeout_s=ready_timeout_s,
        stop_timeout_s=5.0,
    )


def test_a_started_child_leads_its_own_session_and_logs_to_its_file(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "one.log"
    with Supervisor() as supervisor:
        child = supervisor.start(python("one", WAITS, log))
        assert os.getsid(child.pid) == child.pid
        assert log.read_text() == "ready: waiting\n"
    assert not child.alive()


def test_a_ready_line_of_an_earlier_run_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    log.write_text("ready: long ago\n")
    seen = ready_line(log)
    assert not seen()
    with log.open("a") as file:
        file.write("ready: now\n")
    assert seen()


def test_a_child_that_stops_while_starting_is_told_with_its_last_words(tmp_path: Path) -> None:
    service = python("one", "raise SystemExit('no such table')", tmp_path / "one.log")
    with Supervisor() as supervisor, pytest.raises(ProcessFailed, match="no such table"):
        supervisor.start(service)


def test_a_child_that_never_answers_is_stopped_and_told(tmp_path: Path) -> None:
    service = python("one", "import time; time.sleep(600)", tmp_path / "one.log", 0.2)
    child = start(service, tied=True)
    with pytest.raises(ProcessFailed, match=r"did not answer within 0\.2 s"):
        wait_ready(service, child, SystemClock())
    stop(child, timeout_s=5.0, clock=SystemClock())


def test_a_child_deaf_to_sigterm_is_killed_after_its_time(tmp_path: Path) -> None:
    service = python("deaf", DEAF, tmp_path / "deaf.log")
    child = start(service, tied=True)
    wait_ready(service, child, SystemClock())
    assert not stop(child, timeout_s=0.2, clock=SystemClock())
    assert not child.alive()
    assert exit_code(child) == -signal.SIGKILL


def test_children_stop_in_reverse_order(tmp_path: Path) -> None:
    says = (
        "import signal, sys, time\n"
        "def leave(*_):\n"
        "    open(sys.argv[1], 'a').write(sys.argv[2]); sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "print('ready:', flush=True)\n"
        "time.sleep(600)"
    )
    with Supervisor() as supervisor:
        for name in "abc":
            service = python(name, says, tmp_path / f"{name}.log")
            command = (*service.command, str(tmp_path / "order"), name)
            supervisor.start(
                Service(name=name, command=command, log=service.log, answers=service.answers)
            )
    assert (tmp_path / "order").read_text() == "cba"


def test_a_child_killed_is_restarted_until_its_policy_gives_up(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with Supervisor() as supervisor:
        first = supervisor.start(
            python("one", WAITS, tmp_path / "one.log"), RestartPolicy(limit=1, first_delay_s=0.0)
        )
        first.kill()
        eventually(lambda: supervisor.check() == ["one"])
        second = supervisor.child("one")
        assert second.pid != first.pid
        second.kill()
        eventually(lambda: not second.alive())
        with pytest.raises(ProcessFailed, match="one stopped"):
            supervisor.check()


def test_a_pid_given_to_another_process_is_not_ours() -> None:
    me = psutil.Process()
    child = Child(name="me", pid=me.pid, started_s=me.create_time() - 100, log="")
    assert not child.alive()
    assert child.resident_bytes() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties children on Linux only")
def test_no_tied_child_outlives_a_killed_parent(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    parent_program = (
        "import sys, time; from pathlib import Path; from deploy.supervise import *\n"
        "s = Service(name='x', command=(sys.executable, '-c', 'import time; time.sleep(600)'),"
        f" log=Path({str(tmp_path / 'x.log')!r}), answers=lambda: True)\n"
        "print(start(s, tied=True).pid, start(s, tied=False).pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    tied, free = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: not psutil.pid_exists(tied) or psutil.Process(tied).status() == "zombie")
    assert psutil.pid_exists(free)
    os.kill(free, signal.SIGKILL)
