"""`millstream serve` with each back end, on real Kafka and Valkey, on versions of one registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from features.catalog import CATALOG
from features.hashing import hash_ids
from inference.operator import promote
from inference.registry import FolderRegistry, ModelFacts
from inference.signature import ensure_key
from ingest.clock import SystemClock
from tests.serving_process import ITEMS, Place, Server, settings_for
from tests.untrained import export_untrained

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.tf]

ROOT = Path(__file__).parents[2]


@dataclass
class Shop:
    """Topics, and a registry whose version 1 is as trained, and version 2 made of it."""

    place: Place
    folder: Path
    eventually: Callable[..., Any]

    @contextmanager
    def serving(self, name: str, *options: str) -> Iterator[dict[str, int]]:
        """A process with these options; its ports by protocol."""
        settings = self.place.settings
        server = Server(settings, self.folder, name, "--http-port=0", "--grpc-port=0", *options)
        try:
            self.eventually(server.ready, timeout_s=120)
            text = server.errors.read_text()
            told = re.search(r"http on port (\d+), grpc on port (\d+)", text)
            assert told, text
            yield {"http": int(told[1]), "grpc": int(told[2])}
            assert server.stop() == 0
        finally:
            server.close()


@pytest.fixture
def shop(kafka, valkey, registry, tmp_path, eventually) -> Iterator[Shop]:
    settings = settings_for(kafka, valkey, registry, f"backends-{tmp_path.name}", tmp_path)
    place = Place(settings)
    export_untrained(tmp_path / "new", hash_ids(ITEMS))
    facts = ModelFacts(
        name=settings.model_name,
        fingerprint=CATALOG.fingerprint,
        profile="production",
        created_at=SystemClock().now_ms(),
    )
    key = ensure_key(settings.keys_dir)
    FolderRegistry(settings.models_dir).publish(tmp_path / "new", facts, key)
    (tmp_path / "logs").mkdir()
    yield Shop(place, tmp_path / "logs", eventually)
    place.close()


def recommended(port: int) -> tuple[int, list[tuple[str, float]]]:
    """Which version answers, and what."""
    body = json.dumps({"user_id": "ann", "k": 5}).encode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/recommend", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        found = json.load(answer)
    assert found["status"] == "OK", found
    return found["model_version"], [(one["item_id"], one["score"]) for one in found["items"]]


def test_every_back_end_gives_the_same_recommendations(shop: Shop) -> None:
    settings = shop.place.settings
    command = [sys.executable, "-m", "deploy.cli", "release", "export-litert", "1", "--json"]
    environment = {
        "MILLSTREAM_MODELS_DIR": str(settings.models_dir),
        "MILLSTREAM_KEYS_DIR": str(settings.keys_dir),
    }
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert (told["version"], told["parent"]) == (2, 1)
    promote(settings, 2, "either may serve it")
    with shop.serving("a") as here:
        remote = f"--remote=127.0.0.1:{here['grpc']}"
        for name, options in (("b", ("--backend=remote", remote)), ("c", ("--backend=litert",))):
            with shop.serving(name, *options) as other:
                # One after the other: a score depends on the time of day, and moves in seconds.
                version, found = recommended(other["http"])
                expected_version, expected = recommended(here["http"])
            assert version == expected_version == 2
            assert [item for item, _ in found] == [item for item, _ in expected]
            scores = [score for _, score in expected]
            assert [score for _, score in found] == pytest.approx(scores, abs=1e-3)


def test_a_back_end_without_what_it_needs_ends_with_an_explanation() -> None:
    command = [sys.executable, "-m", "deploy.cli", "serve", "--backend", "remote"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--backend remote needs --remote HOST:PORT" in " ".join(done.stderr.split())
