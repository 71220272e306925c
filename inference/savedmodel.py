"""
A trained version as TensorFlow runs it: loaded, checked against the feature set, warmed.

TensorFlow takes seconds to import: import this late.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf

from features.declare import Array, FeatureSet
from inference.calls import BATCH_SIZES, CalledModel, CallStyle, name_of
from inference.expected import with_leads
from inference.graphs import Graphs
from inference.model import ModelRef
from inference.tensors import Signature, TensorSpec
from schemas.errors import ModelFault, Reason, Refused, Rejected

ALIGNED: Final = 64  # bytes: Eigen's widest, that of AVX-512
_PLAIN: Final = "biuf"


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


class SavedModel(CalledModel):
    """
    A SavedModel folder with the signatures `serving_default` (retrieve) and `rank`, run in this
    process. Calls may come from several threads.
    """

    def __init__(
        self,
        path: Path,
        ref: ModelRef,
        features: FeatureSet,
        *,
        batch_sizes: tuple[int, ...] = BATCH_SIZES,
        graphs: Graphs | None = None,
    ) -> None:
        """
        Args:
            graphs: those of other versions in memory, to take over.

        Raises:
            Refused: the folder is no such model, or was trained for another feature set.
        """
        super().__init__(path, ref, features, CallStyle(batch_sizes=batch_sizes))
        try:
            functions = (graphs or Graphs()).open(path)
        except Exception as error:
            # TensorFlow raises whatever a broken file provokes; all mean: not this folder.
            raise Refused(f"{path} cannot be loaded: {error!s:.500}") from error
        if functions.taken_over:
            self._style = replace(self._style, warm_calls=1, called=True)
        self._held: object = functions
        self._calls = {name: _Call(function) for name, function in functions.calls.items()}
        self._accept(signatures_of(functions.calls, features))

    def close(self) -> None:
        self._held, self._calls = None, {}
        gc.collect()  # TensorFlow's objects refer to each other: without this they stay

    def _run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        name = f"{name_of(self._ref)}, {signature}"
        call = self._calls.get(signature)
        if call is None:
            raise ModelFault(f"{name}: it is closed or has no such signature")
        try:
            return call(inputs)
        except tf.errors.InvalidArgumentError as error:
            raise Rejected(Reason.OUT_OF_RANGE, f"{name}: {error!s:.500}") from error
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise ModelFault(f"{name}: {error!s:.500}") from error


class _Call:
    """
    A signature, called with its inputs in a row. A call by name goes through five layers of
    TensorFlow's Python, which for the hundred inputs of a ranking take longer than the ranking.
    """

    def __init__(self, function: Any) -> None:
        """`function`: a ConcreteFunction that takes its inputs by name, and names its outputs."""
        self._inputs = tuple(function.function_type.parameters)
        self._names = frozenset(self._inputs)
        self._outputs = tuple(sorted(function.structured_outputs))  # as `tf.nest` flattens them
        self._captured = tuple(function.captured_inputs)
        self._function = function.inference_fn
        self._keeps = function  # what it captured lives as long as it does

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """
        Raises:
            TypeError: an input is missing, or there is no such input.
            tf.errors.OpError: it failed.
        """
        if wrong := inputs.keys() ^ self._names:
            raise TypeError(f"inputs that are missing or not known: {', '.join(sorted(wrong))}")
        given = tensors([inputs[name] for name in self._inputs])
        found = self._function.call_flat(*given, *self._captured)
        return {name: one.numpy() for name, one in zip(self._outputs, found, strict=True)}


def tensors(arrays: Sequence[Array]) -> list[tf.Tensor]:
    """
    The arrays as tensors of the same dtypes.

    By DLPack (dmlc/dlpack), which hands memory over as it is: `tf.convert_to_tensor` takes several
    times as long as that and a copy. Kernels abort the process on memory that is not aligned as
    Eigen wants it, which NumPy's is not, so the arrays are copied, side by side.
    """
    rooms = [-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays]
    memory = np.empty(sum(rooms) + ALIGNED, np.uint8)
    at = -memory.ctypes.data % ALIGNED
    found = []
    for array, room in zip(arrays, rooms, strict=True):
        if array.dtype.kind not in _PLAIN:
            found.append(tf.convert_to_tensor(array))
            continue
        own = np.ndarray(array.shape, array.dtype, memory, at)
        np.copyto(own, array)
        found.append(tf.experimental.dlpack.from_dlpack(own.__dlpack__()))
        at += room
    return found


def signatures_of(calls: Mapping[str, Any], features: FeatureSet) -> dict[str, Signature]:
    """What a loaded model's signatures take and give."""
    return {
        name: Signature(
            inputs=with_leads(_specs(call.structured_input_signature[1]), features),
            outputs=_specs(call.structured_outputs),
        )
        for name, call in calls.items()
    }


def _specs(found: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(dtype=spec.dtype.name, shape=tuple(spec.shape.as_list()))
        for name, spec in found.items()
    }
