"""
A model's calls, whatever runs its signatures: cut, padded, named, and looked at when they return.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemFeatures, ItemsShown, UserFeatures, named
from features.declare import Array, FeatureSet, Level
from inference.expected import EXCLUDE, inputs_of, signature_problems
from inference.model import ModelRef, Scored
from inference.samples import GOLDEN, ITEMS, QUERY, RANK, RETRIEVE, WARMUP, Call, read_calls
from inference.tensors import CANDIDATES, K, Signature
from schemas.errors import ModelFault, Refused, Rejected

# Every batch is padded to one of these: kernels and their buffers are reused, not made anew.
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# float32 sums differ in order between machines; scores of trained models are of the order 1-10.
TOLERANCE: Final = 1e-3
_BEGINNING: Final = 2  # signatures called side by side; more get in each other's way
Run = Callable[[str, Mapping[str, Array]], dict[str, Array]]  # signature, inputs -> outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStyle:
    """How a runtime likes to be called."""

    batch_sizes: tuple[int, ...] = BATCH_SIZES  # the largest is the most rows of one call
    padded: bool = True  # to the next size; otherwise a call has as many rows as were asked for
    warm_calls: int = 2  # of each size; in TensorFlow the first compiles, the second allocates
    called: bool = False  # its functions were, at each size, with the values of another version
    golden: str = GOLDEN  # the file of golden calls
    tolerance: float = TOLERANCE  # of golden outputs, times 1 + their magnitude

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch sizes are at least 1, got {self.batch_sizes}")

    def size(self, rows: int) -> int:
        """
        With how many rows the runtime is called for `rows` of them.

        >>> [CallStyle(batch_sizes=(1, 8)).size(rows) for rows in (0, 1, 2, 9)]
        [1, 1, 8, 9]
        """
        if not self.padded:
            return max(1, rows)
        return next((size for size in sorted(self.batch_sizes) if size >= rows), rows)

    def warmed(self) -> tuple[int, ...]:
        """
        The sizes that are called before users are answered: the first, the largest, and between
        them some, each a third above the last. A size between these takes a few ms more, once.

        >>> CallStyle(batch_sizes=(1, 2, 4, 8, 9, 10, 11, 12)).warmed()
        (1, 2, 4, 8, 11, 12)
        """
        first, *others = sorted(self.batch_sizes)
        found = [first]
        for size in others:
            if size == others[-1] or 3 * size >= 4 * found[-1]:
                found.append(size)
        return tuple(found)


class CalledModel(ABC):
    """
    Implements `inference.model.Model` and `TensorModel`, given what runs one signature.

    A base class, not a part: a runtime is a model and adds two methods, where each would forward
    seven. Calls may come from several threads if the runtime takes that.
    """

    def __init__(self, folder: Path, ref: ModelRef, features: FeatureSet, style: CallStyle) -> None:
        """
        Args:
            folder: of the version, with its sampled calls.

        Raises:
            Refused: the version was trained for another feature set.
        """
        if ref.fingerprint != features.fingerprint:
            raise Refused(
                f"{name_of(ref)} was trained on feature set {ref.fingerprint}, "
                f"this process computes {features.fingerprint}"
            )
        self._folder, self._ref, self._features, self._style = folder, ref, features, style
        self._signatures: Mapping[str, Signature] = {}
        self._golden: list[Call] = []  # once read: the folder may be gone by then

    @abstractmethod
    def _run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """
        The outputs of one call of the runtime.

        Raises:
            Rejected: the runtime does not take these values.
            ModelFault: it failed, or is closed, or has no such signature.
        """

    @abstractmethod
    def close(self) -> None:
        """Give everything back. Idempotent."""

    @property
    def ref(self) -> ModelRef:
        return self._ref

    @property
    def signatures(self) -> Mapping[str, Signature]:
        return self._signatures

    def begin(self, calls: Sequence[Call]) -> None:
        """
        Call each signature once, side by side: a runtime makes a graph ready when it is first
        called, which takes one processor hundreds of milliseconds.

        Args:
            calls: sampled; one row of each is taken.

        Raises:
            ModelFault: a sampled input makes the model fail.
        """
        with ThreadPoolExecutor(_BEGINNING) as pool:
            for _ in pool.map(lambda call: self._ran(call.signature, _resized(call, 1)), calls):
                pass

    def warm(
        self,
        sizes: Iterable[int] | None = None,
        *,
        sampled: Sequence[Call] | None = None,
        rarely: Collection[str] = (),
    ) -> None:
        """
        Replay the sampled inputs at batch sizes of every order (those of signatures that serving
        hardly calls at the first alone, all of them once where each size was called before), then
        compare with the trainer's outputs.

        Args:
            sampled: the version's sampled calls, where they have been read already.
            rarely: signatures that are hardly called, beside those that serving does without.

        Raises:
            Refused: samples are missing, or the outputs are not those of the trainer.
            ModelFault: a sampled input makes the model fail, or give NaN or too few scores.
        """
        every = tuple(sizes or self._style.warmed())
        # Serving retrieves by the towers where there are any, and makes its index before it serves:
        # the graph's own retrieval over a large catalogue would take most of a start.
        rare = {*rarely, *((RETRIEVE, ITEMS) if QUERY in self.signatures else ())}
        for call in read_calls(self._folder / WARMUP) if sampled is None else sampled:
            once = (min(self._style.size(_rows(call)), max(every)),)
            wanted = once if self._style.called else every
            for size in every[:1] if call.signature in rare else wanted:
                inputs = _resized(call, size)
                for _ in range(self._style.warm_calls):
                    outputs = self._ran(call.signature, inputs)
                self._check_scores(call.signature, inputs, outputs)
        self.compare_golden()
        self._warmed()

    def _warmed(self) -> None:  # noqa: B027 - most runtimes have nothing to do
        """From now on calls are those of users."""

    def compare_golden(self, run: Run | None = None) -> None:
        """
        Replay the golden calls, by `run` if not as others are made.

        Raises:
            Refused: there are none, or the outputs are not those of the trainer.
            ModelFault: the model failed.
        """
        path = self._folder / self._style.golden
        self._golden = self._golden or read_calls(path)
        if not self._golden:
            raise Refused(f"{path} holds no call")
        for number, call in enumerate(self._golden):
            outputs = (run or self._ran)(call.signature, call.inputs)
            for name, expected in call.outputs.items():
                if problem := _difference(expected, outputs.get(name), self._style.tolerance):
                    raise Refused(
                        f"{name_of(self._ref)}: golden call {number} ({call.signature}): "
                        f"{name} {problem}"
                    )

    def retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        parts = [
            self._retrieve(UserFeatures(longs=longs, floats=floats), left_out, k)
            for longs, floats, left_out in self._chunks(users.longs, users.floats, exclude)
        ]
        return Scored(
            items=np.concatenate([part.items for part in parts]),
            scores=np.concatenate([part.scores for part in parts]),
        )

    def rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemsShown
    ) -> NDArray[np.float32]:
        batch, wide = candidates.shape
        if len(users) != batch or len(items) != batch * wide:
            raise ValueError(
                f"{len(users)} users and {len(items)} items for {batch} x {wide} candidates"
            )
        parts = [
            self._rank(
                UserFeatures(longs=longs, floats=floats),
                asked,
                ItemFeatures(
                    longs=i_longs.reshape(-1, i_longs.shape[-1]),
                    floats=i_floats.reshape(-1, i_floats.shape[-1]),
                ),
            )
            for longs, floats, asked, i_longs, i_floats in self._chunks(
                users.longs,
                users.floats,
                candidates,
                items.longs.reshape(batch, wide, items.longs.shape[1]),
                items.floats.reshape(batch, wide, items.floats.shape[1]),
            )
        ]
        return np.where(candidates == 0, -np.inf, np.concatenate(parts)).astype(np.float32)

    def predict(self, signature: str, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        specs, size = self._signatures[signature].inputs, self._style.size(rows)
        per_row = {n: len(a) // rows for n, a in inputs.items() if specs[n].lead != "none"}
        given = {n: _padded(a, per_row[n] * size) if n in per_row else a for n, a in inputs.items()}
        outputs = self._run(signature, given)
        name = f"{name_of(self._ref)}, {signature}"
        for output, array in outputs.items():
            if array.shape[:1] != (size,):
                raise ModelFault(f"{name}: {output} has shape {array.shape} for {size} rows")
        if any(np.isnan(array).any() for array in outputs.values() if array.dtype.kind == "f"):
            raise ModelFault(f"{name}: NaN in its answer")
        return {output: array[:rows] for output, array in outputs.items()}

    def _accept(self, found: Mapping[str, Signature]) -> None:
        """
        Take the signatures that the runtime tells of; close it if they do not fit.

        Raises:
            Refused: every difference from the feature set is named.
        """
        if problems := signature_problems(inputs_of(found), self._features):
            self.close()
            raise Refused(
                f"{name_of(self._ref)} does not fit its feature set: {'; '.join(problems)}"
            )
        self._signatures = found

    def _retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        batch = len(users)
        size = self._style.size(batch)
        # At least one column: the graph may reduce over the excluded items.
        left_out = np.zeros((size, max(1, exclude.shape[1])), np.int64)
        left_out[:batch, : exclude.shape[1]] = exclude.view(np.int64)
        asked = self._user_inputs(users, size) | {EXCLUDE: left_out, K: np.asarray(k, np.int32)}
        outputs = self._ran(RETRIEVE, asked)
        items = self._checked(outputs, "items", np.int64, (size, k))[:batch]
        scores = self._checked(outputs, "scores", np.float32, (size, k))[:batch]
        return Scored(items=items.view(np.uint64), scores=scores)

    def _rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemsShown
    ) -> NDArray[np.float32]:
        batch, wide = candidates.shape
        size = self._style.size(batch)
        asked = np.zeros((size, wide), np.int64)
        asked[:batch] = candidates.view(np.int64)
        padded = named(
            self._features,
            Level.ITEM,
            _padded(items.longs, size * wide),
            _padded(items.floats, size * wide),
        )
        outputs = self._ran(RANK, self._user_inputs(users, size) | padded | {CANDIDATES: asked})
        return self._checked(outputs, "scores", np.float32, (size, wide))[:batch]

    def _ran(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Of inputs that are ours: no caller is to blame for them."""
        try:
            return self._run(signature, inputs)
        except Rejected as rejected:
            raise ModelFault(rejected.detail) from rejected

    def _user_inputs(self, users: UserFeatures, size: int) -> dict[str, Array]:
        longs, floats = _padded(users.longs, size), _padded(users.floats, size)
        return named(self._features, Level.USER, longs, floats)

    def _chunks(self, *arrays: Array) -> Iterable[tuple[Array, ...]]:
        """The arrays cut along their first axis; one empty chunk of nothing."""
        size = max(self._style.batch_sizes)
        for start in range(0, max(1, len(arrays[0])), size):
            yield tuple(array[start : start + size] for array in arrays)

    def _check_scores(
        self, signature: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        """What would make every answer a fallback is told before it serves."""
        if signature == RETRIEVE:
            shape = (len(inputs["exclude"]), int(inputs[K]))
            self._checked(outputs, "items", np.int64, shape)
            self._checked(outputs, "scores", np.float32, shape)
        elif signature == RANK:
            self._checked(outputs, "scores", np.float32, inputs[CANDIDATES].shape)

    def _checked(
        self, outputs: Mapping[str, Array], name: str, dtype: type, shape: tuple[int, ...]
    ) -> NDArray[Any]:
        array = outputs.get(name)
        if array is None or array.dtype != dtype or array.shape != shape:
            given = "absent" if array is None else f"{array.dtype} of shape {array.shape}"
            wanted = f"{np.dtype(dtype)} of shape {shape}"
            raise ModelFault(f"{name_of(self._ref)}: {name} is {given}, not {wanted}")
        if np.isnan(array).any():
            raise ModelFault(f"{name_of(self._ref)}: NaN among the {name}")
        return array


def name_of(ref: ModelRef) -> str:
    """As messages call a model."""
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


def _rows(call: Call) -> int:
    """Of a sampled call: its first input that has any tells."""
    return next(len(array) for array in call.inputs.values() if array.ndim > 0)


def _resized(call: Call, size: int) -> dict[str, Array]:
    """The inputs of a sampled call with `size` rows, its own in turn."""
    rows = {n: a for n, a in call.inputs.items() if a.ndim > 0}
    batch = _rows(call)
    at = np.arange(size) % batch
    return {**call.inputs, **{n: _taken(a, at, batch) for n, a in rows.items()}}


def _taken(array: Array, at: NDArray[np.int64], batch: int) -> Array:
    """Rows `at`; arrays that are flattened over (batch, candidates) by blocks of rows."""
    if len(array) == batch:
        return array[at]
    blocks = array.reshape(batch, -1, *array.shape[1:])[at]
    return blocks.reshape(-1, *array.shape[1:])


def _difference(expected: Array, found: Array | None, tolerance: float) -> str:
    """Why two outputs are not equal, or an empty text."""
    if found is None:
        return "is not given"
    if found.shape != expected.shape:
        return f"has shape {found.shape}, the trainer saw {expected.shape}"
    if expected.dtype.kind == "f":
        gap = np.abs(np.nan_to_num(found - expected, nan=np.inf))
        same = (found == expected) | (gap <= tolerance * (1 + np.abs(expected)))
        return "" if same.all() else f"differs by up to {gap.max():.3g}"
    wrong = int((found != expected).sum())
    # Equal scores may change places; the scores themselves are compared above.
    return "" if wrong <= 0.02 * expected.size else f"differs in {wrong} of {expected.size} places"
