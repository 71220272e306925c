"""Parsing examples with TensorFlow: the parse spec comes from the feature declarations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from features.declare import Array, Feature, FeatureSet
from features.example_bytes import LABELS, NUMBERS, TEXTS
from features.examples import LABELS as LABEL_COUNT
from schemas.errors import Refused

Wanted = Callable[[Array, Array], Array]
_TIME = "event_time"


def parse_spec(features: FeatureSet, lacking: Collection[str] = ()) -> dict[str, Any]:
    """
    What `tf.io.parse_example` needs: every feature and column by name, with shape and dtype.

    Features that are `lacking` have their default where an example does not hold them.
    """
    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in TEXTS}
    spec |= {name: tf.io.FixedLenFeature([], tf.int64) for name in NUMBERS}
    spec[LABELS] = tf.io.FixedLenFeature([LABEL_COUNT], tf.int64)
    return spec | {f.name: _parsed_as(f, f.name in lacking) for f in features.features}


def _parsed_as(f: Feature, optional: bool) -> Any:
    shape = [] if f.length == 1 else [f.length]
    default = np.full(shape, f.default, f.dtype) if optional else None
    return tf.io.FixedLenFeature(shape, tf.as_dtype(f.dtype), default)


def parsed(
    records: Sequence[bytes],
    features: FeatureSet,
    *,
    wanted: Wanted | None = None,
    lacking: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Array]:
    """
    Serialized examples by column name, [n] or [n, length] each.

    Args:
        wanted: which examples, by labels [n, types] and event time [n]; the others are dropped
            before their features are parsed, which is most of the work. None: all.
        lacking: fingerprints of other feature sets that examples may be of, and the features that
            those do not have.

    Raises:
        Refused: an example does not parse, or is of another feature set.
    """
    others = lacking or {}
    spec = parse_spec(features, {name for names in others.values() for name in names})
    try:
        serialized = tf.constant(list(records), tf.string, [len(records)])
        if wanted is not None:
            seen = tf.io.parse_example(serialized, {n: spec[n] for n in (LABELS, _TIME)})
            kept = wanted(seen[LABELS].numpy(), seen[_TIME].numpy())
            serialized = tf.boolean_mask(serialized, kept)
        found = {
            name: values.numpy() for name, values in tf.io.parse_example(serialized, spec).items()
        }
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        # TensorFlow quotes the bytes in its message, and stumbles over those that are no text.
        raise Refused(f"an example does not parse: {error!s:.300}") from error
    for fingerprint in sorted(set(found["fingerprint"].tolist())):
        if fingerprint.decode() not in {features.fingerprint, *others}:
            raise Refused(
                f"examples of feature set {fingerprint.decode()}, expected {features.fingerprint}"
            )
    return found
