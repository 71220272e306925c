"""Reading examples with tf.data: the parse spec comes from the feature declarations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from features.declare import FeatureSet, Level
from features.example_bytes import LABELS, NUMBERS, TEXTS
from features.examples import LABELS as LABEL_COUNT


def parse_spec(features: FeatureSet) -> dict[str, Any]:
    """What `tf.io.parse_example` needs: every feature and column by name, with shape and dtype."""
    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in TEXTS}
    spec |= {name: tf.io.FixedLenFeature([], tf.int64) for name in NUMBERS}
    spec[LABELS] = tf.io.FixedLenFeature([LABEL_COUNT], tf.int64)
    for level in Level:
        for f in features.of(level):
            shape = [] if f.length == 1 else [f.length]
            spec[f.name] = tf.io.FixedLenFeature(shape, tf.as_dtype(f.dtype))
    return spec


def dataset(
    files: Sequence[Path],
    features: FeatureSet,
    *,
    batch: int,
    readers: int = 2,
    labelled: Sequence[int] = (),
) -> tf.data.Dataset:
    """
    Batches of parsed examples by name, [batch] or [batch, length] each; some may be smaller.

    Args:
        labelled: only examples with a label of these event types; the others are dropped before
            their features are parsed. Empty: all.

    Files are read in turn, `readers` at a time, in a fixed order. Compression goes by the name
    (`.gz`; tf.data reads no zstd).

    Raises:
        tf.errors.InvalidArgumentError: while reading, for examples of another feature set.
    """
    spec, expected = parse_spec(features), features.fingerprint

    def parsed(records: tf.Tensor) -> dict[str, tf.Tensor]:
        found: dict[str, tf.Tensor] = tf.io.parse_example(records, spec)
        same = tf.debugging.assert_equal(
            found["fingerprint"], expected, message="examples of another feature set"
        )
        with tf.control_dependencies([same]):
            return {name: tf.identity(values) for name, values in found.items()}

    def chosen(records: tf.Tensor) -> tf.Tensor:
        labels = tf.io.parse_example(records, {LABELS: spec[LABELS]})[LABELS]
        kept = tf.reduce_any(tf.gather(labels, list(labelled), axis=1) > 0, axis=1)
        return tf.boolean_mask(records, kept)

    def opened(path: tf.Tensor) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(path, compression_type="GZIP")

    paths = tf.data.Dataset.from_tensor_slices(
        [str(path) for path in files] or tf.constant([], tf.string)
    )
    records = paths.interleave(
        opened, cycle_length=readers, num_parallel_calls=readers, deterministic=True
    )
    batches = records.batch(batch)
    if labelled:
        batches = batches.map(chosen, num_parallel_calls=readers)
    return batches.map(parsed, num_parallel_calls=readers).prefetch(2)
