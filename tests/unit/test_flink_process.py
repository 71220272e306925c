"""The local Flink cluster's settings hold what the rest relies on."""

from __future__ import annotations

from pathlib import Path

from deploy import flink

PORTS = flink.FlinkPorts(rest=1, rpc=2, blob=3, job=4, artifact=5)


def options(directory: Path, ports: flink.FlinkPorts = PORTS) -> flink.FlinkOptions:
    return flink.FlinkOptions(directory=directory, cache_dir=directory, ports=ports)


def test_all_that_flink_opens_is_on_loopback_and_nothing_is_checkpointed(tmp_path: Path) -> None:
    lines = flink.config(options(tmp_path)).splitlines()
    found = dict(line.split(": ", maxsplit=1) for line in lines)
    hosts = {key: value for key, value in found.items() if "host" in key or "address" in key}
    assert set(hosts.values()) == {"127.0.0.1"}
    assert {"jobmanager.bind-host", "rest.bind-address", "taskmanager.bind-host"} <= set(hosts)
    assert not any("checkpoint" in key for key in found)


def test_a_job_that_fails_again_and_again_ends(tmp_path: Path) -> None:
    text = flink.config(options(tmp_path))
    assert "restart-strategy.type: failure-rate\n" in text


def test_every_process_has_a_name_and_the_clients_ones_an_address(tmp_path: Path) -> None:
    one = options(tmp_path)
    assert one.processes == ("jobmanager", "taskmanager-1", "taskmanager-2", "job-server")
    assert [flink.address(one, name) for name in one.processes] == [
        "http://127.0.0.1:1",
        "",
        "",
        "127.0.0.1:4",
    ]
