"""
Examples as the bytes of a TFRecord file, without TensorFlow.

A record is a tf.train.Example: the catalog's features by name, and the columns of `Examples`. The
framing is TFRecord's (tensorflow/core/lib/io/record_writer.h): length, its masked CRC-32C, data,
the data's masked CRC-32C.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from features import protowire
from features.assemble import named
from features.declare import Array, FeatureSet, Level
from features.examples import Examples, take

# Columns of every example beside its features. A declared feature may not take these names.
_LIST_TEXTS = ("request_id", "user_id", "source", "surface")
_LIST_NUMBERS = ("event_time", "model_version", "events_partition", "events_offset")
_ITEM_NUMBERS = ("position", "item_hash")
TEXTS = (*_LIST_TEXTS, "item_id", "fingerprint")
NUMBERS = (*_LIST_NUMBERS, *_ITEM_NUMBERS)
LABELS = "labels"

_MASK_DELTA = 0xA282EAD8
_HEAD_BYTES, _FOOT_BYTES = 12, 4


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
    taken = {*TEXTS, *NUMBERS, LABELS} & {f.name for f in features.features}
    if taken:
        raise ValueError(f"features with the names of an example's own columns: {sorted(taken)}")
    first, of = _runs(examples)
    items = protowire.entries(_item_columns(examples, features))
    # What the items of a list share is encoded once for them all.
    lists = protowire.entries(_list_columns(take(examples, first), features))
    return [protowire.example(lists[i] + item) for i, item in zip(of.tolist(), items, strict=True)]


def framed(records: Sequence[bytes]) -> bytes:
    """
    Records as a piece of a TFRecord file; pieces may be concatenated.

    >>> framed([b"ab"]).hex()
    '020000000000000078270b3461621cb0f0f4'
    """
    checks = _masked(np.fromiter(map(google_crc32c.value, records), np.uint32, len(records)))
    feet = checks.astype("<u4").tobytes()
    parts: list[bytes] = []
    for at, record in zip(range(0, len(feet), _FOOT_BYTES), records, strict=True):
        parts += [_length_head(len(record)), record, feet[at : at + _FOOT_BYTES]]
    return b"".join(parts)


def unframed(content: bytes) -> tuple[list[bytes], int]:
    """
    The whole records that a piece of a TFRecord file begins with, and how many bytes they take.

    Raises:
        ValueError: a checksum is wrong.

    >>> unframed(framed([b"ab", b"c"]) + framed([b"d"])[:5])
    ([b'ab', b'c'], 35)
    """
    records, feet, at = [], [], 0
    while at + _HEAD_BYTES <= len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        if content[at : at + _HEAD_BYTES] != _length_head(size):
            raise ValueError(f"the length of a record at byte {at} is damaged")
        start = at + _HEAD_BYTES
        if start + size + _FOOT_BYTES > len(content):
            break
        at = start + size + _FOOT_BYTES
        records.append(content[start : start + size])
        feet.append(content[start + size : at])
    checks = _masked(np.fromiter(map(google_crc32c.value, records), np.uint32, len(records)))
    if checks.astype("<u4").tobytes() != b"".join(feet):
        raise ValueError(f"one of {len(records)} records is damaged")
    return records, at


def _runs(examples: Examples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where examples begin that do not share their list's part with the one before: of which is
    each."""
    begins = np.ones(len(examples), np.bool_)
    texts = zip(*(getattr(examples, name) for name in _LIST_TEXTS), strict=True)
    begins[1:] = [a != b for a, b in pairwise(texts)]
    # A NaN is like itself when bits are compared.
    numbers = [getattr(examples, name)[:, None] for name in _LIST_NUMBERS]
    for part in (*numbers, examples.users.longs, examples.users.floats.view(np.uint32)):
        begins[1:] |= (part[1:] != part[:-1]).any(axis=1)
    return np.flatnonzero(begins), np.cumsum(begins) - 1


def _list_columns(examples: Examples, features: FeatureSet) -> list[protowire.Column]:
    users = named(features, Level.USER, examples.users.longs, examples.users.floats)
    return [
        *(protowire.texts(name, getattr(examples, name)) for name in _LIST_TEXTS),
        protowire.texts("fingerprint", [examples.fingerprint] * len(examples)),
        *(protowire.longs(name, getattr(examples, name)) for name in _LIST_NUMBERS),
        *_columns(users),
    ]


def _item_columns(examples: Examples, features: FeatureSet) -> list[protowire.Column]:
    items = named(features, Level.ITEM, examples.items.longs, examples.items.floats)
    return [
        protowire.texts("item_id", examples.item_id),
        *(protowire.longs(n, getattr(examples, n).view(np.int64)) for n in _ITEM_NUMBERS),
        protowire.longs(LABELS, examples.labels),
        *_columns(items),
    ]


def _columns(values: Mapping[str, Array]) -> list[protowire.Column]:
    return [
        protowire.floats(name, array) if array.dtype == np.float32 else protowire.longs(name, array)
        for name, array in values.items()
    ]


@lru_cache(maxsize=65_536)
def _length_head(size: int) -> bytes:
    length = struct.pack("<Q", size)
    check = _masked(np.array([google_crc32c.value(length)], np.uint32))
    return length + check.astype("<u4").tobytes()


def _masked(crcs: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """CRCs rotated and shifted, as TFRecord stores them. Wraps around."""
    return ((crcs >> np.uint32(15)) | (crcs << np.uint32(17))) + np.uint32(_MASK_DELTA)
