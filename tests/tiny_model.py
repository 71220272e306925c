"""A small SavedModel with both signatures, exported without the training part."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features.declare import FeatureSet, Level
from inference.expected import Inputs, expected_inputs
from inference.samples import GOLDEN, RANK, RETRIEVE, WARMUP, Call, write_calls

# What a model can do wrong: NaN, always or for other users than its samples; too few scores; no
# scores; scores of another type; one signature less.
Fault = Literal["", "nan", "nan-later", "few", "no-scores", "int-scores", "no-rank"]


class TinyModel(tf.Module):
    """Scores an item by its place in the catalogue plus a little of every user feature."""

    def __init__(self, items: NDArray[np.uint64], features: FeatureSet, *, fault: Fault) -> None:
        super().__init__()
        self.items = tf.constant(items.view(np.int64))
        self.weights = tf.Variable(np.linspace(1, 0, len(items), dtype=np.float32))
        self.floor = tf.constant(np.nan if fault == "nan" else -1.0, tf.float32)
        self.fault = fault
        self._users = [f.name for f in features.of(Level.USER)]

    def _user(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """[batch] in (0, 0.001): too little to change an order, enough to see the input."""
        found = []
        for name in self._users:
            value = tf.cast(inputs[name], tf.float32)
            value = value if len(value.shape) == 1 else tf.reduce_mean(value, axis=1)
            found.append(value)
        total = tf.add_n(found)
        if self.fault == "nan-later":  # those of the samples are all ones
            total = tf.where(total == float(len(found)), total, np.float32(np.nan))
        return 0.001 * tf.sigmoid(tf.math.log1p(tf.abs(total)))

    def _given(self, scores: tf.Tensor) -> dict[str, tf.Tensor]:
        """The output, or what the fault makes of it."""
        if self.fault == "no-scores":
            return {"points": scores}
        if self.fault == "int-scores":
            return {"scores": tf.cast(scores, tf.int32)}
        return {"scores": scores[:, 1:] if self.fault == "few" else scores}

    def retrieve(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Signature `serving_default`."""
        scores = self._user(inputs)[:, None] + self.weights[None, :]
        left_out = tf.reduce_any(self.items[None, :, None] == inputs["exclude"][:, None, :], axis=2)
        scores = tf.where(left_out, tf.fill(tf.shape(scores), np.float32(-np.inf)), scores)
        top, at = tf.math.top_k(scores, inputs["k"])
        return {"items": tf.gather(self.items, at)} | self._given(top + 0 * self.floor)

    def rank(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Signature `rank`."""
        candidates = inputs["candidates"]
        same = tf.cast(candidates[:, :, None] == self.items[None, None, :], tf.float32)
        known = tf.reduce_sum(same * self.weights, axis=2)
        scores = tf.where(tf.reduce_sum(same, axis=2) > 0, known, self.floor)
        return self._given(scores + self._user(inputs)[:, None])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def measure(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """A signature that decodes images: [batch, 3] height, width and channels of each."""

        def size(data: tf.Tensor) -> tf.Tensor:
            return tf.shape(tf.io.decode_image(data, expand_animations=False))

        sizes = tf.map_fn(size, image_bytes, fn_output_signature=tf.TensorSpec([3], tf.int32))
        return {"sizes": sizes, "given": image_bytes}


def export(
    folder: Path, features: FeatureSet, items: NDArray[np.uint64], *, fault: Fault = ""
) -> None:
    """Write the model with its warm-up set and golden calls, and the signature `measure`."""
    model = TinyModel(items, features, fault=fault)
    specs = expected_inputs(features)
    retrieve = tf.function(model.retrieve).get_concrete_function(**_tf(specs[RETRIEVE]))
    rank = tf.function(model.rank).get_concrete_function(**_tf(specs[RANK]))
    signatures = {RETRIEVE: retrieve, "measure": model.measure} | (
        {} if fault == "no-rank" else {RANK: rank}
    )
    tf.saved_model.save(model, str(folder), signatures=signatures)
    samples = [
        (RETRIEVE, {"k": np.int32(3)}),
        (RANK, {"candidates": items[:4].view(np.int64).reshape(2, 2)}),
    ]
    calls = [
        Call(signature=name, inputs=_sample(specs[name], features) | given)
        for name, given in samples
    ]
    write_calls(folder / WARMUP, calls)
    golden = [
        Call(
            signature=call.signature,
            inputs=call.inputs,
            outputs={n: t.numpy() for n, t in run(**_tensors(call.inputs)).items()},
        )
        for call, run in zip(calls, (retrieve, rank), strict=True)
    ]
    write_calls(folder / GOLDEN, golden)


def _sample(specs: Inputs, features: FeatureSet) -> dict:
    """Two rows of ones; item features get two candidates a row."""
    per_item = {f.name for f in features.of(Level.ITEM)}
    return {
        name: np.ones(
            [
                (4 if name in per_item and axis == 0 else 2) if size is None else size
                for axis, size in enumerate(spec.shape)
            ],
            spec.dtype,
        )
        for name, spec in specs.items()
    }


def _tensors(arrays: dict) -> dict[str, tf.Tensor]:
    return {name: tf.convert_to_tensor(array) for name, array in arrays.items()}


def _tf(specs: Inputs) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec(spec.shape, spec.dtype) for name, spec in specs.items()}
