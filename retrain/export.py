"""
Export: a trained network becomes a SavedModel folder that serving can load, check and warm.

Signatures (see `inference.samples`): `serving_default` retrieves the top k of the items known at
training, `rank` scores given candidates; `query` and `items` are the towers by themselves, from
which serving makes an index of the catalogue as it stands. The matrix of the known items is
computed once and is a constant of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features.assemble import ItemFeatures, UserFeatures, named
from features.declare import Array, FeatureSet, Level
from inference.expected import (
    Inputs,
    expected_inputs,
    input_specs,
    inputs_of,
    packed_specs,
    signature_problems,
)
from inference.samples import (
    GOLDEN,
    ITEM,
    ITEMS,
    QUERY,
    RANK,
    RETRIEVE,
    USER_FLOATS,
    USER_LONGS,
    WARMUP,
    Call,
    write_calls,
)
from inference.savedmodel import signatures_of
from inference.tensors import TensorSpec
from retrain.network import Network, PackedInputs, kept
from retrain.report import Integrity
from retrain.roles import roles_of

_WARM_ROWS = 32
_GOLDEN_ROWS = 8
_K = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """n logged requests, with one candidate each, that warm-up, golden and parity calls use."""

    users: UserFeatures  # [n]
    seen: NDArray[np.uint64]  # [n, e]
    candidates: NDArray[np.uint64]  # [n]
    items: ItemFeatures  # [n]

    def __len__(self) -> int:
        return len(self.candidates)


class _Served:
    """The exported functions, with the item tower already computed."""

    def __init__(self, network: Network, features: FeatureSet) -> None:
        self._network, self._features = network, features
        vectors, bias = network.items()
        # No constants: those are parsed with the graph, and copied with it several times.
        self.vectors, self.bias = kept(vectors.numpy()), kept(bias.numpy())
        self.hashes = kept(np.concatenate([[0], network.knowledge.items]))
        specs = expected_inputs(features)
        of_items = input_specs(features, Level.ITEM)
        own = {name: of_items[name] for name in roles_of(features).content}
        self.functions = {
            RETRIEVE: _traced(self._retrieve, specs[RETRIEVE]),
            RANK: _traced(self._rank, specs[RANK]),
            QUERY: _traced(self._query, packed_specs(features)),
            ITEMS: _traced(self._items, own | {ITEM: TensorSpec(dtype="int64", shape=(None,))}),
        }

    def save(self, folder: Path) -> None:
        """Write the functions with what they use, and nothing else of the network."""
        module = tf.Module()  # owns what the graphs capture
        # In the order in which the graphs use them, which is the same at each training.
        of_handle = {id(v.handle): v for f in self.functions.values() for v in f.graph.variables}
        used = (id(handle) for f in self.functions.values() for handle in f.captured_inputs)
        module.variables_used = [of_handle[handle] for handle in dict.fromkeys(used)]
        tf.saved_model.save(module, str(folder), signatures=self.functions)

    def _retrieve(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Top k items [batch, k] and scores, best first; hash 0 and -inf pad."""
        users = self._network.user(inputs, self.vectors)
        scores = tf.matmul(users, self.vectors, transpose_b=True) + self.bias
        left_out = self._network.index(inputs["exclude"])
        row = tf.broadcast_to(tf.range(tf.shape(left_out)[0])[:, None], tf.shape(left_out))
        cells = tf.reshape(tf.stack([row, left_out], axis=-1), [-1, 2])
        scores = tf.tensor_scatter_nd_update(scores, cells, tf.fill(tf.shape(cells)[:1], -np.inf))
        scores = tf.concat([tf.fill([tf.shape(scores)[0], 1], -np.inf), scores[:, 1:]], axis=1)
        most = tf.minimum(inputs["k"], tf.shape(scores)[1])
        best, at = tf.math.top_k(scores, most)
        pad = [[0, 0], [0, inputs["k"] - most]]
        items = tf.where(tf.math.is_inf(best), tf.constant(0, tf.int64), tf.gather(self.hashes, at))
        return {"items": tf.pad(items, pad), "scores": tf.pad(best, pad, constant_values=-np.inf)}

    def _rank(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Score of each candidate [batch, c]; an unknown one is scored by its content."""
        candidates = inputs["candidates"]
        users = self._network.user(inputs, self.vectors)
        vectors, bias = self._vectors(tf.reshape(candidates, [-1]), inputs)
        shape = tf.concat([tf.shape(candidates), [users.shape[-1]]], axis=0)
        scores = tf.einsum("bd,bcd->bc", users, tf.reshape(vectors, shape))
        scores += tf.reshape(bias, tf.shape(candidates))
        return {"scores": tf.where(candidates == 0, -np.inf, scores)}

    def _query(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """User vectors [batch, width + 1]; the last place, a 1, meets the item's bias."""
        packed = PackedInputs(self._features, inputs[USER_LONGS], inputs[USER_FLOATS])
        users = self._network.user(packed, self.vectors)
        return {"vector": tf.pad(users, [[0, 0], [0, 1]], constant_values=1.0)}

    def _items(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Item vectors [m, width + 1] with the bias as last place."""
        vectors, bias = self._vectors(inputs[ITEM], inputs)
        return {"vectors": tf.concat([vectors, bias[:, None]], axis=1)}

    def _vectors(
        self, hashes: tf.Tensor, inputs: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Vectors [m, width] and biases [m] of items; an unknown one's come from its content."""
        index = self._network.index(hashes)
        content = self._network.content_of({n: inputs[n] for n in self._network.content})
        unknown = self.vectors[0] + content
        vectors = tf.where(index[:, None] == 0, unknown, tf.gather(self.vectors, index))
        return vectors, tf.gather(self.bias, index)


def export(network: Network, features: FeatureSet, sample: Sample, folder: Path) -> Integrity:
    """
    Write the SavedModel and its sampled calls, load it again and compare with the network.

    Args:
        sample: logged requests, at least one.
        folder: must not exist.
    """
    served = _Served(network, features)
    served.save(folder)
    warm, golden = _calls(sample, features, _WARM_ROWS), _calls(sample, features, _GOLDEN_ROWS)
    write_calls(folder / WARMUP, warm)
    write_calls(folder / GOLDEN, [_answered(served, call) for call in golden])
    loaded = tf.saved_model.load(str(folder)).signatures
    found = inputs_of(signatures_of(loaded, features))
    return Integrity(
        finite=all(bool(np.isfinite(w).all()) for w in network.get_weights()),
        parity=parity(network, loaded, sample, features),
        problem="; ".join(signature_problems(found, features)),
    )


def parity(
    network: Network, loaded: Mapping[str, Any], sample: Sample, features: FeatureSet
) -> float:
    """
    Largest |exported - trained| / (1 + |trained|) over retrieved and ranked scores.

    Args:
        loaded: the folder's signatures.
    """
    retrieve, rank, *_ = _calls(sample, features, len(sample))
    users = {f.name: tf.constant(retrieve.inputs[f.name]) for f in features.of(Level.USER)}
    trained = network(users).numpy()
    known = network.knowledge.items
    row = np.arange(len(sample))[:, None]
    every = {**retrieve.inputs, "exclude": np.zeros((len(sample), 1), np.int64)}
    every["k"] = np.asarray(len(known), np.int32)
    best = _run(loaded, RETRIEVE, every)
    gaps = [_gap(best["scores"], trained[row, np.searchsorted(known, best["items"])])]
    candidates = rank.inputs["candidates"]
    at = np.minimum(np.searchsorted(known, candidates), len(known) - 1)
    given = _run(loaded, RANK, rank.inputs)["scores"]
    in_vocabulary = known[at] == candidates
    gaps.append(_gap(given[in_vocabulary], trained[row, at][in_vocabulary]))
    return max(gaps)


def size_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _traced(function: Any, specs: Inputs) -> Any:
    named_specs = {n: tf.TensorSpec(s.shape, s.dtype, name=n) for n, s in specs.items()}
    return tf.function(function, autograph=False).get_concrete_function(**named_specs)


def _calls(sample: Sample, features: FeatureSet, rows: int) -> list[Call]:
    """
    One call of each signature with the first `rows` requests of a sample, RETRIEVE and RANK first.
    """
    part = slice(0, min(rows, len(sample)))
    users = named(features, Level.USER, sample.users.longs[part], sample.users.floats[part])
    items = named(features, Level.ITEM, sample.items.longs[part], sample.items.floats[part])
    own = {name: items[name] for name in roles_of(features).content}
    exclude = sample.seen[part].view(np.int64)
    candidates = np.ascontiguousarray(sample.candidates[part]).view(np.int64)[:, None]
    return [
        Call(
            signature=RETRIEVE,
            inputs={**users, "exclude": exclude, "k": np.asarray(_K, np.int32)},
        ),
        Call(signature=RANK, inputs={**users, **items, "candidates": candidates}),
        Call(
            signature=QUERY,
            inputs={
                USER_LONGS: sample.users.longs[part],
                USER_FLOATS: sample.users.floats[part],
            },
        ),
        Call(signature=ITEMS, inputs={**own, ITEM: candidates[:, 0]}),
    ]


def _answered(served: _Served, call: Call) -> Call:
    outputs = _run(served.functions, call.signature, call.inputs)
    return Call(signature=call.signature, inputs=call.inputs, outputs=outputs)


def _run(
    functions: Mapping[str, Any], signature: str, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    given = {name: tf.constant(array) for name, array in inputs.items()}
    return {name: tensor.numpy() for name, tensor in functions[signature](**given).items()}


def _gap(exported: Array, trained: Array) -> float:
    if not exported.size:
        return 0.0
    gap = np.abs(exported - trained) / (1 + np.abs(trained))
    return float("inf") if np.isnan(gap).any() else float(gap.max())
