"""A converted version keeps the model's contract, and answers as the SavedModel it was made of."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.catalog import CATALOG
from features.hashing import hash_ids
from inference.model import ModelRef
from inference.registry import FolderRegistry, ModelFacts, read_manifest
from inference.samples import GOLDEN, read_calls, write_calls
from inference.signature import Keyring, ensure_key
from ingest.clock import SystemClock
from retrain.publish import JOB_KEY, published_by
from schemas.errors import ModelFault, Refused
from schemas.events import Attribute
from tests.contracts.model import ModelContract, items, none
from tests.untrained import export_untrained, some_users

pytestmark = pytest.mark.tf

HASHES = hash_ids([f"film-{i}" for i in range(300)])
REF = ModelRef(name="m", version=1, fingerprint=CATALOG.fingerprint)
FACTS = ModelFacts(
    name="m",
    fingerprint=CATALOG.fingerprint,
    profile="production",
    created_at=1,
    data=(Attribute(name=JOB_KEY, value="job-1"),),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 as trained, 2 converted, 3 quantised."""
    from retrain.derived import derive

    folder = tmp_path_factory.mktemp("litert")
    export_untrained(folder / "new", HASHES)
    registry, keys = FolderRegistry(folder / "models"), folder / "keys"
    registry.publish(folder / "new", FACTS, ensure_key(keys))
    for quantise in (False, True):
        derive(registry, "m", 1, quantise=quantise, keys_dir=keys, clock=SystemClock())
    return folder


@pytest.fixture
def registry(root: Path) -> FolderRegistry:
    return FolderRegistry(root / "models")


@pytest.fixture
def own(registry: FolderRegistry, tmp_path: Path) -> Path:
    """A copy of the converted version, to be damaged."""
    return Path(shutil.copytree(registry.path("m", 2), tmp_path / "own"))


def load(folder: Path, ref: ModelRef = REF, golden: str = "golden-litert.npz"):
    from inference.litert import LiteRtModel

    return LiteRtModel(folder, ref, CATALOG, batch_sizes=(1, 4, 8), golden=golden)


class TestLiteRtModel(ModelContract):
    @pytest.fixture
    def features(self):
        return CATALOG

    @pytest.fixture
    def catalogue(self):
        return HASHES

    @pytest.fixture
    def model(self, registry):
        loaded = load(registry.path("m", 2))
        loaded.warm()
        yield loaded
        loaded.close()

    @pytest.fixture
    def original(self, registry):
        from inference.savedmodel import SavedModel

        loaded = SavedModel(registry.path("m", 1), REF, CATALOG, batch_sizes=(1, 4, 8))
        yield loaded
        loaded.close()

    def test_it_answers_as_what_it_was_made_of(self, model, original):
        asked, seen = some_users(HASHES, 20)
        here, there = model.retrieve(asked, seen, 25), original.retrieve(asked, seen, 25)
        np.testing.assert_allclose(here.scores, there.scores, atol=1e-4)
        assert (here.items == there.items).mean() > 0.99  # equal scores may change places
        candidates = np.resize(HASHES, (20, 6))
        candidates[3, 4:] = 0
        candidates[4, 0] = 2**63 + 11  # unknown: scored by its content
        shown = items(CATALOG, 120)
        np.testing.assert_allclose(
            model.rank(asked, candidates, shown),
            original.rank(asked, candidates, shown),
            atol=1e-4,
        )

    def test_its_signatures_are_those_of_what_it_was_made_of(self, model, original):
        assert {n: s.inputs for n, s in model.signatures.items()} == {
            n: s.inputs for n, s in original.signatures.items()
        }

    def test_more_items_than_there_are_are_padded(self, model, original):
        asked, seen = some_users(HASHES, 2)
        here, there = model.retrieve(asked, seen, 310), original.retrieve(asked, seen, 310)
        assert ((here.items == 0) == (there.items == 0)).all()
        assert (np.isneginf(here.scores) == (there.items == 0)).all()

    def test_missing_and_extreme_values_are_taken_alike(self, model, original):
        """Both ends of int64 are hashes too; a number that is missing is NaN."""
        asked, _ = some_users(HASHES, 4)
        asked.longs[0], asked.longs[1], asked.longs[2] = 2**63 - 1, -(2**63), -1
        asked.floats[0], asked.floats[1], asked.floats[2] = np.nan, np.inf, -1e30
        given = {"user_longs": asked.longs, "user_floats": asked.floats}
        np.testing.assert_allclose(
            model.predict("query", given, 4)["vector"],
            original.predict("query", given, 4)["vector"],
            atol=1e-4,
        )

    def test_no_candidates_are_no_scores(self, model):
        asked, _ = some_users(HASHES, 2)
        nobody = np.zeros((2, 0), np.uint64)
        assert model.rank(asked, nobody, items(CATALOG, 0)).shape == (2, 0)

    def test_threads_do_not_see_each_other_s_answers(self, model):
        asked, _ = some_users(HASHES, 8)
        alone = [model.retrieve(one, none(1), 5).scores for one in split(asked)]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda one: model.retrieve(one, none(1), 5).scores, split(asked) * 5)
            for scores, expected in zip(found, alone * 5, strict=True):
                np.testing.assert_allclose(scores, expected, atol=1e-5)


def split(asked):
    return [replace(asked, longs=asked.longs[[n]], floats=asked.floats[[n]]) for n in range(8)]


def test_a_converted_version_is_signed_and_names_its_parent_and_how_close_it_is(
    registry: FolderRegistry, root: Path
) -> None:
    keys = Keyring.load(root / "keys")
    exact, quantised = (registry.check("m", version, keys).facts for version in (2, 3))
    assert (exact.parent, quantised.parent) == (1, 1)
    assert [one.value for one in exact.data if one.name == "litert"] == ["float32"]
    assert [one.value for one in quantised.data if one.name == "litert"] == ["dynamic-range int8"]
    measured = {one.name: one.value for one in exact.metrics}
    assert measured["litert_gap"] < 1e-4
    assert measured["litert_same_items"] == 1


def test_the_version_that_a_job_made_is_still_the_one_it_made(registry: FolderRegistry) -> None:
    assert published_by(registry, "m", "job-1") == 1


def test_a_converted_version_still_serves_as_a_savedmodel(registry: FolderRegistry) -> None:
    from inference.savedmodel import SavedModel

    model = SavedModel(registry.path("m", 2), REF, CATALOG)
    model.warm((1,))
    model.close()


def test_quantised_weights_are_smaller_and_their_version_serves(registry: FolderRegistry) -> None:
    sizes = [(registry.path("m", v) / "model.tflite").stat().st_size for v in (2, 3)]
    assert sizes[1] < 0.7 * sizes[0]
    model = load(registry.path("m", 3))
    model.warm()
    model.close()


def test_quantised_weights_are_not_what_the_trainer_saw(registry: FolderRegistry) -> None:
    with pytest.raises(Refused, match="golden call 0"):
        load(registry.path("m", 3), golden=GOLDEN).warm()


def test_what_is_too_far_from_what_it_was_is_not_published(
    registry: FolderRegistry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrain import derived

    monkeypatch.setattr(derived, "QUANTISED", derived.Parity(gap=1e-6, same_items=1.0))
    before = registry.versions("m")
    with pytest.raises(Refused, match="as LiteRT: scores differ by up to"):
        derived.derive(registry, "m", 1, quantise=True, keys_dir=root / "keys", clock=SystemClock())
    assert registry.versions("m") == before


def test_a_converted_version_is_not_converted_again(registry: FolderRegistry, root: Path) -> None:
    from retrain.derived import derive

    with pytest.raises(Refused, match="export its parent"):
        derive(registry, "m", 2, quantise=False, keys_dir=root / "keys", clock=SystemClock())


def test_a_model_without_towers_is_not_converted(tmp_path: Path) -> None:
    from retrain.litert import converted
    from tests.tiny_model import export

    export(tmp_path / "1", CATALOG, HASHES)
    with pytest.raises(Refused, match="no signature 'items': only towers are converted"):
        converted(tmp_path / "1", quantise=False)


def test_a_mask_of_other_than_low_bits_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    from retrain.litert import converted

    def masked(item: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"vectors": tf.bitwise.bitwise_and(item, tf.constant(6, tf.int64))}

    module = tf.Module()
    tower = tf.function(masked).get_concrete_function(tf.TensorSpec([None], tf.int64, name="item"))
    tf.saved_model.save(module, str(tmp_path), signatures={"items": tower, "query": tower})
    with pytest.raises(Refused, match="a mask of 6"):
        converted(tmp_path, quantise=False)


def test_a_version_that_was_not_converted_says_how_it_can_be(registry: FolderRegistry) -> None:
    with pytest.raises(Refused, match="`millstream release export-litert 1`"):
        load(registry.path("m", 1))


def test_a_broken_file_is_refused(own: Path) -> None:
    (own / "model.tflite").write_bytes(b"no model")
    with pytest.raises(Refused, match="cannot be loaded"):
        load(own)


@pytest.mark.parametrize("known", [np.array([3, 1], np.uint64), np.array([1], np.int64)])
def test_a_catalogue_that_is_none_is_refused(own: Path, known: np.ndarray) -> None:
    np.save(own / "catalogue.npy", known)
    with pytest.raises(Refused, match="expected ascending uint64"):
        load(own)


def test_other_answers_than_the_exporter_saw_are_refused(own: Path) -> None:
    path = own / "golden-litert.npz"
    calls = read_calls(path)
    outputs = {**calls[0].outputs, "scores": calls[0].outputs["scores"] + 1}
    write_calls(path, [replace(calls[0], outputs=outputs), *calls[1:]])
    with pytest.raises(Refused, match="golden call 0"):
        load(own).warm()


def test_the_folder_is_not_needed_once_it_is_loaded(own: Path) -> None:
    model = load(own)
    model.warm()
    assert read_manifest(own).version == 2
    shutil.rmtree(own)
    asked, _ = some_users(HASHES, 2)
    assert model.retrieve(asked, none(2), 3).items.all()
    model.close()
    with pytest.raises(ModelFault, match="closed"):
        model.rank(asked, np.resize(HASHES, (2, 1)), items(CATALOG, 2))
