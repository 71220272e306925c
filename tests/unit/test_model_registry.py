"""The folder registry: the contract, and every way in which a folder can be wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from inference.registry import MANIFEST, FolderRegistry, ModelManifest, Version
from ingest.clock import ManualClock
from schemas.errors import Refused
from tests.contracts.model_registry import FACTS, ModelRegistryContract


class TestFolderRegistry(ModelRegistryContract):
    @pytest.fixture
    def registry(self, tmp_path: Path) -> FolderRegistry:
        return FolderRegistry(tmp_path / "models", clock=ManualClock())

    @pytest.fixture
    def home(self, registry, staging, key) -> Path:
        return registry.path("recommender", registry.publish(staging, FACTS, key))

    def test_a_flipped_bit_is_refused_by_file_name(self, registry, home, keys):
        data = bytearray((home / "saved_model.pb").read_bytes())
        data[2000] ^= 1
        (home / "saved_model.pb").write_bytes(data)
        with pytest.raises(Refused, match=r"saved_model\.pb: its SHA-256"):
            registry.fetch("recommender", 1, keys)

    def test_a_truncated_file_is_refused_by_name(self, registry, home, keys):
        (home / "saved_model.pb").write_bytes(b"graph")
        with pytest.raises(Refused, match=r"saved_model\.pb: 5000 bytes were signed"):
            registry.fetch("recommender", 1, keys)

    def test_a_longer_file_is_refused_by_name(self, registry, home, keys):
        with (home / "saved_model.pb").open("ab") as file:
            file.write(b"more")
        with pytest.raises(Refused, match=r"saved_model\.pb: 5000 bytes were signed"):
            registry.fetch("recommender", 1, keys)

    def test_a_missing_file_is_refused_by_name(self, registry, home, keys):
        (home / "variables" / "variables.index").unlink()
        with pytest.raises(Refused, match=r"variables\.index: No such file"):
            registry.fetch("recommender", 1, keys)

    def test_an_extra_file_is_refused_by_name(self, registry, home, keys):
        (home / "variables" / "extra").write_bytes(b"x")
        with pytest.raises(Refused, match="variables/extra is not listed"):
            registry.fetch("recommender", 1, keys)

    def test_a_link_to_the_same_bytes_is_refused_by_name(self, registry, home, keys, tmp_path):
        shutil.move(home / "saved_model.pb", tmp_path / "elsewhere")
        (home / "saved_model.pb").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Refused, match=r"saved_model\.pb is not a plain file"):
            registry.fetch("recommender", 1, keys)

    def test_an_altered_manifest_is_refused(self, registry, home, keys):
        text = (home / MANIFEST).read_text()
        (home / MANIFEST).write_text(text.replace("0.25", "0.95"))
        with pytest.raises(Refused, match=r"manifest\.json.*does not match"):
            registry.fetch("recommender", 1, keys)

    def test_an_unsigned_manifest_is_refused(self, registry, home, keys):
        signed = ModelManifest.from_json((home / MANIFEST).read_text())
        (home / MANIFEST).write_text(replace(signed, signature=b"").to_json())
        with pytest.raises(Refused, match=r"manifest\.json.*unsigned"):
            registry.fetch("recommender", 1, keys)

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"facts": {"name": "x"}}'])
    def test_a_manifest_that_does_not_parse_is_refused(self, registry, home, keys, text):
        (home / MANIFEST).write_text(text)
        with pytest.raises(Refused, match=r"manifest\.json does not parse"):
            registry.fetch("recommender", 1, keys)

    def test_a_version_under_another_number_is_refused(self, registry, home, keys):
        shutil.copytree(home, home.parent / "7")
        with pytest.raises(Refused, match="manifest of recommender version 1"):
            registry.fetch("recommender", 7, keys)

    def test_a_version_under_another_name_is_refused(self, registry, home, keys):
        shutil.copytree(home, home.parent.parent / "ranker" / "1")
        with pytest.raises(Refused, match="manifest of recommender version 1"):
            registry.fetch("ranker", 1, keys)

    def test_a_half_copied_version_is_invisible(self, registry, home):
        shutil.copytree(home, home.parent / "2", ignore=shutil.ignore_patterns(MANIFEST))
        assert registry.versions("recommender") == [Version(version=1)]

    def test_a_number_is_never_used_twice(self, registry, home, staging, key):
        assert registry.publish(staging, FACTS, key) == 2
        shutil.rmtree(home.parent / "2")
        assert registry.publish(staging, FACTS, key) == 3

    def test_a_failed_publication_leaves_nothing_visible(self, registry, home, staging, key):
        (staging / MANIFEST).write_text("{}")
        with pytest.raises(Refused, match=r"manifest\.json is there already"):
            registry.publish(staging, FACTS, key)
        assert registry.versions("recommender") == [Version(version=1)]
        assert not list(home.parent.glob(".half-*"))

    def test_a_refused_copy_is_removed(self, registry, home, keys, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "private"))
        (tmp_path / "private").mkdir()
        (home / "saved_model.pb").write_bytes(b"graph")
        with pytest.raises(Refused):
            registry.fetch("recommender", 1, keys)
        assert list((tmp_path / "private").iterdir()) == []

    def test_production_refuses_to_fetch_what_a_demo_registry_took(
        self, tmp_path, staging, key, keys
    ):
        demo = FolderRegistry(tmp_path / "models", profile="demo")
        version = demo.publish(staging, replace(FACTS, profile="demo"), key)
        assert demo.fetch("recommender", version, keys)
        with pytest.raises(Refused, match="demo"):
            FolderRegistry(tmp_path / "models").fetch("recommender", version, keys)

    @pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a\0b"])
    def test_a_name_that_leaves_the_root_is_refused(self, registry, staging, key, name):
        with pytest.raises(Refused, match="not a model name"):
            registry.publish(staging, replace(FACTS, name=name), key)
