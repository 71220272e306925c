"""
A trained version as LiteRT runs it: both towers from one small file, without TensorFlow.

`retrain.litert` converts the towers. What LiteRT has no operations for is done here, on their
vectors: the search of the best items among those known at training, and the products of users and
candidates. A version that has these files has those of a SavedModel too; either may serve it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from features.declare import Array, FeatureSet, Level
from inference.calls import BATCH_SIZES, CalledModel, CallStyle, name_of
from inference.expected import EXCLUDE, expected_inputs, with_leads
from inference.model import ModelRef
from inference.samples import ITEM, ITEMS, QUERY, RANK, RETRIEVE, USER_FLOATS, USER_LONGS
from inference.tensors import CANDIDATES, K, Signature, TensorSpec
from schemas.errors import ModelFault, Refused

MODEL_FILE: Final = "model.tflite"
CATALOGUE: Final = "catalogue.npy"  # [v] uint64, ascending: the items known at training
GOLDEN_FILE: Final = "golden-litert.npz"  # the golden calls, with the outputs the exporter saw
# Another processor rounds the same file otherwise.
TOLERANCE: Final = 1e-3
_PART = 512  # items in one call of their tower
_RESULTS: Final = {
    RETRIEVE: {
        "items": TensorSpec(dtype="int64", shape=(None, None)),
        "scores": TensorSpec(dtype="float32", shape=(None, None)),
    },
    RANK: {"scores": TensorSpec(dtype="float32", shape=(None, None))},
}


class LiteRtModel(CalledModel):
    """
    A folder with `model.tflite` and its catalogue. Calls may come from several threads: each tower
    has an interpreter of its own, which one call at a time has.
    """

    def __init__(
        self,
        folder: Path,
        ref: ModelRef,
        features: FeatureSet,
        *,
        batch_sizes: tuple[int, ...] = BATCH_SIZES,
        threads: int = 0,
        golden: str = GOLDEN_FILE,
    ) -> None:
        """
        Args:
            threads: of one call; 0: one.
            golden: the file of calls that the outputs are held against.

        Raises:
            Refused: the folder is no such model, or was trained for another feature set.
            ModelFault: the item tower fails on what was known at training.
        """
        style = CallStyle(batch_sizes=batch_sizes, warm_calls=1, tolerance=TOLERANCE, golden=golden)
        super().__init__(folder, ref, features, style)
        if not (folder / MODEL_FILE).is_file():
            raise Refused(
                f"{name_of(ref)} has no {MODEL_FILE}: `millstream release export-litert "
                f"{ref.version}` makes a version that has"
            )
        try:
            content = (folder / MODEL_FILE).read_bytes()
            self._towers = {name: _Tower(content, name, max(1, threads)) for name in (QUERY, ITEMS)}
            known = np.load(folder / CATALOGUE, allow_pickle=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise Refused(f"{folder} cannot be loaded: {error!s:.500}") from error
        self._known: NDArray[np.uint64] = _checked_catalogue(folder, known)
        self._accept(_signatures(self._towers, features))
        self._vectors = self._known_vectors()

    def close(self) -> None:
        self._towers = {}
        self._vectors = np.zeros((0, 0), np.float32)

    def _run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if signature == RETRIEVE:
            return self._retrieved(inputs)
        if signature == RANK:
            return self._ranked(inputs)
        tower = self._towers.get(signature)
        name = f"{name_of(self._ref)}, {signature}"
        if tower is None:
            raise ModelFault(f"{name}: it is closed or has no such signature")
        try:
            return tower(inputs)
        except (RuntimeError, ValueError) as error:
            raise ModelFault(f"{name}: {error!s:.500}") from error

    def _retrieved(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Top k of the items known at training, best first; hash 0 and -inf pad."""
        vectors, k = self._vectors, int(inputs[K])  # before the call that fails once it is closed
        queries = self._queried(inputs)
        scores = queries @ vectors.T
        left_out = inputs[EXCLUDE].view(np.uint64)
        at = np.minimum(np.searchsorted(self._known, left_out), len(self._known) - 1)
        row, column = np.nonzero(self._known[at] == left_out)
        scores[row, at[row, column]] = -np.inf
        most = min(k, len(self._known))
        best = np.argpartition(-scores, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        found = np.full((len(queries), k), -np.inf, np.float32)
        found[:, :most] = np.take_along_axis(scores, best, axis=1)
        items = np.zeros((len(queries), k), np.uint64)
        items[:, :most] = self._known[best]
        items[np.isneginf(found)] = 0
        return {"items": items.view(np.int64), "scores": found}

    def _ranked(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Score of each candidate."""
        candidates = inputs[CANDIDATES]
        queries = self._queried(inputs)
        if not candidates.size:  # LiteRT takes no tensor of nothing
            return {"scores": np.zeros(candidates.shape, np.float32)}
        own = {n: inputs[n] for n in self._signatures[ITEMS].inputs if n != ITEM}
        vectors = self._run(ITEMS, {**own, ITEM: candidates.ravel()})["vectors"]
        shown = vectors.reshape(*candidates.shape, vectors.shape[-1])
        scores = np.einsum("bd,bcd->bc", queries, shown)
        return {"scores": np.where(candidates == 0, np.float32(-np.inf), scores)}

    def _queried(self, inputs: Mapping[str, Array]) -> NDArray[np.float32]:
        """User vectors [b, d] of features by name."""
        packed = {
            USER_LONGS: _packed(inputs, self._features, "int64"),
            USER_FLOATS: _packed(inputs, self._features, "float32"),
        }
        vectors: NDArray[np.float32] = self._run(QUERY, packed)["vector"]
        return vectors

    def _known_vectors(self) -> NDArray[np.float32]:
        """[v, d] of the catalogue, which is looked up: whatever the content that comes with it."""
        content = {n: s for n, s in self._signatures[ITEMS].inputs.items() if n != ITEM}
        parts = [
            self._run(
                ITEMS,
                {n: _nothing(len(part), spec) for n, spec in content.items()}
                | {ITEM: part.view(np.int64)},
            )["vectors"]
            for part in np.split(self._known, range(_PART, len(self._known), _PART))
        ]
        return np.concatenate(parts)


class _Tower:
    """One signature of the file, in an interpreter of its own."""

    def __init__(self, content: bytes, signature: str, threads: int) -> None:
        self._lock = threading.Lock()
        # Kept: the runner refers to it from native code only.
        self._interpreter: Any = Interpreter(model_content=content, num_threads=threads)
        self._runner: Any = self._interpreter.get_signature_runner(signature)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of at least one row."""
        given = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        with self._lock:
            outputs: dict[str, Array] = self._runner(**given)  # copies of the interpreter's
        return outputs

    def signature(self, features: FeatureSet) -> Signature:
        """What it takes and gives."""
        return Signature(
            inputs=with_leads(_specs(self._runner.get_input_details()), features),
            outputs=_specs(self._runner.get_output_details()),
        )


def _signatures(towers: Mapping[str, _Tower], features: FeatureSet) -> dict[str, Signature]:
    own = {name: tower.signature(features) for name, tower in towers.items()}
    made = {
        name: Signature(inputs=inputs, outputs=_RESULTS[name])
        for name, inputs in expected_inputs(features).items()
    }
    return own | made


def _specs(details: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(
            dtype=np.dtype(one["dtype"]).name,
            shape=tuple(None if size < 0 else int(size) for size in one["shape_signature"]),
        )
        for name, one in details.items()
    }


def _nothing(rows: int, spec: TensorSpec) -> Array:
    return np.zeros((rows, *(size or 0 for size in spec.shape[1:])), spec.dtype)


def _packed(inputs: Mapping[str, Array], features: FeatureSet, dtype: str) -> Array:
    """User features by name as `features.assemble` packs them, [b, width]."""
    rows = len(inputs[CANDIDATES] if CANDIDATES in inputs else inputs[EXCLUDE])
    packed = np.zeros((rows, features.width(Level.USER, dtype)), dtype)
    for name, part in features.slices(Level.USER, dtype).items():
        packed[:, part] = inputs[name].reshape(rows, -1)
    return packed


def _checked_catalogue(folder: Path, known: Array) -> Array:
    fits = known.dtype == np.uint64 and known.ndim == 1 and len(known)
    if not fits or not (known[1:] > known[:-1]).all():
        raise Refused(
            f"{folder / CATALOGUE} is {known.dtype} {list(known.shape)}, expected ascending uint64"
        )
    return known
