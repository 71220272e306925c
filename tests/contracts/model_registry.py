"""What every model registry promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.registry import ModelFacts, ModelRegistry, Version, read_manifest
from inference.signature import Keyring, SigningKey
from schemas.errors import Refused
from schemas.events import Attribute, Measure

FACTS = ModelFacts(
    name="recommender",
    fingerprint="0123456789abcdef",
    profile="production",
    created_at=1_700_000_000_000,
    parent=0,
    data=(Attribute(name="archive", value="manifest-7"),),
    metrics=(Measure(name="ndcg@10", value=0.25),),
)


class ModelRegistryContract:
    """Fixtures to provide: `registry`, an empty one that serves production."""

    @pytest.fixture
    def registry(self, tmp_path: Path) -> ModelRegistry:
        raise NotImplementedError

    @pytest.fixture
    def key(self) -> SigningKey:
        return SigningKey.generate()

    @pytest.fixture
    def keys(self, key: SigningKey) -> Keyring:
        return Keyring([key.verify_key()])

    @pytest.fixture
    def staging(self, tmp_path: Path) -> Path:
        folder = tmp_path / "staging"
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"graph" * 1000)
        (folder / "variables" / "variables.index").write_bytes(b"index")
        (folder / "warmup.npz").write_bytes(b"")
        return folder

    def test_what_was_published_is_fetched(self, registry, staging, key, keys):
        version = registry.publish(staging, FACTS, key)
        copy = registry.fetch("recommender", version, keys)
        assert content(copy) == content(staging)
        manifest = read_manifest(copy)
        assert (manifest.version, manifest.facts) == (version, FACTS)

    def test_the_staging_folder_may_go_after_publishing(self, registry, staging, key, keys):
        version = registry.publish(staging, FACTS, key)
        (staging / "saved_model.pb").write_bytes(b"other")
        copy = registry.fetch("recommender", version, keys)
        assert (copy / "saved_model.pb").read_bytes() == b"graph" * 1000

    def test_versions_grow_from_one(self, registry, staging, key):
        assert [registry.publish(staging, FACTS, key) for _ in range(3)] == [1, 2, 3]
        assert registry.versions("recommender") == [Version(version=v) for v in (1, 2, 3)]

    def test_an_unknown_model_has_no_versions(self, registry, keys):
        assert registry.versions("nothing") == []
        with pytest.raises(Refused, match="nothing"):
            registry.fetch("nothing", 1, keys)

    def test_a_version_signed_by_an_untrusted_key_is_refused(self, registry, staging, key, keys):
        stranger = SigningKey.generate()
        version = registry.publish(staging, FACTS, stranger)
        with pytest.raises(Refused, match=f"{stranger.key_id}.*not among the trusted"):
            registry.fetch("recommender", version, keys)

    def test_a_quarantined_version_stays_listed_and_is_refused(self, registry, staging, key, keys):
        version = registry.publish(staging, FACTS, key)
        registry.quarantine("recommender", version, "clicks fell")
        assert registry.versions("recommender") == [Version(version=1, quarantined="clicks fell")]
        with pytest.raises(Refused, match="quarantined: clicks fell"):
            registry.fetch("recommender", version, keys)
        assert registry.publish(staging, FACTS, key) == 2

    def test_a_production_registry_refuses_what_was_gated_for_a_demo(self, registry, staging, key):
        demo = ModelFacts(name="recommender", fingerprint="f", profile="demo", created_at=1)
        with pytest.raises(Refused, match="demo"):
            registry.publish(staging, demo, key)
        assert registry.versions("recommender") == []

    def test_a_link_in_the_staging_folder_is_refused(self, registry, staging, key):
        (staging / "assets").mkdir()
        (staging / "assets" / "link").symlink_to("/etc/hostname")
        with pytest.raises(Refused, match="assets/link"):
            registry.publish(staging, FACTS, key)
        assert registry.versions("recommender") == []


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a version but its manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
