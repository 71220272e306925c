"""
A trained version as TensorFlow runs it: loaded, checked against the feature set, warmed.

TensorFlow takes seconds to import: import this late.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from features.declare import Array, FeatureSet
from inference.calls import BATCH_SIZES, CalledModel, CallStyle, name_of
from inference.expected import with_leads
from inference.graphs import Functions, Graphs
from inference.model import ModelRef
from inference.tensors import Signature, TensorSpec
from schemas.errors import ModelFault, Reason, Refused, Rejected


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
        self._functions: Functions | None = functions
        self._accept(signatures_of(functions.calls, features))

    def close(self) -> None:
        self._functions = None
        gc.collect()  # TensorFlow's objects refer to each other: without this they stay

    def _run(self, signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        name = f"{name_of(self._ref)}, {signature}"
        functions = self._functions
        call = functions.calls.get(signature) if functions else None
        if call is None:
            raise ModelFault(f"{name}: it is closed or has no such signature")
        try:
            given = {name: tf.convert_to_tensor(array) for name, array in inputs.items()}
            return {name: tensor.numpy() for name, tensor in call(**given).items()}
        except tf.errors.InvalidArgumentError as error:
            raise Rejected(Reason.OUT_OF_RANGE, f"{name}: {error!s:.500}") from error
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise ModelFault(f"{name}: {error!s:.500}") from error


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
