"""Versions change while requests come: nothing is lost, and nobody gets less than a model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy import cli
from features.catalog import CATALOG
from features.hashing import hash_ids
from inference.registry import FolderRegistry
from schemas.errors import Refused
from schemas.events import Status
from tests.published import publish
from tests.serving_process import ITEMS, Place, Server, settings_for

pytestmark = [pytest.mark.chaos, pytest.mark.kafka, pytest.mark.valkey, pytest.mark.tf]


@pytest.fixture
def place(kafka, valkey, registry, unique_name, tmp_path) -> Iterator[Place]:
    made = Place(settings_for(kafka, valkey, registry, unique_name("swap"), tmp_path))
    yield made
    made.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    from tests.tiny_model import export

    folder = tmp_path_factory.mktemp("tiny") / "model"
    export(folder, CATALOG, hash_ids(ITEMS))
    return folder


def run(place: Place, monkeypatch, *arguments: str) -> str:
    """A command of ours on the place's settings."""
    settings = place.settings
    monkeypatch.setenv("MILLSTREAM_MODELS_DIR", str(settings.models_dir))
    monkeypatch.setenv("MILLSTREAM_KEYS_DIR", str(settings.keys_dir))
    options = [
        f"--bootstrap-servers={settings.bootstrap_servers}",
        f"--registry-url={settings.registry_url}",
        f"--redis-url={settings.redis_url}",
        f"--prefix={settings.topic_prefix}",
    ]
    result = CliRunner().invoke(cli.build(), [*options, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_swap_under_load_loses_nothing_and_every_answer_is_a_models(
    place, exported, tmp_path, eventually, monkeypatch
):
    versions = [publish(place.settings, exported) for _ in range(2)]
    assert versions == [1, 2]
    run(place, monkeypatch, "release", "promote", "1", "--reason", "first")
    (tmp_path / "logs").mkdir()
    server = Server(place.settings, tmp_path / "logs")
    stop, sent = threading.Event(), 0
    try:
        eventually(server.ready, timeout_s=120)
        with ThreadPoolExecutor() as pool:

            def load() -> int:
                n = 0
                while not stop.is_set():
                    place.ask(range(n, n + 20))
                    n += 20
                    stop.wait(0.02)
                return n

            loading = pool.submit(load)
            try:
                eventually(lambda: place.read() > 200, timeout_s=60)
                run(place, monkeypatch, "release", "promote", "2")
                eventually(
                    lambda: place.read() and place.answers[-1].value.model_version == 2,
                    timeout_s=60,
                )
                run(place, monkeypatch, "release", "rollback")
                eventually(
                    lambda: place.read() and place.answers[-1].value.model_version == 1,
                    timeout_s=60,
                )
            finally:
                stop.set()
            sent = loading.result(30)
        eventually(lambda: place.read() >= sent, timeout_s=60)
        told = json.loads(run(place, monkeypatch, "request", "--user", "ann", "-k", "3", "--json"))
        listed = json.loads(run(place, monkeypatch, "release", "list", "--json"))
        assert server.stop() == 0
    finally:
        server.close()
    counts = place.counts()
    assert {f"r{n}": counts[f"r{n}"] for n in range(sent)} == {f"r{n}": 1 for n in range(sent)}
    assert {answer.value.status for answer in place.answers} == {Status.OK}
    for p in range(4):
        order = [a.value.model_version for a in place.answers if a.partition == p]
        changes = [int(v) for v in np.array(order)[np.flatnonzero(np.diff(order, prepend=0))]]
        assert changes == [1, 2, 1]
    assert told["titles"] == {"item-0": "ITEM-0", "item-1": "ITEM-1", "item-2": "ITEM-2"}
    assert [(v["version"], v["role"]) for v in listed["versions"]] == [(1, "stable"), (2, "")]
    assert listed["release"]["generation"] == 3


def test_a_release_of_a_damaged_version_is_not_made(place, exported, monkeypatch):
    publish(place.settings, exported)
    path = FolderRegistry(place.settings.models_dir).path("recommender", 1)
    (path / "saved_model.pb").write_bytes(b"other")
    with pytest.raises(Refused, match=r"saved_model\.pb"):
        run(place, monkeypatch, "release", "promote", "1")
