"""The network learns what popularity cannot, leaves TensorFlow unchanged, and fails cleanly."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.assemble import ItemFeatures, UserFeatures, named
from features.declare import Level
from features.examples import Examples, take
from inference.model import ModelRef
from ingest.clock import SystemClock
from retrain.assessment import Judges, assess_folder, assess_popularity, popular
from retrain.holdout import EvaluationPolicy, hold_out
from retrain.roles import history_items
from retrain.split import is_positive, split
from tests.contracts.model import ModelContract
from tests.learning import FEATURES, HASHES, ITEMS, SMALL, shoppers

pytestmark = pytest.mark.tf

REF = ModelRef(name="m", version=0, fingerprint=FEATURES.fingerprint)
ALL = np.arange(3_000)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return shoppers()


@pytest.fixture(scope="module")
def trained(examples: Examples):
    from retrain.train import Trained, train

    parts = split(examples.event_time, is_positive(examples.labels), SMALL)
    found = train(examples, parts.train, FEATURES, SMALL)
    assert isinstance(found, Trained)
    return found


def sample(examples: Examples, n: int = 200):
    from retrain.export import Sample

    some = take(examples, np.arange(len(examples) - n, len(examples)))
    return Sample(
        users=some.users,
        seen=history_items(FEATURES, some.users.longs),
        candidates=some.item_hash,
        items=some.items,
    )


@pytest.fixture(scope="module")
def exported(examples: Examples, trained, tmp_path_factory: pytest.TempPathFactory):
    from retrain.export import export

    folder = tmp_path_factory.mktemp("exported") / "model"
    return folder, export(trained.network, FEATURES, sample(examples), folder)


class TestExportedModel(ModelContract):
    @pytest.fixture
    def model(self, exported):
        from inference.savedmodel import SavedModel

        return SavedModel(exported[0], REF, FEATURES)

    @pytest.fixture
    def features(self):
        return FEATURES

    @pytest.fixture
    def catalogue(self):
        return HASHES


def test_the_model_beats_popularity_on_what_users_did_next(examples: Examples, exported) -> None:
    parts = split(examples.event_time, is_positive(examples.labels), SMALL)
    known = popular(examples, parts.train)
    policy = EvaluationPolicy(k=5)
    holdout = hold_out(take(examples, parts.holdout), FEATURES, policy, head=known.head)
    judges = Judges(features=FEATURES, policy=policy, clock=SystemClock())
    mine = assess_folder(exported[0], REF, holdout, judges, exported[1])
    other = assess_popularity(known, holdout, judges)
    assert mine.overall.mean_hit_rate > 0.75
    assert other.overall.mean_hit_rate < 0.4
    assert mine.holdout == other.holdout
    assert {s.name for s in mine.slices} == {"head", "tail", "new users", "surface:shop"}


def test_exported_and_trained_scores_are_equal(exported) -> None:
    folder, integrity = exported
    assert integrity.finite
    assert integrity.parity <= 1e-5
    assert integrity.problem == ""
    assert (folder / "warmup.npz").exists()
    assert (folder / "golden.npz").exists()


def test_another_training_has_the_same_graph(examples: Examples, exported, tmp_path: Path) -> None:
    """Of fewer examples: other bins, scales, weights and popularity."""
    from inference.graphs import Graphs
    from inference.savedmodel import SavedModel
    from retrain.export import export
    from retrain.train import Trained, train

    fewer = take(examples, np.arange(len(examples) // 2))
    parts = split(fewer.event_time, is_positive(fewer.labels), SMALL)
    found = train(fewer, parts.train, FEATURES, SMALL)
    assert isinstance(found, Trained)
    export(found.network, FEATURES, sample(fewer), tmp_path / "model")
    graphs = Graphs()
    first = SavedModel(exported[0], REF, FEATURES, graphs=graphs)
    assert graphs.open(tmp_path / "model").taken_over
    SavedModel(tmp_path / "model", REF, FEATURES, graphs=graphs).warm([1, 8])
    first.warm([1, 8])


def test_a_fresh_process_repeats_the_trainers_outputs(exported) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from inference.model import ModelRef; from inference.savedmodel import SavedModel\n"
        "from tests.learning import FEATURES\n"
        "ref = ModelRef(name='m', version=1, fingerprint=FEATURES.fingerprint)\n"
        "SavedModel(Path(sys.argv[1]), ref, FEATURES).warm([1, 8])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(exported[0])],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_retrieve_and_rank_agree_on_known_items(examples: Examples, exported) -> None:
    from inference.savedmodel import SavedModel

    model = SavedModel(exported[0], REF, FEATURES)
    users = UserFeatures(longs=examples.users.longs[-3:], floats=examples.users.floats[-3:])
    best = model.retrieve(users, np.zeros((3, 0), np.uint64), 5)
    shown = ItemFeatures(longs=np.zeros((15, 2), np.int64), floats=np.zeros((15, 1), np.float32))
    assert model.rank(users, best.items, shown) == pytest.approx(best.scores, abs=1e-4)


def test_fewer_items_than_asked_for_are_padded(examples: Examples, exported) -> None:
    from inference.savedmodel import SavedModel

    model = SavedModel(exported[0], REF, FEATURES)
    users = UserFeatures(longs=examples.users.longs[-1:], floats=examples.users.floats[-1:])
    found = model.retrieve(users, HASHES[None, :35], ITEMS + 3)
    assert set(found.items[0, :5].tolist()) == set(HASHES[35:].tolist())
    assert (found.items[0, 5:] == 0).all()
    assert np.isneginf(found.scores[0, 5:]).all()


def test_an_unknown_item_is_scored_by_its_content(examples: Examples, exported) -> None:
    from inference.savedmodel import SavedModel

    model = SavedModel(exported[0], REF, FEATURES)
    users = UserFeatures(longs=examples.users.longs[-1:], floats=examples.users.floats[-1:])
    unknown = np.array([[12345, 12345]], np.uint64)
    content = examples.items.longs[:2].copy()
    content[1] = 0
    shown = ItemFeatures(longs=content, floats=np.zeros((2, 1), np.float32))
    scores = model.rank(users, unknown, shown)[0]
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]


def test_the_same_examples_and_seed_give_the_same_network(examples: Examples, trained) -> None:
    from retrain.train import train

    parts = split(examples.event_time, is_positive(examples.labels), SMALL)
    again = train(examples, parts.train, FEATURES, SMALL)
    for one, other in zip(trained.network.get_weights(), again.network.get_weights(), strict=True):
        assert one == pytest.approx(other, abs=2e-3)  # rounding, grown over 150 steps


def test_nothing_after_the_cut_reaches_the_network(examples: Examples) -> None:
    from retrain.train import learn_vocabulary

    parts = split(examples.event_time, is_positive(examples.labels), SMALL)
    spoiled = replace(examples, item_hash=examples.item_hash.copy())
    spoiled.item_hash[parts.holdout] = 77
    known = learn_vocabulary(spoiled, parts.train, np.ones(len(parts.train)), FEATURES)
    assert 77 not in known.items
    assert examples.event_time[parts.train].max() < parts.cut_ms - SMALL.embargo_ms
    assert examples.event_time[parts.holdout].min() >= parts.cut_ms


def test_an_exploding_training_is_tried_once_more_slower(examples: Examples) -> None:
    from retrain.train import Trained, train

    told = []
    wild = replace(SMALL, learning_rate=1e12, retry_factor=1e-14, epochs=1)
    found = train(examples, ALL, FEATURES, wild, listener=told.append)
    assert isinstance(found, Trained)
    assert found.retried
    assert all(np.isfinite(w).all() for w in found.network.get_weights())
    assert len(told) == 1


def test_a_training_that_diverges_twice_fails_without_a_network(examples: Examples) -> None:
    from retrain.train import Failed, train

    wild = replace(SMALL, learning_rate=1e12, retry_factor=1.0, epochs=1)
    found = train(examples, ALL, FEATURES, wild)
    assert isinstance(found, Failed)
    assert not found.insufficient
    assert "epoch 1 step" in found.reason


def test_too_few_choices_are_not_trained_on(examples: Examples) -> None:
    from retrain.train import Failed, train

    found = train(examples, np.arange(50), FEATURES, SMALL)
    assert found == Failed(reason="50 choices, at least 100 needed", insufficient=True)


def test_values_never_seen_in_training_leave_scores_finite(examples: Examples, trained) -> None:
    longs = np.full((2, examples.users.longs.shape[1]), -(2**62))
    floats = np.array([[np.nan] * 7, [np.inf] * 7], np.float32)
    inputs = named(FEATURES, Level.USER, longs, floats)
    import tensorflow as tf

    scores = trained.network({n: tf.constant(v) for n, v in inputs.items()}).numpy()
    assert np.isfinite(scores).all()
