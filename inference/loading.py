"""From a version's number to a verified, warmed model."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from features.declare import FeatureSet
from inference.model import ModelRef
from inference.registry import ModelRegistry, read_manifest
from inference.signature import Keyring

if TYPE_CHECKING:
    from inference.savedmodel import SavedModel


class RegistryLoader:
    """Implements `inference.reload.Loader` on a model registry."""

    def __init__(
        self,
        registry: ModelRegistry,
        name: str,
        keys: Keyring,
        features: FeatureSet,
        batch_sizes: tuple[int, ...],
        threads: int | None = None,
    ) -> None:
        """`threads`: of one model call; None: as many as TensorFlow likes."""
        self._registry = registry
        self._name = name
        self._keys = keys
        self._features = features
        self._batch_sizes = batch_sizes
        self._threads = threads

    def load(self, version: int) -> SavedModel:
        # TensorFlow takes seconds to import: answers come meanwhile, and without any model too.
        from inference.savedmodel import SavedModel, use_threads  # noqa: PLC0415

        if self._threads is not None:
            use_threads(self._threads)
        copy = self._registry.fetch(self._name, version, self._keys)
        try:
            facts = read_manifest(copy).facts
            ref = ModelRef(name=self._name, version=version, fingerprint=facts.fingerprint)
            model = SavedModel(copy, ref, self._features, batch_sizes=self._batch_sizes)
            try:
                model.warm()
            except BaseException:
                model.close()
                raise
        finally:
            shutil.rmtree(copy, ignore_errors=True)  # everything is in memory by now
        return model
