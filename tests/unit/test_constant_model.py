"""The constant model keeps the model's contract."""

from __future__ import annotations

import numpy as np
import pytest

from features.declare import Feature, FeatureSet, Level
from inference.constant import ConstantModel
from inference.model import ModelRef
from tests.contracts.model import ModelContract, users


class TestConstantModel(ModelContract):
    @pytest.fixture
    def features(self):
        return FeatureSet(
            features=(
                Feature(name="age", level=Level.USER, dtype="int64", compute=len, doc="age"),
                Feature(name="rate", level=Level.ITEM, dtype="float32", compute=len, doc="rate"),
            )
        )

    @pytest.fixture
    def catalogue(self):
        return np.arange(100, 130, dtype=np.uint64)

    @pytest.fixture
    def model(self, features, catalogue):
        ref = ModelRef(name="m", version=1, fingerprint=features.fingerprint)
        return ConstantModel(ref, catalogue, np.linspace(0, 1, 30, dtype=np.float32))

    def test_fewer_items_than_asked_are_padded(self, model, features):
        exclude = np.arange(100, 128, dtype=np.uint64)[None]
        found = model.retrieve(users(features, 1), exclude, 4)
        assert found.items.tolist() == [[129, 128, 0, 0]]
        assert np.isneginf(found.scores[0, 2:]).all()
