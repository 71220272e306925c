"""From a version's number to a verified, warmed model."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from features.assemble import UserFeatures
from features.catalog import CATALOG, feature_set
from features.declare import FeatureSet
from inference.backend import Backend, Runtime
from inference.calls import CalledModel
from inference.model import Model, ModelRef
from inference.registry import ModelFacts, ModelRegistry, read_manifest
from inference.samples import QUERY, RANK, USER_FLOATS, USER_LONGS, WARMUP, Call, read_calls
from inference.set_router import SetServices
from inference.signature import Keyring
from inference.towers import TowerModel, has_towers, ranks_by_product
from ingest.clock import Clock
from ingest.metrics import Metrics
from schemas.errors import Refused

log = structlog.get_logger(__name__)

ITEMS_S: Final = 60.0  # how long a version waits for the catalogue; then it is served what there is


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPolicy:
    """How models are called."""

    batch_sizes: tuple[int, ...]  # with how many rows they are called
    threads: int = 0  # of one call; 0: as many as the runtime likes
    backend: Backend = field(default_factory=Backend)


# A verified folder, which version it is, and the feature set that it was trained on.
Opened = Callable[[Path, ModelRef, FeatureSet], CalledModel]


class RegistryLoader:
    """Implements `inference.reload.Loader` on a model registry."""

    def __init__(
        self,
        registry: ModelRegistry,
        name: str,
        keys: Keyring,
        sets: SetServices,
        calls: CallPolicy,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """`sets`: what a model's feature set is served by."""
        self._clock, self._metrics = clock, metrics
        self._registry = registry
        self._name = name
        self._keys = keys
        self._sets = sets
        self._calls = calls
        self._opened: Opened | None = None  # None until the runtime is imported

    def load(self, version: int) -> Model:
        # The runtime is imported at the first version, while its bytes are copied and checked.
        with ThreadPoolExecutor(1) as aside:
            runtime = aside.submit(lambda: self._opened or self._runtime())
            copy = self._registry.fetch(self._name, version, self._keys)
        try:
            opened = runtime.result()
            first = self._opened is None
            if first:
                self._opened = opened
                # What is there by now stays, TensorFlow above all: no search for garbage needs to
                # look at it again. No model is: what is frozen with it would never be given back.
                gc.collect()
                gc.freeze()
            facts = read_manifest(copy).facts
            ref = ModelRef(name=self._name, version=version, fingerprint=facts.fingerprint)
            features = trained_on(facts)
            opened_model = opened(copy, ref, features)
            try:
                sampled = read_calls(copy / WARMUP)
                if first:  # nobody is served by a model yet, who would wait for the processors
                    opened_model.begin(sampled)
                return self._warmed(opened_model, features, sampled)
            except BaseException:
                opened_model.close()
                raise
        finally:
            shutil.rmtree(copy, ignore_errors=True)  # everything is in memory by now

    def _warmed(self, opened: CalledModel, features: FeatureSet, sampled: Sequence[Call]) -> Model:
        """Looked at, warm, and on top of its index."""
        # First: such a model is never asked to rank, which is most of a warm-up.
        products = has_towers(opened) and ranks_by_product(opened, features, sampled)
        opened.warm(sampled=sampled, rarely=(RANK,) if products else ())
        model = self._sets.kept_for(opened, features)
        try:
            return self._indexed(model, features, sampled, products=products)
        except BaseException:
            model.close()
            raise

    def _runtime(self) -> Opened:
        """
        What opens a version's folder.

        TensorFlow takes seconds to import: answers come meanwhile, and without any model too.
        """
        sizes, remote = self._calls.batch_sizes, self._calls.backend.remote
        if remote is not None:
            from inference.remote import RemoteModel  # noqa: PLC0415

            return lambda folder, ref, features: RemoteModel(
                folder, ref, features, remote, self._clock, self._metrics, batch_sizes=sizes
            )
        if self._calls.backend.runtime is Runtime.LITERT:
            from inference.litert import LiteRtModel  # noqa: PLC0415

            return partial(LiteRtModel, batch_sizes=sizes, threads=self._calls.threads)
        from inference.graphs import Graphs  # noqa: PLC0415
        from inference.savedmodel import SavedModel, use_threads  # noqa: PLC0415

        if self._calls.threads:
            use_threads(self._calls.threads)
        return partial(SavedModel, batch_sizes=sizes, graphs=Graphs())

    def _indexed(
        self, model: Model, features: FeatureSet, sampled: Sequence[Call], *, products: bool
    ) -> Model:
        """A model with both towers on top of an index of the catalogue; any other as it is."""
        if not has_towers(model):
            return model
        served_by = self._sets.of(model)
        if not served_by.wait_items(ITEMS_S):
            log.warning("index.items_missing", version=model.ref.version, waited_s=ITEMS_S)
        found = TowerModel(
            model,
            features,
            served_by.items,
            _sampled_users(sampled),
            self._metrics,
            products=products,
            threads=self._calls.threads,
        )
        found.catch_up()
        found.follow(self._clock)
        return found


def _sampled_users(calls: Sequence[Call]) -> UserFeatures:
    """Those of the version's warm-up set."""
    inputs = next((call.inputs for call in calls if call.signature == QUERY), None)
    if inputs is None:
        raise Refused(f"{WARMUP} holds no call of {QUERY!r}")
    return UserFeatures(longs=inputs[USER_LONGS], floats=inputs[USER_FLOATS])


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
