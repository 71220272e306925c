"""The SavedModel keeps the model's contract, and refuses folders that do not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.assemble import UserFeatures
from features.declare import Feature, FeatureSet, Level
from inference.model import ModelRef
from inference.samples import GOLDEN, WARMUP, read_calls, write_calls
from schemas.errors import ModelFault, Refused, Rejected
from tests.contracts.model import ModelContract, items, none, users

pytestmark = pytest.mark.tf

FEATURES = FeatureSet(
    features=(
        Feature(
            name="history", level=Level.USER, dtype="int64", length=5, compute=len, doc="items"
        ),
        Feature(name="age_days", level=Level.USER, dtype="float32", compute=len, doc="age"),
        Feature(name="item_age", level=Level.ITEM, dtype="float32", compute=len, doc="age"),
        Feature(
            name="item_categories", level=Level.ITEM, dtype="int64", length=2, compute=len, doc="c"
        ),
    )
)
# Hashes use all 64 bits: half of them are negative as int64.
ITEMS = np.random.default_rng(3).integers(1, 2**64 - 1, 40, dtype=np.uint64)
REF = ModelRef(name="m", version=1, fingerprint=FEATURES.fingerprint)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_model import export

    path = tmp_path_factory.mktemp("model") / "1"
    export(path, FEATURES, ITEMS)
    return path


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def load(path: Path, features: FeatureSet = FEATURES, ref: ModelRef = REF):
    from inference.savedmodel import SavedModel

    return SavedModel(path, ref, features, batch_sizes=(1, 4, 8))


class TestSavedModel(ModelContract):
    @pytest.fixture
    def features(self):
        return FEATURES

    @pytest.fixture
    def catalogue(self):
        return ITEMS

    @pytest.fixture
    def model(self, folder):
        loaded = load(folder)
        yield loaded
        loaded.close()

    def test_a_batch_beyond_the_largest_size_is_cut(self, model):
        asked = users(FEATURES, 21)
        together = model.retrieve(asked, none(21), 3)
        assert together.items.shape == (21, 3)
        candidates = np.tile(ITEMS[:3], (21, 1))
        scores = model.rank(asked, candidates, items(FEATURES, 63))
        assert scores.shape == (21, 3)

    def test_the_inputs_reach_the_graph(self, model):
        asked = users(FEATURES, 1)
        other = UserFeatures(longs=asked.longs * 50, floats=asked.floats)
        scores = [model.retrieve(who, none(1), 3).scores for who in (asked, other)]
        assert (scores[0] != scores[1]).all()

    def test_more_items_than_there_are_is_a_model_fault(self, model):
        with pytest.raises(ModelFault, match="model m version 1, serving_default"):
            model.retrieve(users(FEATURES, 1), none(1), 41)


def test_a_good_folder_warms(folder):
    model = load(folder)
    model.warm()
    model.close()


def test_each_signature_begins_with_one_row_of_its_samples(folder, monkeypatch):
    model, begun = load(folder), []
    run = model._run
    monkeypatch.setattr(
        model, "_run", lambda name, inputs: (begun.append(name), run(name, inputs))[1]
    )
    sampled = read_calls(folder / WARMUP)
    model.begin(sampled)
    assert sorted(begun) == sorted(call.signature for call in sampled)
    broken = replace(sampled[0], signature="none")
    with pytest.raises(ModelFault, match="none"):
        model.begin([*sampled, broken])


def test_another_feature_set_is_refused_with_both_fingerprints(folder):
    with pytest.raises(Refused, match=f"ffff, this process computes {FEATURES.fingerprint}"):
        load(folder, ref=replace(REF, fingerprint="ffff"))


def test_a_signature_that_does_not_fit_is_explained(folder):
    history, *rest = FEATURES.features
    other = FeatureSet(
        features=(
            replace(history, length=9),
            *rest[:-1],
            Feature(name="surface", level=Level.USER, dtype="int64", compute=len, doc="s"),
        )
    )
    with pytest.raises(Refused) as refused:
        load(folder, other, replace(REF, fingerprint=other.fingerprint))
    message = str(refused.value)
    assert "input 'history' is int64 [-1, 5], expected int64 [-1, 9]" in message
    assert "serving_default: input 'surface' is missing" in message
    assert "rank: input 'item_categories' is no feature" in message


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(Refused, match=str(tmp_path)):
        load(tmp_path)


def test_lost_variables_are_refused(own):
    shutil.rmtree(own / "variables")
    with pytest.raises(Refused, match="cannot be loaded"):
        load(own)


def test_another_output_than_the_trainers_is_refused(own):
    calls = read_calls(own / GOLDEN)
    outputs = {**calls[0].outputs, "scores": calls[0].outputs["scores"] + 0.1}
    write_calls(own / GOLDEN, [replace(calls[0], outputs=outputs), *calls[1:]])
    with pytest.raises(Refused, match=r"golden call 0 \(serving_default\): scores differs by"):
        load(own).warm()


@pytest.mark.parametrize("name", [WARMUP, GOLDEN])
def test_missing_samples_are_refused_by_name(own, name):
    (own / name).unlink()
    with pytest.raises(Refused, match=name):
        load(own).warm()


def test_nan_scores_are_a_model_fault(tmp_path):
    from tests.tiny_model import export

    export(tmp_path / "1", FEATURES, ITEMS, fault="nan")
    with pytest.raises(ModelFault, match="NaN among the scores"):
        load(tmp_path / "1").retrieve(users(FEATURES, 2), none(2), 3)


def retrieve_inputs(rows: int, k: int = 3, exclude: int = 1) -> dict[str, np.ndarray]:
    """Inputs of the model's own signature."""
    features = {
        f.name: np.ones((rows,) if f.length == 1 else (rows, f.length), f.dtype)
        for f in FEATURES.of(Level.USER)
    }
    left_out = ITEMS[: rows * exclude].view(np.int64).reshape(rows, exclude)
    return features | {"exclude": left_out, "k": np.array(k, np.int32)}


def rank_inputs(rows: int, wide: int) -> dict[str, np.ndarray]:
    pairs = {
        f.name: np.ones((rows * wide,) if f.length == 1 else (rows * wide, f.length), f.dtype)
        for f in FEATURES.of(Level.ITEM)
    }
    users = {n: a for n, a in retrieve_inputs(rows).items() if n not in ("exclude", "k")}
    candidates = np.arange(rows * wide, dtype=np.int64).reshape(rows, wide)
    return users | pairs | {"candidates": candidates}


def test_a_signature_says_what_it_takes_and_what_an_input_counts(folder):
    signatures = load(folder).signatures
    rank = signatures["rank"].inputs
    assert {name: spec.lead for name, spec in rank.items()} == {
        "history": "rows",
        "age_days": "rows",
        "candidates": "rows",
        "item_age": "pairs",
        "item_categories": "pairs",
    }
    k = signatures["serving_default"].inputs["k"]
    assert (k.dtype, k.shape, k.lead) == ("int32", (), "none")
    assert set(signatures["serving_default"].outputs) == {"items", "scores"}


@pytest.mark.parametrize("exclude", [0, 1, 3])
def test_calling_a_signature_is_retrieving(folder, exclude):
    model = load(folder)
    inputs = retrieve_inputs(3, exclude=exclude)
    found = model.predict("serving_default", inputs, 3)
    longs = np.ones((3, 5), np.int64)
    asked = UserFeatures(longs=longs, floats=np.ones((3, 1), np.float32))
    same = model.retrieve(asked, inputs["exclude"].view(np.uint64), 3)
    np.testing.assert_array_equal(found["items"].view(np.uint64), same.items)
    np.testing.assert_array_equal(found["scores"], same.scores)


def test_rows_are_the_same_alone_and_padded_among_others(folder):
    """Three rows are padded to four; item features follow their rows."""
    model = load(folder)
    together = model.predict("rank", rank_inputs(3, 5), 3)["scores"]
    assert together.shape == (3, 5)
    inputs = rank_inputs(3, 5)
    for row in range(3):
        alone = {
            name: array[row * 5 : row * 5 + 5] if len(array) == 15 else array[row : row + 1]
            for name, array in inputs.items()
        }
        np.testing.assert_allclose(
            model.predict("rank", alone, 1)["scores"], together[row : row + 1]
        )


def test_more_than_the_catalogue_is_the_caller_s_fault(folder):
    with pytest.raises(Rejected, match="model m version 1, serving_default"):
        load(folder).predict("serving_default", retrieve_inputs(1, k=len(ITEMS) + 1), 1)


def test_nan_and_a_closed_model_are_the_model_s_fault(tmp_path):
    from tests.tiny_model import export

    export(tmp_path / "1", FEATURES, ITEMS, fault="nan")
    model = load(tmp_path / "1")
    with pytest.raises(ModelFault, match="NaN in its answer"):
        model.predict("serving_default", retrieve_inputs(1), 1)
    model.close()
    assert "rank" in model.signatures
    with pytest.raises(ModelFault, match="closed"):
        model.predict("serving_default", retrieve_inputs(1), 1)


def test_arrays_become_tensors_whatever_they_look_like_in_memory():
    """Kernels abort on memory that is not aligned: NumPy's here is on purpose not."""
    import tensorflow as tf

    from inference.savedmodel import tensors

    shifted = np.zeros(4 * 6 + 4, np.uint8)[4:].view(np.float32).reshape(2, 3)
    shifted[:] = np.arange(6).reshape(2, 3)
    arrays = [
        shifted,
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.arange(10, dtype=np.float32)[::3],
        np.array(7, np.int32),
        np.zeros((0, 4), np.int64),
        np.array([True, False]),
        np.array([b"a", b"bc"], object),
    ]
    found = tensors(arrays)
    for array, tensor in zip(arrays, found, strict=True):
        assert tensor.dtype == tf.as_dtype(array.dtype)
        assert np.array_equal(tensor.numpy(), array)
    assert float(tf.reduce_sum(tf.nn.relu(found[0]) + 1.0)) == 21
    shifted[:] = 0  # a tensor is its own
    assert found[0].numpy()[1].tolist() == [3, 4, 5]


@pytest.mark.parametrize("of_version_1", [False, True])
def test_inputs_of_one_kind_are_not_mixed_up(tmp_path, of_version_1):
    import tensorflow as tf

    from inference.savedmodel import _Call

    if of_version_1:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            given = {n: tf.compat.v1.placeholder(tf.float32, [None], f"{n}_in") for n in "xam"}
            factor = tf.compat.v1.get_variable("v", initializer=2.0, use_resource=True)
            outputs = {"z": given["x"] * factor - given["a"] * 10 + given["m"] * 100}
            outputs["b"] = given["x"] + 0
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "1"), given, outputs)
    else:
        spec = tf.TensorSpec([None], tf.float32)
        module = tf.Module()

        @tf.function(input_signature=[spec] * 3)
        def mixed(x, a, m):
            return {"z": x * 2 - a * 10 + m * 100, "b": x}

        module.mixed = mixed
        tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": mixed})
    call = _Call(tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"])
    values = {n: np.full(2, v, np.float32) for n, v in (("x", 1), ("a", 3), ("m", 5))}
    found = call(values)
    assert {name: array.tolist() for name, array in found.items()} == {
        "b": [1, 1],
        "z": [472, 472],
    }
    with pytest.raises(TypeError, match=r"not known: a$"):
        call({name: values[name] for name in "xm"})
    with pytest.raises(TypeError, match=r"not known: y$"):
        call({**values, "y": values["x"]})
