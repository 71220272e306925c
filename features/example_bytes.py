"""
Examples as the bytes of a TFRecord file, without TensorFlow.

A record is a tf.train.Example: the catalog's features by name, and the columns of `Examples`. The
framing is TFRecord's (tensorflow/core/lib/io/record_writer.h): length, its masked CRC-32C, data,
the data's masked CRC-32C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from features import protowire
from features.assemble import named
from features.declare import FeatureSet, Level
from features.examples import Examples

# Columns of every example beside its features. A declared feature may not take these names.
TEXTS = ("request_id", "user_id", "item_id", "source", "surface", "fingerprint")
NUMBERS = (
    "position",
    "event_time",
    "model_version",
    "events_partition",
    "events_offset",
    "item_hash",
)
LABELS = "labels"

_MASK_DELTA = 0xA282EAD8
_WORD = 0xFFFFFFFF


def encode(examples: Examples, features: FeatureSet) -> list[bytes]:
    """
    One tf.train.Example an example.

    Raises:
        ValueError: the examples are of another feature set, or a feature takes a reserved name.
    """
    if examples.fingerprint != features.fingerprint:
        raise ValueError(
            f"examples of feature set {examples.fingerprint}, expected {features.fingerprint}"
        )
    columns = [protowire.texts(name, getattr(examples, name)) for name in TEXTS[:-1]]
    columns.append(protowire.texts(TEXTS[-1], [examples.fingerprint] * len(examples)))
    columns += [protowire.longs(name, getattr(examples, name).view(np.int64)) for name in NUMBERS]
    columns.append(protowire.longs(LABELS, examples.labels))
    taken = {column.name for column in columns}
    for level, part in ((Level.USER, examples.users), (Level.ITEM, examples.items)):
        for name, values in named(features, level, part.longs, part.floats).items():
            if name in taken:
                raise ValueError(f"feature {name} has the name of an example's own column")
            columns.append(_column(name, values))
    return protowire.examples(columns)


def framed(records: Iterable[bytes]) -> bytes:
    """
    Records as a piece of a TFRecord file; pieces may be concatenated.

    >>> framed([b"ab"]).hex()
    '020000000000000078270b3461621cb0f0f4'
    """
    parts: list[bytes] = []
    for record in records:
        length = struct.pack("<Q", len(record))
        parts += [length, _masked(length), record, _masked(record)]
    return b"".join(parts)


def _column(name: str, values: NDArray[np.int64] | NDArray[np.float32]) -> protowire.Column:
    if values.dtype == np.float32:
        return protowire.floats(name, values.astype(np.float32, copy=False))
    return protowire.longs(name, values.astype(np.int64, copy=False))


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = ((crc >> 15) | (crc << 17)) & _WORD
    return struct.pack("<I", (rotated + _MASK_DELTA) & _WORD)
