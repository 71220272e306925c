"""What runs the models is chosen as a whole, and wrong combinations are explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.backend import Backend, RemotePolicy, Runtime, chosen
from schemas.errors import Misconfigured
from tests.tls_proxy import Authority


def test_without_a_choice_tensorflow_runs_them_in_this_process() -> None:
    assert chosen(Runtime.SAVED_MODEL, None, None) == Backend()


def test_a_server_elsewhere_is_named_with_the_roots_of_its_certificate(tmp_path: Path) -> None:
    roots = Authority(tmp_path, "ours").file
    found = chosen(Runtime.REMOTE, "[::1]:8500", roots)
    assert found.remote == RemotePolicy(address="[::1]:8500", tls_roots=roots)


@pytest.mark.parametrize(
    ("runtime", "remote", "told"),
    [
        (Runtime.REMOTE, None, "--backend remote needs --remote HOST:PORT"),
        (Runtime.SAVED_MODEL, "h:1", "--remote h:1 goes with --backend remote, not saved-model"),
        (Runtime.REMOTE, "models", "--remote is HOST:PORT, got 'models'"),
        (Runtime.REMOTE, ":8500", "got ':8500'"),
        (Runtime.REMOTE, "h:0", "got 'h:0'"),
        (Runtime.REMOTE, "h:65536", "got 'h:65536'"),
    ],
)
def test_what_does_not_go_together_is_told(runtime: Runtime, remote: str | None, told: str) -> None:
    with pytest.raises(Misconfigured) as raised:
        chosen(runtime, remote, None)
    assert told in str(raised.value)


def test_roots_that_are_none_are_told_with_every_other_problem(tmp_path: Path) -> None:
    empty, absent = tmp_path / "empty.pem", tmp_path / "absent.pem"
    empty.touch()
    for roots in (empty, absent):
        with pytest.raises(Misconfigured) as raised:
            chosen(Runtime.SAVED_MODEL, None, roots)
        told = str(raised.value)
        assert "--remote-tls-roots goes with --remote" in told
        assert f"{roots} holds no certificates" in told


def test_attempts_wait_twice_as_long_each_time_up_to_half_of_it_by_chance() -> None:
    policy = RemotePolicy(address="h:1", back_off_s=0.1)
    assert [policy.pause_s(n, 1.0) for n in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.4])
    assert policy.pause_s(1, 0.0) == pytest.approx(0.05)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"deadline_s": 0.0}, {"load_s": -1.0}])
def test_limits_are_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        RemotePolicy(address="h:1", **wrong)
