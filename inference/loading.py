"""From a version's number to a verified, warmed model."""

from __future__ import annotations

import shutil

from features.catalog import CATALOG, feature_set
from features.declare import FeatureSet
from inference.model import Model, ModelRef
from inference.registry import ModelFacts, ModelRegistry, read_manifest
from inference.set_router import SetServices
from inference.signature import Keyring
from schemas.errors import Refused


class RegistryLoader:
    """Implements `inference.reload.Loader` on a model registry."""

    def __init__(
        self,
        registry: ModelRegistry,
        name: str,
        keys: Keyring,
        sets: SetServices,
        batch_sizes: tuple[int, ...],
        threads: int | None = None,
    ) -> None:
        """
        Args:
            sets: what a model's feature set is served by.
            threads: of one model call; None: as many as TensorFlow likes.
        """
        self._registry = registry
        self._name = name
        self._keys = keys
        self._sets = sets
        self._batch_sizes = batch_sizes
        self._threads = threads

    def load(self, version: int) -> Model:
        # TensorFlow takes seconds to import: answers come meanwhile, and without any model too.
        from inference.savedmodel import SavedModel, use_threads  # noqa: PLC0415

        if self._threads is not None:
            use_threads(self._threads)
        copy = self._registry.fetch(self._name, version, self._keys)
        try:
            facts = read_manifest(copy).facts
            ref = ModelRef(name=self._name, version=version, fingerprint=facts.fingerprint)
            features = trained_on(facts)
            model = SavedModel(copy, ref, features, batch_sizes=self._batch_sizes)
            try:
                model.warm()
                return self._sets.kept_for(model, features)
            except BaseException:
                model.close()
                raise
        finally:
            shutil.rmtree(copy, ignore_errors=True)  # everything is in memory by now


def trained_on(facts: ModelFacts) -> FeatureSet:
    """
    The feature set of a version.

    Raises:
        Refused: this program cannot compute it; every difference is named.
    """
    if facts.fingerprint == CATALOG.fingerprint:
        return CATALOG
    if not facts.declaration:
        raise Refused(
            f"{facts.name} was trained on feature set {facts.fingerprint}, which its manifest does "
            f"not declare; this process computes {CATALOG.fingerprint}"
        )
    features = feature_set(facts.declaration)
    if features.fingerprint != facts.fingerprint:
        raise Refused(
            f"{facts.name} declares feature set {features.fingerprint}, but says that it was "
            f"trained on {facts.fingerprint}"
        )
    return features
