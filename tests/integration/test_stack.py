"""`millstream stack` as a person uses it: real processes, whose data survives."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deploy import cli, stack
from ingest.settings import Settings
from schemas.errors import Misconfigured
from tests.conftest import missing
from tests.neighbours import neighbours

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]

ELSEWHERE = Settings(
    bootstrap_servers="kafka.example:9092",
    redis_url="redis://store.example:6379/0",
    registry_url="http://schemas.example:8081",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Settings of a stack of its own, and the same for the command line."""

    settings: Settings

    def run(self, *command: str) -> int:
        return cli.run(
            [
                *("--bootstrap-servers", self.settings.bootstrap_servers),
                *("--redis-url", self.settings.redis_url),
                *("--registry-url", self.settings.registry_url),
                *command,
            ]
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    broker, store, registry = neighbours()
    settings = Settings(
        bootstrap_servers=f"127.0.0.1:{broker}",
        redis_url=f"redis://127.0.0.1:{store}/0",
        registry_url=f"http://127.0.0.1:{registry}",
        stack_dir=tmp_path / "stack",
    )
    monkeypatch.setenv("MILLSTREAM_STACK_DIR", str(settings.stack_dir))
    yield Place(settings=settings)
    stack.down(settings)


def _state(settings: Settings, name: str) -> str:
    return next(part.state for part in stack.status(settings) if part.name == name)


def ask_valkey(settings: Settings, *words: str) -> bytes:
    port = int(settings.redis_url.rsplit(":", maxsplit=1)[1].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall((" ".join(words) + "\r\n").encode())
        return connection.recv(1000)


def test_up_status_down_and_up_again_keep_the_data(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = place.settings
    assert place.run("stack", "status", "--json") == 1
    assert {part["state"] for part in json.loads(capsys.readouterr().out)} == {"down"}

    assert place.run("stack", "up", "--partitions", "3", "--json") == 0
    up = json.loads(capsys.readouterr().out)
    assert [(part["name"], part["state"]) for part in up] == [
        ("kafka", "up"),
        ("valkey", "up"),
        ("registry", "up"),
    ]
    assert all(part["resident_bytes"] > 1_000_000 for part in up)
    assert ask_valkey(settings, "SET", "a", "1") == b"+OK\r\n"

    assert place.run("stack", "up", "--partitions", "3", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert [part["pid"] for part in again] == [part["pid"] for part in up]

    assert place.run("stack", "up", "--partitions", "5") == 2
    assert "partitions" in capsys.readouterr().err

    assert place.run("stack", "down", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stopped"] == {
        "registry": True,
        "valkey": True,
        "kafka": True,
    }
    assert stack.up(settings, 3) == ["kafka", "valkey", "registry"]
    assert ask_valkey(settings, "GET", "a") == b"$1\r\n1\r\n"
    assert stack.create_topics(settings, 3) == []

    assert place.run("stack", "down", "--delete-data") == 0
    assert not (settings.stack_dir / "kafka").exists()


def test_a_part_killed_behind_our_back_is_seen_and_started_again(
    place: Place, eventually: Callable[..., None]
) -> None:
    settings = place.settings
    stack.up(settings, 2)
    before = {part.name: part.pid for part in stack.status(settings)}
    assert before["valkey"] is not None
    os.kill(before["valkey"], signal.SIGKILL)
    eventually(lambda: stack.status(settings)[1].state == "down")
    assert stack.up(settings, 2) == ["valkey"]
    after = {part.name: part.pid for part in stack.status(settings)}
    assert after["kafka"] == before["kafka"]
    assert after["valkey"] != before["valkey"]


def test_a_taken_port_is_told_with_its_holder_and_the_way_out(place: Place) -> None:
    _, port = place.settings.bootstrap_servers.split(":")
    with socket.create_server(("127.0.0.1", int(port))):
        with pytest.raises(Misconfigured, match=rf"port {port}.*pid {os.getpid()}.*--bootstrap"):
            stack.up(place.settings, 2)
        assert place.run("stack", "up") == 2
    assert not (place.settings.stack_dir / "kafka").exists()


@pytest.mark.timeout(600)  # four processes of Java, on a busy machine
def test_a_flink_cluster_goes_up_with_the_stack_is_seen_and_goes_down_with_it(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    settings = replace(ELSEWHERE, stack_dir=tmp_path / "stack")
    names = ["jobmanager", "taskmanager-1", "taskmanager-2", "job-server"]
    with pytest.raises(Misconfigured, match="stack up --flink"):
        stack.flink_server(settings)
    try:
        try:
            assert stack.up(settings, 2, with_flink=True) == names
        except Misconfigured as error:
            missing(str(error))
        first = {part.name: part for part in stack.status(settings)}
        assert [first[name].state for name in names] == ["up"] * 4
        server = stack.flink_server(settings)
        assert first["job-server"].address == server.endpoint
        assert first["jobmanager"].address == f"http://{server.flink_master}"

        killed = first["taskmanager-2"].pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: _state(settings, "taskmanager-2") == "down")
        assert stack.up(settings, 2, with_flink=True) == ["taskmanager-2"]
        assert stack.flink_server(settings) == server
    finally:
        stopped = stack.down(settings)
    assert list(stopped) == ["taskmanager-2", "job-server", "taskmanager-1", "jobmanager"]
    assert [part.name for part in stack.status(settings)] == ["kafka", "valkey", "registry"]


def test_a_part_that_runs_elsewhere_is_left_alone(place: Place, tmp_path: Path) -> None:
    far = replace(ELSEWHERE, stack_dir=tmp_path / "far")
    assert stack.up(far, 2) == []
    assert [part.state for part in stack.status(far)] == ["elsewhere"] * 3


def test_a_damaged_state_file_is_told_and_nothing_is_started(place: Place) -> None:
    place.settings.stack_dir.mkdir()
    state = place.settings.stack_dir / "state.json"
    state.write_text('{"kafka": 7}')
    with pytest.raises(Misconfigured, match=r"state\.json is not readable"):
        stack.up(place.settings, 2)
    state.unlink()


def test_an_address_without_a_port_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="redis_url needs a host and a port"):
        stack.status(Settings(redis_url="redis://localhost", stack_dir=tmp_path))
