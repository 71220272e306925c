"""Versions that are damaged, forged or broken: each is refused, and the old version serves on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from features.catalog import CATALOG
from features.items import ItemTable
from inference.loading import CallPolicy, RegistryLoader
from inference.registry import MANIFEST, FolderRegistry, ModelFacts
from inference.release import Why, first, promote, signed
from inference.reload import ReleaseFeed, Reloader
from inference.samples import GOLDEN, WARMUP
from inference.service import Service
from inference.set_router import SetServices
from inference.signature import Keyring, SigningKey
from ingest.log import Outgoing
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from schemas.codec import Codec
from schemas.events import Release
from schemas.registry import MemoryRegistry
from tests.network_world import HASHES, MODEL, Served, served

pytestmark = pytest.mark.tf

WHY = Why(at_ms=0, reason="test")
ONE = first(MODEL, 1, WHY)
TWO = promote(ONE, 2, WHY)
KEY = SigningKey.generate()
FILES = (
    "saved_model.pb",
    "fingerprint.pb",
    "variables/variables.data-00000-of-00001",
    "variables/variables.index",
    WARMUP,
    GOLDEN,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    from tests.tiny_model import export

    folder = tmp_path_factory.mktemp("tiny") / "model"
    export(folder, CATALOG, HASHES)
    return folder


@dataclass
class OwnSet:
    """What the one feature set is served by."""

    service: Service
    items: ItemTable

    @property
    def beside(self) -> Service:
        return self.service

    def wait_items(self, timeout_s: float) -> bool:
        return True

    def close(self) -> None:
        """Nothing was opened."""


def no_other_set(features):
    raise AssertionError(f"asked for the set {features.fingerprint}")


@dataclass
class Followed:
    """A network API whose models come from a registry, by releases."""

    rest: Served
    registry: FolderRegistry
    reloader: Reloader
    feed: MemoryProducer
    codec: Codec[Release]

    def publish(self, staging: Path, key: SigningKey = KEY) -> Path:
        """A new version's folder."""
        facts = ModelFacts(
            name=MODEL, fingerprint=CATALOG.fingerprint, profile="production", created_at=1
        )
        return self.registry.path(MODEL, self.registry.publish(staging, facts, key))

    def release(self, release: Release) -> None:
        value = self.codec.encode(signed(release, KEY))
        self.feed.send(Outgoing(topic="model-releases", key=MODEL.encode(), value=value))
        while self.reloader.step():
            pass

    def served_by(self) -> tuple[str, int]:
        """How the next caller is answered, and by which version."""
        found = self.rest.post("/v1/recommend", {"user_id": "ann"}).json
        return found["status"], found["model_version"]


@pytest.fixture
def world(exported, tmp_path) -> Iterator[Followed]:
    """Version 1 serves."""
    log = MemoryLog()
    log.create_topic("model-releases", 1)
    codec = Codec(MemoryRegistry(), Release, "model-releases")
    keys = Keyring([KEY.verify_key()])
    with served(None) as rest:
        own = rest.world
        feed = ReleaseFeed(MemorySource(log), codec, MODEL, keys, own.clock)
        feed.open(log)
        registry = FolderRegistry(tmp_path / "models", clock=own.clock)
        loader = RegistryLoader(
            registry,
            MODEL,
            keys,
            SetServices(OwnSet(own.service, own.items), no_other_set),
            CallPolicy(batch_sizes=(1, 2)),
            own.clock,
            own.metrics,
        )
        reloader = Reloader(feed, loader, own.live, own.clock, own.metrics)
        made = Followed(rest, registry, reloader, MemoryProducer(log), codec)
        made.publish(exported)
        made.release(ONE)
        assert made.served_by() == ("OK", 1)
        yield made
        for model in reloader.resident.values():
            model.close()


def refused(world: Followed, capsys) -> str:
    """Version 2 is released and refused: what is said of it. Version 1 serves on."""
    capsys.readouterr()
    world.release(TWO)
    told = capsys.readouterr()
    assert "model.refused" in told.out + told.err
    assert world.rest.world.metrics.value("serve.versions_refused") == 1
    assert set(world.reloader.resident) == {1}
    assert world.served_by() == ("OK", 1)
    return told.out + told.err


def test_a_good_version_replaces_the_old_one(world, exported):
    world.publish(exported)
    world.release(TWO)
    assert world.served_by() == ("OK", 2)


def test_the_files_named_here_are_all_that_a_version_has(exported):
    found = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()}
    assert found == set(FILES)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_version_without_one_of_its_files_is_refused(world, exported, capsys, name):
    (world.publish(exported) / name).unlink()
    assert name in refused(world, capsys)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_version_with_one_bit_flipped_is_refused(world, exported, capsys, name):
    path = world.publish(exported) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert Path(name).name in refused(world, capsys)


def test_a_half_copied_version_is_refused(world, exported, capsys):
    """The manifest is there, the last files have not come yet, and one is half there."""
    home = world.publish(exported)
    (home / WARMUP).unlink()
    data = (home / "saved_model.pb").read_bytes()
    (home / "saved_model.pb").write_bytes(data[: len(data) // 2])
    refused(world, capsys)


def test_a_version_that_is_not_there_is_refused(world, capsys):
    refused(world, capsys)


def test_a_version_signed_by_a_stranger_is_refused(world, exported, capsys):
    world.publish(exported, SigningKey.generate())
    assert "not among the trusted" in refused(world, capsys)


def manifest_with(**changes) -> Callable[[bytes], bytes]:
    """What makes another manifest of one, without signing it again."""
    return lambda text: json.dumps(json.loads(text) | changes).encode()


def with_fact(name: str, value: object) -> Callable[[bytes], bytes]:
    def change(text: bytes) -> bytes:
        found = json.loads(text)
        found["facts"][name] = value
        return json.dumps(found).encode()

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(manifest_with(signature="00" * 64), id="signature of zeros"),
        pytest.param(manifest_with(signature="00"), id="signature too short"),
        pytest.param(manifest_with(signature="zz"), id="signature is no hex"),
        pytest.param(manifest_with(signature=None), id="signature is null"),
        pytest.param(manifest_with(key_id=["a"]), id="key id is a list"),
        pytest.param(manifest_with(files=[]), id="no files"),
        pytest.param(manifest_with(files={"a": 1}), id="files are an object"),
        pytest.param(manifest_with(version=3), id="another version"),
        pytest.param(
            lambda text: text.replace(b'"version": 2', b'"version": 1e999'), id="infinity"
        ),
        pytest.param(with_fact("created_at", float("nan")), id="NaN"),
        pytest.param(with_fact("name", "\ud800"), id="lone surrogate"),
        pytest.param(with_fact("declaration", {"a": 1}), id="declaration is an object"),
        pytest.param(lambda _: b"[" * 100_000, id="nested too deep"),
        pytest.param(lambda _: b"\xff\xfe", id="not UTF-8"),
        pytest.param(lambda text: text[: len(text) // 2], id="truncated"),
        pytest.param(lambda _: b"", id="empty"),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(world, exported, capsys, change):
    path = world.publish(exported) / MANIFEST
    path.write_bytes(change(path.read_bytes()))
    assert MANIFEST in refused(world, capsys)


# --- signed as it is: only loading and warming can tell


def damaged(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "damaged"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_signed_version_with_a_truncated_file_never_serves_wrong_answers(
    world, exported, tmp_path, capsys, name, kept
):
    staging = damaged(exported, tmp_path)
    data = (staging / name).read_bytes()
    (staging / name).write_bytes(data[: int(kept * len(data))])
    world.publish(staging)
    if name == "fingerprint.pb":  # which TensorFlow reads for its own statistics only
        world.release(TWO)
        assert world.served_by() == ("OK", 2)
        return
    refused(world, capsys)


@pytest.mark.parametrize("name", [WARMUP, GOLDEN])
@pytest.mark.parametrize("at", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_signed_version_with_broken_samples_is_refused(
    world, exported, tmp_path, capsys, name, at
):
    staging = damaged(exported, tmp_path)
    data = bytearray((staging / name).read_bytes())
    start = int(at * len(data))
    data[start : start + 60] = bytes(b ^ 0xFF for b in data[start : start + 60])
    (staging / name).write_bytes(data)
    world.publish(staging)
    refused(world, capsys)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("nan", "NaN among the scores"),
        ("few", "of shape"),
        ("no-scores", "scores is absent"),
        ("int-scores", "is int32"),
        ("no-rank", "signature 'rank' is missing"),
    ],
)
def test_a_signed_version_whose_answers_are_of_no_use_is_refused(
    world, tmp_path, capsys, fault, told
):
    from tests.tiny_model import export

    staging = tmp_path / "faulty"
    export(staging, CATALOG, HASHES, fault=fault)
    world.publish(staging)
    assert told in refused(world, capsys)


def test_a_version_that_turns_to_nan_while_it_serves_is_replaced_by_popular_items(world, tmp_path):
    """Its samples are fine: what it gives for other users than those is not."""
    from tests.tiny_model import export

    staging = tmp_path / "faulty"
    export(staging, CATALOG, HASHES, fault="nan-later")
    world.publish(staging)
    world.release(TWO)
    found = world.rest.post("/v1/recommend", {"user_id": "ann"}).json
    assert (found["status"], found["fallback_reason"]) == ("FALLBACK", "model-fault")
    assert found["items"]
    back = promote(TWO, 1, WHY)
    world.release(back)
    assert world.served_by() == ("OK", 1)


def test_a_refused_version_that_is_mended_serves_after_a_while(world, exported, capsys):
    path = world.publish(exported) / "saved_model.pb"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(world, capsys)
    path.write_bytes(whole)
    world.rest.world.clock.advance(1.1)
    while world.reloader.step():
        pass
    assert world.served_by() == ("OK", 2)


def test_nothing_of_a_refused_version_stays_on_the_disk(world, exported, capsys, monkeypatch):
    private = world.registry.path(MODEL, 1).parent.parent / "private"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    path = world.publish(exported) / "variables" / "variables.index"
    path.write_bytes(np.random.default_rng(1).bytes(100))
    refused(world, capsys)
    assert list(private.iterdir()) == []
