"""A champion that was trained on an older feature set is judged on a holdout of the new one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.assemble import ItemFeatures, Narrowing, UserFeatures
from features.catalog import CATALOG
from features.declare import FeatureSet, Level
from features.hashing import hash_ids
from inference.registry import FolderRegistry
from ingest.clock import ManualClock
from ingest.settings import Settings
from retrain.assessment import Judges, assess_version
from retrain.holdout import EvaluationPolicy, Holdout, HoldoutFacts, Shown
from schemas.errors import Refused
from tests.feature_sets import OLD
from tests.published import publish

pytestmark = pytest.mark.tf

ITEMS = hash_ids([f"item-{i}" for i in range(60)])
N = 12


def published(folder: Path, features: FeatureSet, declaration: str | None = None) -> FolderRegistry:
    from tests.tiny_model import export

    export(folder / "model", features, ITEMS)
    settings = Settings(model_name="m", models_dir=folder / "models", keys_dir=folder / "keys")
    publish(settings, folder / "model", features, declaration=declaration)
    return FolderRegistry(settings.models_dir)


def holdout() -> Holdout:
    rng = np.random.default_rng(3)

    def some(level: Level, n: int) -> tuple[np.ndarray, np.ndarray]:
        longs = rng.integers(0, 99, (n, CATALOG.width(level, "int64")))
        return longs, rng.random((n, CATALOG.width(level, "float32")), np.float32)

    longs, floats = some(Level.USER, N)
    item_longs, item_floats = some(Level.ITEM, N * 3)
    candidates = rng.choice(ITEMS, (N, 3))
    return Holdout(
        facts=HoldoutFacts(requests=N, users=N, from_ms=0, until_ms=1, digest="d"),
        users=UserFeatures(longs=longs, floats=floats),
        user=hash_ids([f"user-{i}" for i in range(N)]),
        seen=np.zeros((N, 1), np.uint64),
        truth_row=np.arange(N),
        truth_item=rng.choice(ITEMS[:20], N),
        slices={},
        shown=Shown(
            row=np.arange(N),
            candidates=candidates,
            items=ItemFeatures(longs=item_longs, floats=item_floats),
            chosen=np.tile([True, False, False], (N, 1)),
        ),
    )


def judges(features: FeatureSet) -> Judges:
    return Judges(features=features, policy=EvaluationPolicy(k=10), clock=ManualClock())


def test_it_is_asked_with_what_the_holdout_holds_of_its_features(tmp_path: Path) -> None:
    registry, asked = published(tmp_path, OLD), holdout()
    found = assess_version(registry, "m", 1, tmp_path / "keys", (asked, judges(CATALOG)))
    assert found.fingerprint == OLD.fingerprint
    assert found.overall.hit_rate.sum() > 0
    narrowing = Narrowing(CATALOG, OLD)
    assert asked.shown is not None

    narrow = replace(
        asked,
        users=narrowing.users(asked.users),
        shown=replace(asked.shown, items=narrowing.items(asked.shown.items)),
    )
    same = assess_version(registry, "m", 1, tmp_path / "keys", (narrow, judges(OLD)))
    assert found.overall.hit_rate.tolist() == same.overall.hit_rate.tolist()
    assert found.auc == same.auc


def test_without_a_declaration_it_is_refused_by_name(tmp_path: Path) -> None:
    registry = published(tmp_path, OLD, declaration="")
    with pytest.raises(Refused, match=f"{OLD.fingerprint}, which its manifest does not declare"):
        assess_version(registry, "m", 1, tmp_path / "keys", (holdout(), judges(CATALOG)))


def test_a_newer_sets_model_cannot_be_asked_with_an_older_holdout(tmp_path: Path) -> None:
    registry = published(tmp_path, CATALOG)
    with pytest.raises(Refused, match="do not hold what a model"):
        assess_version(registry, "m", 1, tmp_path / "keys", (holdout(), judges(OLD)))
