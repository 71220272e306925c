"""
A trained version as TensorFlow runs it: loaded, checked against the feature set, warmed.

The only module of this package that imports TensorFlow; import it late.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features.assemble import ItemFeatures, UserFeatures, named
from features.declare import Array, FeatureSet, Level
from inference.model import ModelRef, Scored
from inference.samples import (
    GOLDEN,
    ITEM,
    ITEMS,
    QUERY,
    RANK,
    RETRIEVE,
    USER_FLOATS,
    USER_LONGS,
    WARMUP,
    read_calls,
)
from inference.tensors import CANDIDATES, Signature, TensorSpec
from schemas.errors import ModelFault, Reason, Refused, Rejected

# Every batch is padded to one of these: kernels and their buffers are reused, not made anew.
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# float32 sums differ in order between machines; scores of trained models are of the order 1-10.
TOLERANCE: Final = 1e-3
_OUTPUTS: Final = {"items": "int64", "scores": "float32"}
WARM_CALLS = 3  # the first call compiles, the second still allocates


def use_threads(threads: int) -> None:
    """
    Let a model call use so many threads. Counts only before TensorFlow's first work in a process.

    Threads of a pool wait for each other by spinning: on cores that others need as well, one
    thread takes a fifth less processor time for a request than two.
    """
    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


class SavedModel:
    """
    Implements `inference.model.Model` and `TensorModel` on a SavedModel folder with the
    signatures `serving_default` (retrieve) and `rank`. Calls may come from several threads.
    """

    def __init__(
        self,
        path: Path,
        ref: ModelRef,
        features: FeatureSet,
        *,
        batch_sizes: tuple[int, ...] = BATCH_SIZES,
    ) -> None:
        """
        Raises:
            Refused: the folder is no such model, or was trained for another feature set.
        """
        if ref.fingerprint != features.fingerprint:
            raise Refused(
                f"{_name(ref)} was trained on feature set {ref.fingerprint}, "
                f"this process computes {features.fingerprint}"
            )
        self._path, self._ref, self._features = path, ref, features
        self._sizes = tuple(sorted(batch_sizes))
        try:
            self._loaded: Any = tf.saved_model.load(str(path))
        except Exception as error:
            # TensorFlow raises whatever a broken file provokes; all mean: not this folder.
            raise Refused(f"{path} cannot be loaded: {error!s:.500}") from error
        self._calls: dict[str, Any] = dict(self._loaded.signatures)
        if problems := signature_problems(self._found(), features):
            self.close()
            raise Refused(f"{_name(ref)} does not fit its feature set: {'; '.join(problems)}")
        pairs = {f.name for f in features.of(Level.ITEM)}
        self._signatures = {name: _signature(call, pairs) for name, call in self._calls.items()}

    @property
    def ref(self) -> ModelRef:
        return self._ref

    def warm(self, sizes: Iterable[int] | None = None) -> None:
        """
        Replay the sampled inputs at every batch size, then compare with the trainer's outputs.

        Raises:
            Refused: samples are missing, or the outputs are not those of the trainer.
            ModelFault: a sampled input makes the model fail, or give NaN or too few scores.
        """
        for call in read_calls(self._path / WARMUP):
            rows = {n: a for n, a in call.inputs.items() if _per_row(n, call.inputs)}
            shared = {n: a for n, a in call.inputs.items() if n not in rows}
            batch = len(next(iter(rows.values())))
            for size in sizes or self._sizes:
                at = np.arange(size) % batch
                taken = {n: _taken(n, a, at, batch) for n, a in rows.items()}
                for _ in range(WARM_CALLS):
                    outputs = self._run(call.signature, taken | shared)
                self._check_shapes(call.signature, taken | shared, outputs)
        self._compare_golden()

    def retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        parts = [
            self._retrieve(UserFeatures(longs=longs, floats=floats), left_out, k)
            for longs, floats, left_out in _chunks(
                self._sizes[-1], users.longs, users.floats, exclude
            )
        ]
        return Scored(
            items=np.concatenate([part.items for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
        )

    def rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemFeatures
    ) -> NDArray[np.float32]:
        batch, wide = candidates.shape
        if len(users) != batch or len(items) != batch * wide:
            raise ValueError(
                f"{len(users)} users and {len(items)} items for {batch} x {wide} candidates"
            )
        shape = (batch, wide, -1)
        parts = [
            self._rank(
                UserFeatures(longs=longs, floats=floats),
                asked,
                ItemFeatures(
                    longs=i_longs.reshape(-1, i_longs.shape[-1]),
                    floats=i_floats.reshape(-1, i_floats.shape[-1]),
                ),
            )
            for longs, floats, asked, i_longs, i_floats in _chunks(
                self._sizes[-1],
                users.longs,
                users.floats,
                candidates,
                items.longs.reshape(*shape[:2], items.longs.shape[1]),
                items.floats.reshape(*shape[:2], items.floats.shape[1]),
            )
        ]
        return np.where(candidates == 0, -np.inf, np.concatenate(parts)).astype(np.float32)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        return self._signatures

    def predict(self, signature: str, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        specs, size = self._signatures[signature].inputs, self._size(rows)
        per_row = {n: len(a) // rows for n, a in inputs.items() if specs[n].lead != "none"}
        given = {n: _padded(a, per_row[n] * size) if n in per_row else a for n, a in inputs.items()}
        try:
            outputs = self._run(signature, given)
        except ModelFault as fault:
            if isinstance(fault.__cause__, tf.errors.InvalidArgumentError):
                raise Rejected(Reason.OUT_OF_RANGE, str(fault)) from fault
            raise
        if any(np.isnan(array).any() for array in outputs.values() if array.dtype.kind == "f"):
            raise ModelFault(f"{_name(self._ref)}, {signature}: NaN in its answer")
        return {name: array[:rows] for name, array in outputs.items()}

    def close(self) -> None:
        self._calls = {}
        self._loaded = None
        gc.collect()  # TensorFlow's objects refer to each other: without this they stay

    def _retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        batch = len(users)
        size = self._size(batch)
        inputs = self._user_inputs(users, size)
        # At least one column: the graph may reduce over the excluded items.
        left_out = np.zeros((size, max(1, exclude.shape[1])), np.int64)
        left_out[:batch, : exclude.shape[1]] = exclude.view(np.int64)
        outputs = self._run(RETRIEVE, inputs | {"exclude": left_out, "k": np.asarray(k, np.int32)})
        items = self._checked(outputs, "items", (size, k))[:batch]
        scores = self._checked(outputs, "scores", (size, k))[:batch]
        return Scored(items=items.view(np.uint64), scores=scores)

    def _rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemFeatures
    ) -> NDArray[np.float32]:
        batch, wide = candidates.shape
        size = self._size(batch)
        asked = np.zeros((size, wide), np.int64)
        asked[:batch] = candidates.view(np.int64)
        padded = named(
            self._features,
            Level.ITEM,
            _padded(items.longs, size * wide),
            _padded(items.floats, size * wide),
        )
        outputs = self._run(RANK, self._user_inputs(users, size) | padded | {"candidates": asked})
        return self._checked(outputs, "scores", (size, wide))[:batch]

    def _user_inputs(self, users: UserFeatures, size: int) -> dict[str, Array]:
        longs, floats = _padded(users.longs, size), _padded(users.floats, size)
        return named(self._features, Level.USER, longs, floats)

    def _size(self, batch: int) -> int:
        return next((size for size in self._sizes if size >= batch), batch)

    def _run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        call = self._calls.get(signature)
        if call is None:
            raise ModelFault(f"{_name(self._ref)} is closed or has no signature {signature!r}")
        try:
            given = {name: tf.convert_to_tensor(array) for name, array in inputs.items()}
            return {name: tensor.numpy() for name, tensor in call(**given).items()}
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise ModelFault(f"{_name(self._ref)}, {signature}: {error!s:.500}") from error

    def _checked(
        self, outputs: Mapping[str, Array], name: str, shape: tuple[int, ...]
    ) -> NDArray[Any]:
        array = outputs.get(name)
        if array is None:
            raise ModelFault(f"{_name(self._ref)}: no output {name!r}, only {sorted(outputs)}")
        if array.dtype != _OUTPUTS[name]:
            raise ModelFault(f"{_name(self._ref)}: {name} is {array.dtype}, not {_OUTPUTS[name]}")
        if array.shape != shape:
            raise ModelFault(f"{_name(self._ref)}: {name} has shape {array.shape}, not {shape}")
        if np.isnan(array).any():
            raise ModelFault(f"{_name(self._ref)}: NaN among the {name}")
        return array

    def _check_shapes(
        self, signature: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        """What would make every answer a fallback is told before it serves."""
        if signature == RETRIEVE:
            for name in _OUTPUTS:
                self._checked(outputs, name, (len(inputs["exclude"]), int(inputs["k"])))
        elif signature == RANK:
            self._checked(outputs, "scores", inputs[CANDIDATES].shape)

    def _compare_golden(self) -> None:
        calls = read_calls(self._path / GOLDEN)
        if not calls:
            raise Refused(f"{self._path / GOLDEN} holds no call")
        for number, call in enumerate(calls):
            outputs = self._run(call.signature, call.inputs)
            for name, expected in call.outputs.items():
                if problem := _difference(expected, outputs.get(name)):
                    raise Refused(
                        f"{_name(self._ref)}: golden call {number} ({call.signature}): "
                        f"{name} {problem}"
                    )

    def _found(self) -> dict[str, dict[str, tf.TensorSpec]]:
        return {name: call.structured_input_signature[1] for name, call in self._calls.items()}


def signature_problems(
    found: Mapping[str, Mapping[str, tf.TensorSpec]], features: FeatureSet
) -> list[str]:
    """What a model asks for, compared with what the feature set gives: a line a difference."""
    problems = []
    wanted = expected_inputs(features)
    if QUERY in found or ITEMS in found:  # one is of no use without the other
        # An item tower takes what it likes of what an item is, whoever looks at it, and when.
        own = {f.name for f in features.of(Level.ITEM, "int64")} & found.get(ITEMS, {}).keys()
        taken = {n: s for n, s in input_specs(features, Level.ITEM).items() if n in own}
        taken[ITEM] = tf.TensorSpec([None], tf.int64)
        wanted |= {QUERY: packed_specs(features), ITEMS: taken}
    for signature, expected in wanted.items():
        inputs = found.get(signature)
        if inputs is None:
            problems.append(f"signature {signature!r} is missing")
            continue
        problems += [
            f"{signature}: input {name!r} is missing" for name in sorted(expected.keys() - inputs)
        ]
        problems += [
            f"{signature}: input {name!r} is no feature"
            for name in sorted(inputs.keys() - expected)
        ]
        problems += [
            f"{signature}: input {name!r} is {_spec(inputs[name])}, expected {_spec(spec)}"
            for name, spec in expected.items()
            if name in inputs and not _same(inputs[name], spec)
        ]
    return problems


def expected_inputs(features: FeatureSet) -> dict[str, dict[str, tf.TensorSpec]]:
    """Signature -> input name -> what a model of this feature set must take."""
    users = input_specs(features, Level.USER)
    exclude = tf.TensorSpec([None, None], tf.int64)
    return {
        RETRIEVE: users | {"exclude": exclude, "k": tf.TensorSpec([], tf.int32)},
        RANK: users
        | input_specs(features, Level.ITEM)
        | {"candidates": tf.TensorSpec([None, None], tf.int64)},
    }


def input_specs(features: FeatureSet, level: Level) -> dict[str, tf.TensorSpec]:
    """A level's features as inputs of a signature, by name."""
    return {
        f.name: tf.TensorSpec([None] if f.length == 1 else [None, f.length], tf.as_dtype(f.dtype))
        for f in features.of(level)
    }


def packed_specs(features: FeatureSet) -> dict[str, tf.TensorSpec]:
    """User features as `features.assemble` packs them, as inputs of a signature."""
    return {
        name: tf.TensorSpec([None, features.width(Level.USER, dtype)], tf.as_dtype(dtype))
        for name, dtype in ((USER_LONGS, "int64"), (USER_FLOATS, "float32"))
    }


def _same(one: tf.TensorSpec, other: tf.TensorSpec) -> bool:
    return bool(one.dtype == other.dtype and one.shape.as_list() == other.shape.as_list())


def _spec(spec: tf.TensorSpec) -> str:
    return f"{spec.dtype.name} {spec.shape.as_list()}"


def _signature(call: Any, pairs: Collection[str]) -> Signature:
    """What a loaded signature takes and gives. `pairs`: inputs that come once a candidate."""
    given = call.structured_input_signature[1]
    paired = pairs if CANDIDATES in given else ()
    inputs = {
        name: TensorSpec(
            dtype=spec.dtype.name,
            shape=tuple(spec.shape.as_list()),
            lead="none" if not spec.shape.rank else "pairs" if name in paired else "rows",
        )
        for name, spec in given.items()
    }
    outputs = {
        name: TensorSpec(dtype=spec.dtype.name, shape=tuple(spec.shape.as_list()))
        for name, spec in call.structured_outputs.items()
    }
    return Signature(inputs=inputs, outputs=outputs)


def _name(ref: ModelRef) -> str:
    return f"model {ref.name} version {ref.version}"


def _padded(array: Array, size: int) -> Array:
    """`array` with rows of zeros up to `size` rows; of bytes, with its last row again."""
    if len(array) == size:
        return array
    if array.dtype.kind == "O":
        return array[np.minimum(np.arange(size), len(array) - 1)]
    padded = np.zeros((size, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def _chunks(size: int, *arrays: Array) -> Iterable[tuple[Array, ...]]:
    """The arrays cut along their first axis; one empty chunk of nothing."""
    for start in range(0, max(1, len(arrays[0])), size):
        yield tuple(array[start : start + size] for array in arrays)


def _per_row(name: str, inputs: Mapping[str, Array]) -> bool:
    return inputs[name].ndim > 0


def _taken(name: str, array: Array, at: NDArray[np.int64], batch: int) -> Array:
    """Rows `at`; arrays that are flattened over (batch, candidates) by blocks of rows."""
    if len(array) == batch:
        return array[at]
    blocks = array.reshape(batch, -1, *array.shape[1:])[at]
    return blocks.reshape(-1, *array.shape[1:])


def _difference(expected: Array, found: Array | None) -> str:
    """Why two outputs are not equal, or an empty text."""
    if found is None:
        return "is not given"
    if found.shape != expected.shape:
        return f"has shape {found.shape}, the trainer saw {expected.shape}"
    if expected.dtype.kind == "f":
        gap = np.abs(np.nan_to_num(found - expected, nan=np.inf))
        same = (found == expected) | (gap <= TOLERANCE * (1 + np.abs(expected)))
        return "" if same.all() else f"differs by up to {gap.max():.3g}"
    wrong = int((found != expected).sum())
    # Equal scores may change places; the scores themselves are compared above.
    return "" if wrong <= 0.02 * expected.size else f"differs in {wrong} of {expected.size} places"
