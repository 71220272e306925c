"""
Answers of PredictionService.Predict as bytes, without an object for each tensor and its shape
(Protocol Buffers, Encoding; TensorFlow's tensor.proto, TensorFlow Serving's predict.proto).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from features.declare import Array
from features.protowire import varint
from inference.protos import shape_message, tensor
from inference.tensor_layout import PACKED, varints

_OUTPUT, _MODEL = b"\x0a", b"\x12"  # tags of an answer: an output; which model gave it
_KEY, _VALUE = b"\x0a", b"\x12"  # of an output
_TYPE, _SHAPE = b"\x08", b"\x12"  # of a tensor


class _Start(NamedTuple):
    """What of an output is the same for all of one name, type and shape."""

    name: bytes
    tensor: bytes  # all but the values


def reply(model: bytes, outputs: Mapping[str, Array]) -> bytes:
    """
    A PredictResponse. Values are in the fields of their types, where clients of TensorFlow Serving
    look for them (`float_val`): it writes them so unless it is configured otherwise.

    Args:
        model: a ModelSpec.
    """
    pieces = [_MODEL, varint(len(model)), model]
    for name, array in outputs.items():
        if array.dtype.name in PACKED and array.size:
            start = _start(name, array.dtype.name, array.shape)
            values = _packed(array)
            length = varint(len(values))
            size = len(start.tensor) + len(length) + len(values)
            value = (start.tensor, length, values)
        else:
            value = (b"", b"", tensor(array).SerializeToString())
            start, size = _start(name, "", ()), len(value[2])
        told = varint(size)
        entry = len(start.name) + 1 + len(told) + size
        pieces += [_OUTPUT, varint(entry), start.name, _VALUE, told, *value]
    return b"".join(pieces)


@lru_cache(maxsize=1_024)
def _start(name: str, dtype: str, shape: tuple[int, ...]) -> _Start:
    """`dtype` empty: of the name alone."""
    text = name.encode()
    named = _KEY + varint(len(text)) + text
    if not dtype:
        return _Start(named, b"")
    number, tag = PACKED[dtype]
    told = bytes(shape_message(shape).SerializeToString())
    head = _TYPE + varint(number) + _SHAPE + varint(len(told)) + told
    return _Start(named, head + varint(tag))


def _packed(array: Array) -> bytes:
    """Its values, as a packed field holds them."""
    if array.dtype.kind == "f":
        return array.astype("<f4", copy=False).tobytes()
    return varints(array.ravel().astype(np.int64, copy=False))
