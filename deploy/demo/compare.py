"""
Two versions on the same traffic: whose list holds what the shopper chose next without a list?

Both are asked with the features as served; choices made from a list are left out, since the list
was one version's. What the user's history holds counts for neither.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.demo.score import K, Score, Scores, interval
from features.assemble import UserFeatures
from features.catalog import CATALOG
from features.declare import Level
from inference.model import Model, ModelRef
from inference.registry import FolderRegistry
from inference.savedmodel import SavedModel
from inference.signature import Keyring
from ingest.settings import Settings

BATCH = 128
WITHIN_MS = 30_000  # a choice later than this says little about the request


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """n requests after the change: features as served, and what each user chose next (hash)."""

    users: Sequence[str]
    features: UserFeatures
    chosen: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """NDCG@10 of the new version minus the old one's, mean over users, with a 95 % interval."""

    users: int
    mean: float
    low: float
    high: float


def compared(
    settings: Settings, versions: tuple[int, int], asked: Asked
) -> tuple[dict[int, Score], Difference | None]:
    """Scores of the old and the new version on the same requests, and their difference."""
    gains: dict[int, NDArray[np.float64]] = {}
    for version in versions:
        with_model = _loaded(settings, version)
        try:
            gains[version] = _gains(with_model, asked)
        finally:
            with_model.close()
    old, new = (gains[version] for version in versions)
    scores = {
        version: _score(asked.users, gains[version], gains[versions[0]]) for version in versions
    }
    by_user: Mapping[str, list[float]] = defaultdict(list)
    for user, difference in zip(asked.users, (new - old).tolist(), strict=True):
        by_user[user].append(difference)
    means = np.array([np.mean(found) for found in by_user.values()], np.float64)
    if len(means) == 0:
        return {}, None
    low, high = interval(means)
    return (
        {version: score for version, score in scores.items() if score is not None},
        Difference(users=len(means), mean=float(means.mean()), low=low, high=high),
    )


def _loaded(settings: Settings, version: int) -> Model:
    registry = FolderRegistry(settings.models_dir, profile=settings.profile)
    folder = registry.fetch(settings.model_name, version, Keyring.load(settings.keys_dir))
    try:
        ref = ModelRef(name=settings.model_name, version=version, fingerprint=CATALOG.fingerprint)
        return SavedModel(folder, ref, CATALOG)
    finally:
        shutil.rmtree(folder)


def _gains(model: Model, asked: Asked) -> NDArray[np.float64]:
    """NDCG@10 with one relevant item, [n]."""
    history = CATALOG.slices(Level.USER, "int64")["history_items"]
    found = []
    for at in range(0, len(asked.users), BATCH):
        part = slice(at, at + BATCH)
        users = UserFeatures(longs=asked.features.longs[part], floats=asked.features.floats[part])
        seen = np.ascontiguousarray(users.longs[:, history]).view(np.uint64)
        ranked = model.retrieve(users, seen, K).items
        hit = ranked == asked.chosen[part][:, None]
        found.append(np.where(hit, 1 / np.log2(np.arange(2, K + 2)), 0.0).sum(axis=1))
    return np.concatenate([np.zeros(0), *found])


def _score(
    users: Sequence[str], gains: NDArray[np.float64], beside: NDArray[np.float64]
) -> Score | None:
    scores = Scores()
    for user, own, other in zip(users, gains.tolist(), beside.tolist(), strict=True):
        scores.add(0, user, own, other)
    return scores.score(0)
