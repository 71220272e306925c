"""What every model promises, whatever runs it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from features.assemble import ItemFeatures, UserFeatures
from features.declare import FeatureSet, Level
from inference.model import Model
from schemas.errors import ModelFault

TOLERANCE = 1e-4  # float32 sums in another order


class ModelContract:
    """
    Fixtures to provide: `model`, `features` (its FeatureSet) and `catalogue` (at least 12 hashes
    that it can return).
    """

    @pytest.fixture
    def model(self) -> Model:
        raise NotImplementedError

    @pytest.fixture
    def features(self) -> FeatureSet:
        raise NotImplementedError

    @pytest.fixture
    def catalogue(self) -> NDArray[np.uint64]:
        raise NotImplementedError

    def test_each_request_gets_k_distinct_items_best_first(self, model, features, catalogue):
        found = model.retrieve(users(features, 3), none(3), 5)
        assert found.items.shape == found.scores.shape == (3, 5)
        assert found.items.dtype == np.uint64
        assert found.scores.dtype == np.float32
        assert np.isin(found.items, catalogue).all()
        assert all(len(set(row)) == 5 for row in found.items.tolist())
        assert (np.diff(found.scores, axis=1) <= 0).all()

    def test_an_excluded_item_is_never_returned(self, model, features):
        asked = users(features, 2)
        best = model.retrieve(asked, none(2), 3).items
        exclude = np.zeros((2, 4), np.uint64)
        exclude[0, :3] = best[0]
        exclude[1, 0] = best[1, 0]
        found = model.retrieve(asked, exclude, 3).items
        assert not np.isin(found[0], best[0]).any()
        assert best[1, 0] not in found[1]
        assert found[1, :2].tolist() == best[1, 1:].tolist()

    def test_an_unknown_excluded_item_changes_nothing(self, model, features):
        asked = users(features, 2)
        exclude = np.full((2, 2), 2**64 - 5, np.uint64)
        found = model.retrieve(asked, exclude, 4)
        assert found.items.tolist() == model.retrieve(asked, none(2), 4).items.tolist()

    def test_a_request_is_answered_alike_alone_and_in_a_batch(self, model, features):
        asked = users(features, 5)
        together = model.retrieve(asked, none(5), 4)
        alone = model.retrieve(one(asked, 3), none(1), 4)
        assert alone.scores[0] == pytest.approx(together.scores[3], abs=TOLERANCE)

    def test_rank_scores_each_candidate_and_pads_with_minus_infinity(
        self, model, features, catalogue
    ):
        candidates = np.zeros((2, 3), np.uint64)
        candidates[0] = catalogue[:3]
        candidates[1, 0] = catalogue[4]
        scores = model.rank(users(features, 2), candidates, items(features, 6))
        assert scores.shape == (2, 3)
        assert scores.dtype == np.float32
        assert (np.isneginf(scores) == (candidates == 0)).all()
        assert not np.isnan(scores).any()

    def test_a_score_does_not_depend_on_the_candidates_place(self, model, features, catalogue):
        candidates = catalogue[None, :4]
        asked, shown = users(features, 1), items(features, 4)
        scores = model.rank(asked, candidates, shown)
        turned = ItemFeatures(longs=shown.longs[::-1].copy(), floats=shown.floats[::-1].copy())
        backwards = model.rank(asked, candidates[:, ::-1].copy(), turned)
        assert backwards[0, ::-1] == pytest.approx(scores[0], abs=TOLERANCE)

    def test_a_candidate_outside_the_catalogue_is_scored(self, model, features):
        scores = model.rank(
            users(features, 1), np.array([[2**64 - 9]], np.uint64), items(features, 1)
        )
        assert np.isfinite(scores).all()

    def test_a_closed_model_is_a_model_fault(self, model, features):
        model.close()
        model.close()
        with pytest.raises(ModelFault):
            model.retrieve(users(features, 1), none(1), 1)


def users(features: FeatureSet, n: int, seed: int = 1) -> UserFeatures:
    """Some users' features, [n]."""
    return UserFeatures(**_packed(features, Level.USER, n, seed))


def items(features: FeatureSet, n: int, seed: int = 2) -> ItemFeatures:
    """Some candidates' features, [n]."""
    return ItemFeatures(**_packed(features, Level.ITEM, n, seed))


def none(batch: int) -> NDArray[np.uint64]:
    """Nothing excluded."""
    return np.zeros((batch, 0), np.uint64)


def one(all_users: UserFeatures, index: int) -> UserFeatures:
    """One user of several."""
    part = slice(index, index + 1)
    return UserFeatures(longs=all_users.longs[part], floats=all_users.floats[part])


def _packed(features: FeatureSet, level: Level, n: int, seed: int) -> dict[str, NDArray]:
    random = np.random.default_rng(seed)
    return {
        "longs": random.integers(0, 50, (n, features.width(level, "int64"))),
        "floats": random.random((n, features.width(level, "float32")), np.float32),
    }
