"""Challenger, champion and popularity put to the same questions, each as serving would run it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemsShown, Narrowing, UserFeatures
from features.declare import FeatureSet
from features.examples import Examples
from inference.constant import ConstantModel
from inference.loading import trained_on
from inference.model import Model, ModelRef, Scored
from inference.registry import FolderRegistry, read_manifest
from inference.signature import Keyring
from ingest.clock import Clock
from retrain.evaluate import evaluate
from retrain.holdout import EvaluationPolicy, Holdout
from retrain.report import Integrity, Report
from retrain.split import is_positive

POPULARITY = "popularity"
_HEAD_SHARE = 0.5  # of all choices fall on the items called "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Reports on the same holdout."""

    candidate: Report
    champion: Report | None
    popularity: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Popular:
    """How often each item was chosen in the training's time, most first, [v] each."""

    items: NDArray[np.uint64]
    counts: NDArray[np.float32]

    @property
    def head(self) -> NDArray[np.uint64]:
        """The fewest items with half of the choices."""
        share = np.cumsum(self.counts) / max(1.0, float(self.counts.sum()))
        return self.items[: int(np.searchsorted(share, _HEAD_SHARE)) + 1]

    def model(self, fingerprint: str) -> Model:
        """The ranking by popularity as a model."""
        ref = ModelRef(name=POPULARITY, version=0, fingerprint=fingerprint)
        return ConstantModel(ref, self.items, self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """What an assessment needs beside the models."""

    features: FeatureSet
    policy: EvaluationPolicy
    clock: Clock


def popular(examples: Examples, rows: NDArray[np.int64]) -> Popular:
    """Counts of choices among some of the examples."""
    chosen = rows[is_positive(examples.labels[rows])]
    items, counts = np.unique(examples.item_hash[chosen], return_counts=True)
    order = np.lexsort((items, -counts))
    return Popular(items=items[order], counts=counts[order].astype(np.float32))


def assess_folder(
    folder: Path,
    ref: ModelRef,
    holdout: Holdout,
    judges: Judges,
    integrity: Integrity | None,
    features: FeatureSet | None = None,
) -> Report:
    """
    The report of an exported model, loaded and warmed as serving does.

    Args:
        features: that it was trained on; None: those of the holdout.

    Raises:
        Refused: it does not load, fit its feature set, or repeat its golden calls; or the holdout
            does not hold its features.
        ModelFault: it does not answer.
    """
    from inference.savedmodel import SavedModel  # noqa: PLC0415 - loads TensorFlow

    own = features or judges.features
    model = SavedModel(folder, ref, own)
    try:
        model.warm()
        asked: Model = model
        if own.fingerprint != judges.features.fingerprint:
            asked = _OfOldSet(model, Narrowing(judges.features, own))
        found = evaluate(asked, holdout, judges.policy, judges.clock, size_bytes=_size(folder))
    finally:
        model.close()
    return replace(found, integrity=integrity)


def assess_popularity(known: Popular, holdout: Holdout, judges: Judges) -> Report:
    """The report of the popularity ranking."""
    model = known.model(judges.features.fingerprint)
    return evaluate(model, holdout, judges.policy, judges.clock)


def assess_version(
    registry: FolderRegistry, name: str, version: int, keys_dir: Path, asked: tuple[Holdout, Judges]
) -> Report:
    """
    The report of a published version, from a verified copy.

    Raises:
        Refused: it does not verify, load, or fit the feature set of the holdout.
    """
    holdout, judges = asked
    with _fetched(registry, name, version, keys_dir) as folder:
        facts = read_manifest(folder).facts
        ref = ModelRef(name=name, version=version, fingerprint=facts.fingerprint)
        same = facts.fingerprint == judges.features.fingerprint
        features = judges.features if same else trained_on(facts)
        return assess_folder(folder, ref, holdout, judges, None, features)


class _OfOldSet:
    """A model of another feature set, asked with what the holdout holds of it."""

    def __init__(self, model: Model, narrowing: Narrowing) -> None:
        self._model, self._narrowing = model, narrowing

    @property
    def ref(self) -> ModelRef:
        return self._model.ref

    def retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        return self._model.retrieve(self._narrowing.users(users), exclude, k)

    def rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemsShown
    ) -> NDArray[np.float32]:
        narrow = self._narrowing
        return self._model.rank(narrow.users(users), candidates, narrow.items(items))

    def close(self) -> None:
        self._model.close()


@contextmanager
def _fetched(registry: FolderRegistry, name: str, version: int, keys_dir: Path) -> Iterator[Path]:
    folder = registry.fetch(name, version, Keyring.load(keys_dir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    """Bytes of the graph and its weights: what a server holds, samples and metrics left out."""
    parts = (folder / "saved_model.pb", *(folder / "variables").glob("*"))
    return sum(path.stat().st_size for path in parts if path.is_file())
