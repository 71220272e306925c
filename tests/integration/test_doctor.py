"""`millstream doctor` finds what is missing and says what to do."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from deploy import cli


@pytest.mark.tf
def test_doctor_tells_every_problem_at_once_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLSTREAM_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("MILLSTREAM_STACK_DIR", str(tmp_path / "stack"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = cli.run(
            ["--redis-url", f"redis://127.0.0.1:{port}/0", "doctor", "--runners", "--json"]
        )
    assert code == 2
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert all(found[name]["ok"] for name in ("wheels", "java", "valkey", "tensorflow"))
    assert not found["jars"]["ok"]
    assert "doctor --fetch" in found["jars"]["remedy"]
    assert (found["prism"]["ok"], found["flink"]["ok"]) == (False, False)
    assert "make setup" in found["prism"]["remedy"]
    assert "doctor --runners --fetch" in found["flink"]["remedy"]
    assert not found["ports"]["ok"]
    assert f"{port} (valkey)" in found["ports"]["found"]
    assert not (tmp_path / "empty").exists()
