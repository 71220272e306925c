"""A version goes from the registry to a served model on the back end that was chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.assemble import UserFeatures
from features.catalog import CATALOG
from inference.backend import Backend, RemotePolicy, Runtime
from inference.listen import GrpcOptions
from inference.loading import CallPolicy, RegistryLoader
from inference.model import ModelRef
from inference.registry import FolderRegistry, ModelFacts
from inference.set_router import SetServices
from inference.signature import Keyring, ensure_key
from inference.towers import TowerModel
from ingest.clock import SystemClock
from ingest.metrics import MemoryMetrics
from schemas.errors import Refused
from tests.contracts.model import none
from tests.network_world import HASHES, MODEL, Setup, served
from tests.serving import World
from tests.untrained import export_untrained, some_users

pytestmark = pytest.mark.tf


@dataclass
class Opened:
    """The own feature set, served."""

    service: Any
    items: Any

    @property
    def beside(self) -> Any:
        return self.service

    def wait_items(self, timeout_s: float) -> bool:
        return True

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Shop:
    """A registry with one version, and where its users come from."""

    registry: FolderRegistry
    root: Path
    keys: Path
    asked: UserFeatures

    def loader(self, backend: Backend) -> RegistryLoader:
        """One that runs versions so."""
        world = World()
        return RegistryLoader(
            self.registry,
            MODEL,
            Keyring.load(self.keys),
            SetServices(Opened(world.service, world.items), lambda features: None),
            CallPolicy(batch_sizes=(1, 4, 32), backend=backend),
            SystemClock(),
            MemoryMetrics(),
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    export_untrained(folder / "new", HASHES)
    registry, keys = FolderRegistry(folder / "models"), folder / "keys"
    facts = ModelFacts(
        name=MODEL, fingerprint=CATALOG.fingerprint, profile="production", created_at=1
    )
    assert registry.publish(folder / "new", facts, ensure_key(keys)) == 1
    return Shop(registry, folder / "models", keys, some_users(HASHES, 6)[0])


@pytest.fixture(scope="module")
def port(shop: Shop) -> Iterator[int]:
    """A server of the same folder."""
    from inference.savedmodel import SavedModel

    ref = ModelRef(name=MODEL, version=1, fingerprint=CATALOG.fingerprint)
    model = SavedModel(shop.registry.path(MODEL, 1), ref, CATALOG, batch_sizes=(1, 4, 32))
    with served(model, Setup(grpc=GrpcOptions())) as made:
        yield made.network.grpc_port


def remote(port: int) -> Backend:
    policy = RemotePolicy(address=f"127.0.0.1:{port}", deadline_s=10)
    return Backend(runtime=Runtime.REMOTE, remote=policy)


def test_a_remote_version_is_indexed_and_answers_as_one_in_this_process(
    shop: Shop, port: int
) -> None:
    here, there = shop.loader(Backend()).load(1), shop.loader(remote(port)).load(1)
    try:
        assert isinstance(there, TowerModel)
        assert there.index.size == len(HASHES)
        found, same = (m.retrieve(shop.asked, none(6), 5) for m in (there, here))
        np.testing.assert_array_equal(found.items, same.items)
        np.testing.assert_allclose(found.scores, same.scores, rtol=1e-5, atol=1e-5)
    finally:
        here.close()
        there.close()


def test_a_converted_version_is_indexed_and_answers_as_what_it_was_made_of(shop: Shop) -> None:
    from retrain.derived import derive

    made = derive(shop.registry, MODEL, 1, quantise=False, keys_dir=shop.keys, clock=SystemClock())
    lite = Backend(runtime=Runtime.LITERT)
    here, there = shop.loader(Backend()).load(1), shop.loader(lite).load(made.version)
    try:
        assert isinstance(there, TowerModel)
        assert there.index.size == len(HASHES)
        found, same = (m.retrieve(shop.asked, none(6), 5) for m in (there, here))
        np.testing.assert_array_equal(found.items, same.items)
        np.testing.assert_allclose(found.scores, same.scores, rtol=1e-4, atol=1e-4)
    finally:
        here.close()
        there.close()
    with pytest.raises(Refused, match="`millstream release export-litert 1`"):
        shop.loader(lite).load(1)


def test_a_folder_that_is_not_as_signed_is_refused_whatever_would_run_it(
    shop: Shop, port: int
) -> None:
    path = shop.registry.path(MODEL, 1) / "saved_model.pb"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        for backend in (Backend(), remote(port), Backend(runtime=Runtime.LITERT)):
            with pytest.raises(Refused, match="SHA-256"):
                shop.loader(backend).load(1)
    finally:
        path.write_bytes(content)
