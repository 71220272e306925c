"""
The two towers of a published version as one LiteRT model, of built-in operations only.

Three operations of the graph are none of LiteRT's: the searches for an item's place in the
vocabulary (`LowerBound`) and for a number's bin (`UpperBound`), and the mask that takes the low
bits of a hash (`BitwiseAnd`). Each is replaced by what gives the same integers: halving, counting
and a remainder. The rest is converted as it stands. Retrieval and ranking are made of the towers
where they are served (`inference.litert`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from inference.samples import ITEMS, QUERY
from schemas.errors import Refused

OUTPUTS: Final = {QUERY: "vector", ITEMS: "vectors"}
_MOST: Final = 1_000  # characters of what the converter says, which prints whole graphs


def converted(folder: Path, *, quantise: bool) -> bytes:
    """
    The towers of a SavedModel folder as a LiteRT model with signatures `query` and `items`.

    Args:
        quantise: weights as int8 where they are large, by the range of each: a quarter of the size.

    Raises:
        Refused: the folder has no towers, or they hold an operation that cannot be converted.
    """
    loaded = tf.saved_model.load(str(folder))  # kept: its signatures do not own their variables
    signatures = loaded.signatures
    if missing := sorted(OUTPUTS.keys() - signatures.keys()):
        raise Refused(f"{folder} has no signature {missing[0]!r}: only towers are converted")
    module = tf.Module()
    towers = {name: _tower(signatures[name], OUTPUTS[name]) for name in OUTPUTS}
    module.kept = list(towers.values())
    with tempfile.TemporaryDirectory(prefix="millstream-litert-") as rebuilt:
        tf.saved_model.save(module, rebuilt, signatures=towers)
        converter = tf.lite.TFLiteConverter.from_saved_model(rebuilt, signature_keys=list(towers))
        if quantise:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        try:
            return bytes(converter.convert())
        except Exception as error:  # it has no class of its own
            raise Refused(f"{folder} cannot be converted: {str(error)[-_MOST:]}") from error


def _tower(signature: Any, output: str) -> Any:
    """The signature, with every operation one that LiteRT has."""
    frozen = convert_variables_to_constants_v2(signature)
    graph = frozen.graph.as_graph_def()
    for node in graph.node:
        if node.op in _REPLACEMENTS:
            found = frozen.graph.get_operation_by_name(node.name)
            replacement = _REPLACEMENTS[node.op](found)
            graph.library.function.append(replacement.function_def)
            node.op = "PartitionedCall"
            node.attr.clear()
            node.attr["f"].func.name = replacement.function_def.signature.name
            node.attr["Tin"].list.type.extend(one.dtype.as_datatype_enum for one in found.inputs)
            node.attr["Tout"].list.type.append(found.outputs[0].dtype.as_datatype_enum)
    names = [one.op.name for one in frozen.inputs]
    outer = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    pruned = outer.prune([f"{name}:0" for name in names], frozen.outputs[0].name)
    specs = [tf.TensorSpec(one.shape, one.dtype, name=one.op.name) for one in frozen.inputs]

    def tower(*given: tf.Tensor) -> dict[str, tf.Tensor]:
        return {output: pruned(*given)}

    return tf.function(tower, autograph=False).get_concrete_function(*specs)


def _lower_bound(operation: Any) -> Any:
    """
    How many of the sorted values are below each one searched for: halving, a gather a step.

    Steps are powers of two from the largest that fits: a step is taken if the value that it would
    pass is below.
    """
    known, asked = operation.inputs  # [1, v] and [1, n]
    count = known.shape[1]

    def search(known: tf.Tensor, asked: tf.Tensor) -> tf.Tensor:
        values, wanted = tf.reshape(known, [-1]), tf.reshape(asked, [-1])
        at = tf.zeros_like(wanted, tf.int32)
        for power in reversed(range(count.bit_length())):
            after = at + 2**power
            passed = tf.gather(values, tf.minimum(after, count) - 1)
            taken = tf.logical_and(after <= count, passed < wanted)
            at = tf.where(taken, after, at)
        return at[None]

    return _traced(search, known, asked)


def _upper_bound(operation: Any) -> Any:
    """How many of the sorted values are not above each one searched for: all are looked at."""
    edges, asked = operation.inputs  # [1, v], a few dozen, and [1, n]

    def count(edges: tf.Tensor, asked: tf.Tensor) -> tf.Tensor:
        passed = tf.reshape(edges, [1, -1]) <= tf.reshape(asked, [-1, 1])
        return tf.reduce_sum(tf.cast(passed, tf.int32), axis=1)[None]

    return _traced(count, edges, asked)


def _bitwise_and(operation: Any) -> Any:
    """The low bits of a number are its remainder, the floored one, by a power of two."""
    values, mask = operation.inputs
    bits = tf.get_static_value(mask)
    if bits is None or bits.ndim or bits <= 0 or bits & (bits + 1):
        raise Refused(f"{operation.name}: a mask of {bits}, only those of low bits are converted")

    def low(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return tf.math.floormod(values, mask + 1)

    return _traced(low, values, mask)


_REPLACEMENTS: Final[dict[str, Callable[[Any], Any]]] = {
    "LowerBound": _lower_bound,
    "UpperBound": _upper_bound,
    "BitwiseAnd": _bitwise_and,
}


def _traced(function: Callable[..., tf.Tensor], *like: Any) -> Any:
    specs = [tf.TensorSpec(one.shape, one.dtype) for one in like]
    return tf.function(function, autograph=False).get_concrete_function(*specs)
