"""
TensorFlow Serving's messages as ours and back: tensors, signatures, which model is meant.

The messages are part of TensorFlow, which takes seconds to import: import this late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

from features.declare import Array
from inference.tensors import MAX_RANK, Signature, TensorSpec
from schemas.errors import Reason, Rejected

SIGNATURE_DEF: Final = "signature_def"  # the one field that GetModelMetadata knows
DEFAULT_SIGNATURE: Final = "serving_default"
PREDICT_METHOD: Final = "tensorflow/serving/predict"
TYPES: Final = "int64, int32, float32 or string"
_NUMBERS: Final[
    Mapping[int, tuple[np.dtype[Any], str]]
] = {  # how the values of each are kept; a message's bytes are little-endian
    tf.int64.as_datatype_enum: (np.dtype("<i8"), "int64_val"),
    tf.int32.as_datatype_enum: (np.dtype("<i4"), "int_val"),
    tf.float32.as_datatype_enum: (np.dtype("<f4"), "float_val"),
}
_TYPE_OF: Final = {dtype.name: number for number, (dtype, _) in _NUMBERS.items()}
_TYPES: Final = {one.as_datatype_enum for one in (tf.int64, tf.int32, tf.float32, tf.string)}


def model_spec(name: str, version: int, signature: str) -> Any:
    """Exactly this version."""
    return model_pb2.ModelSpec(name=name, version={"value": version}, signature_name=signature)


def arrays(tensors: Mapping[str, Any], max_values: int, *, of: str = "input") -> dict[str, Array]:
    """
    The tensors as arrays. A message of a few bytes can claim any shape: it is checked first.

    Args:
        max_values: of all tensors together.
        of: what errors call a tensor.

    Raises:
        Rejected: a tensor is malformed, of another type than we serve, or too large.
    """
    left = max_values
    found = {}
    for name, proto in tensors.items():
        # Before they are multiplied: the product of all that a message holds would take minutes.
        if (rank := len(proto.tensor_shape.dim)) > MAX_RANK:
            detail = f"{of} {name[:100]!r} has {rank} dimensions, at most {MAX_RANK} are taken"
            raise Rejected(Reason.OUT_OF_RANGE, detail)
        sizes = [dim.size for dim in proto.tensor_shape.dim]
        if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
            detail = f"{of} {name[:100]!r} has no full shape: {sizes[:8]}"
            raise Rejected(Reason.OUT_OF_RANGE, detail)
        left -= math.prod(sizes)
        if left < 0:
            raise Rejected(Reason.TOO_LARGE, f"more than {max_values} values in all tensors")
        plain = _plain(proto, sizes)
        found[name] = _array(f"{of} {name[:100]!r}", proto) if plain is None else plain
    return found


def tensor(array: Array) -> Any:
    """An array as a message."""
    number = _TYPE_OF.get(array.dtype.name)
    if number is None or array.size < 2:
        return tf.make_tensor_proto(array)
    # The same, in a quarter of the time.
    return tensor_pb2.TensorProto(
        dtype=number, tensor_shape=shape_message(array.shape), tensor_content=array.tobytes()
    )


def signature_map(signatures: Mapping[str, Signature]) -> Any:
    """Signatures as GetModelMetadata tells them."""
    return get_model_metadata_pb2.SignatureDefMap(
        signature_def={
            name: meta_graph_pb2.SignatureDef(
                inputs={name: _tensor_info(spec) for name, spec in one.inputs.items()},
                outputs={name: _tensor_info(spec) for name, spec in one.outputs.items()},
                method_name=PREDICT_METHOD,
            )
            for name, one in signatures.items()
        }
    )


def signatures_in(told: Any) -> dict[str, Signature]:
    """
    Those of a SignatureDefMap that can be called with Predict; the leads of inputs are not told.

    Raises:
        ValueError: a tensor has no type or no known number of axes.
    """
    return {
        name: Signature(inputs=_specs(one.inputs), outputs=_specs(one.outputs))
        for name, one in told.signature_def.items()
        if one.method_name == PREDICT_METHOD  # a SavedModel lists its initialiser as well
    }


def _plain(proto: Any, sizes: list[int]) -> Array | None:
    """
    A tensor of numbers that brings all its values: a call may bring a hundred of one number each,
    and TensorFlow takes five times as long for it. None: it is not as plain as that.
    """
    count = math.prod(sizes)
    if proto.dtype not in _NUMBERS or not count:  # of nothing, any shape can be claimed
        return None
    dtype, field = _NUMBERS[proto.dtype]
    if content := proto.tensor_content:
        whole = len(content) == count * dtype.itemsize
        return np.frombuffer(content, dtype).reshape(sizes) if whole else None
    values = getattr(proto, field)
    return np.array(values, dtype).reshape(sizes) if len(values) == count else None


def shape_message(sizes: Sequence[int]) -> Any:
    """A shape as a message; -1: any size."""
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes]
    return tensor_shape_pb2.TensorShapeProto(dim=dims)


def _array(name: str, proto: tensor_pb2.TensorProto) -> Array:
    if proto.dtype not in _TYPES:
        detail = f"{name} is {_type_name(proto.dtype)}, not {TYPES}"
        raise Rejected(Reason.OUT_OF_RANGE, detail)
    try:
        array: Array = tf.make_ndarray(proto)
    except (ValueError, TypeError, IndexError) as error:
        detail = f"{name} is a malformed tensor: {error!s:.200}"
        raise Rejected(Reason.UNDECODABLE, detail) from error
    return array


def _type_name(number: int) -> str:
    try:
        return str(tf.as_dtype(number).name)
    except TypeError:
        return f"of the unknown type {number}"


def _tensor_info(spec: TensorSpec) -> Any:
    return meta_graph_pb2.TensorInfo(
        dtype=tf.as_dtype(spec.dtype).as_datatype_enum,
        tensor_shape=shape_message([-1 if size is None else size for size in spec.shape]),
    )


def _specs(told: Mapping[str, Any]) -> dict[str, TensorSpec]:
    found = {}
    for name, info in told.items():
        if info.tensor_shape.unknown_rank:
            raise ValueError(f"{name[:100]!r} has no known number of axes")
        try:
            dtype = tf.as_dtype(info.dtype).name
        except TypeError as error:
            raise ValueError(f"{name[:100]!r} is of the unknown type {info.dtype}") from error
        sizes = [dim.size for dim in info.tensor_shape.dim]
        shape = tuple(None if size < 0 else size for size in sizes)
        found[name] = TensorSpec(dtype=dtype, shape=shape)
    return found
