"""
The two-tower recommender in Keras: who the user is now, what each item is, and their dot product.

User tower: a self-attentive encoder over the row's history whose last position is a query that also
carries the user's counters, attributes and context. Item tower: an embedding of the id, plus those
of its content (categories, creator), plus a bias that starts at the item's log popularity, so that
training begins where the popularity ranking ends. All preprocessing (vocabulary, bins, scales) is
inside the graph. Index 0 of the item tower is the unknown item: its id says nothing, its content
does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features.declare import Array, FeatureSet, Level
from retrain.recipe import NetworkPolicy
from retrain.roles import HISTORY_ITEMS, Roles

Tensors = Mapping[str, tf.Tensor]


class PackedInputs(Mapping[str, tf.Tensor]):
    """
    User features by name, cut out of the two packed matrices.

    A hundred inputs by name cost a small call more than the network does.
    """

    def __init__(self, features: FeatureSet, longs: tf.Tensor, floats: tf.Tensor) -> None:
        self._matrices = {"int64": longs, "float32": floats}
        self._columns = {
            name: (dtype, part)
            for dtype in self._matrices
            for name, part in features.slices(Level.USER, dtype).items()
        }

    def __getitem__(self, name: str) -> tf.Tensor:
        dtype, part = self._columns[name]
        values = self._matrices[dtype][:, part]
        return values[:, 0] if part.stop - part.start == 1 else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def side_by_side(
        self, names: Sequence[str], dtype: tf.DType
    ) -> tuple[tf.Tensor, dict[str, int]]:
        """[batch, sum of widths], and the widths."""
        parts = {name: self._columns[name][1] for name in names}
        columns = np.concatenate([np.zeros(0, np.int64), *(np.r_[p] for p in parts.values())])
        found = tf.gather(self._matrices[dtype.name], columns, axis=1)
        return found, {name: part.stop - part.start for name, part in parts.items()}


_BINS = 32  # of each number in the history: quantiles of the training's values
_CLIP = 4.0  # standard deviations that a scaled number may lie from its mean
_TYPES = 64  # room for event types
_MASKED = -1e9  # a finite "never", safe in a softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """
    What is taken from the training's data before the first step, and baked into the graph.

    items:   [v] item hashes as int64, ascending; item i has index i + 1.
    prior:   [v + 1] log share of each item's choices; index 0 is the unknown item.
    content: by content feature, [v] or [v, length] int64.
    edges:   by number of the history, ascending bin edges.
    scales:  by number of the user, (mean, standard deviation) of its signed logarithm.
    """

    items: NDArray[np.int64]
    prior: NDArray[np.float32]
    content: Mapping[str, NDArray[np.int64]]
    edges: Mapping[str, NDArray[np.float32]]
    scales: Mapping[str, tuple[float, float]]


def signed_log(values: Array) -> NDArray[np.float64]:
    """
    Logarithm that keeps the sign and 0; what is not a number counts as 0.

    >>> signed_log(np.array([0.0, -1.0, np.nan, np.e - 1]))
    array([ 0.  , -0.69,  0.  ,  1.  ])
    """
    known = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return np.asarray(np.sign(known) * np.log1p(np.abs(known)))


def edges_of(values: Array) -> NDArray[np.float32]:
    """
    Quantile bin edges of the finite values, each once.

    >>> edges_of(np.array([1.0, 1.0, np.nan])).tolist()
    [1.0]
    """
    known = np.asarray(values, np.float32)[np.isfinite(values)]
    if not len(known):
        return np.zeros(1, np.float32)
    return np.unique(np.quantile(known, np.linspace(0, 1, _BINS)).astype(np.float32))


def scale_of(values: Array) -> tuple[float, float]:
    """Mean and standard deviation (1 for a constant) of the signed logarithm."""
    logs = signed_log(values)
    return float(logs.mean()), float(logs.std()) or 1.0


class Block(keras.layers.Layer):
    """
    Pre-norm self-attention and feed-forward. With `last`, only the last position goes on.

    Positions of all users lie below each other: a product of two matrices takes its bias along,
    which one of three axes does not.
    """

    def __init__(self, policy: NetworkPolicy, *, last: bool) -> None:
        super().__init__()
        self.heads, self.width, self.last = policy.heads, policy.width, last
        width, dense = policy.width, keras.layers.Dense
        self.norms = [keras.layers.LayerNormalization() for _ in range(2)]
        self.query, self.key_value, self.out = dense(width), dense(2 * width), dense(width)
        self.key_value.build((None, width))
        self.wide, self.narrow = dense(2 * width, activation="gelu"), dense(width)
        self.drops = [keras.layers.Dropout(policy.dropout) for _ in range(2)]

    def call(self, states: tf.Tensor, real: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[batch, length, width] and [batch, length] (1: real) to [batch, length or 1, width]."""
        batch, wide = tf.shape(states)[0], self.width
        flat = tf.reshape(states, [-1, wide])
        asking = normed = self.norms[0](flat)
        if self.last:
            flat, asking = states[:, -1], tf.reshape(normed, [batch, -1, wide])[:, -1]
        # Two products: one would have to be copied apart.
        kernel, bias = self.key_value.kernel, self.key_value.bias
        key = tf.matmul(normed, kernel[:, :wide]) + bias[:wide]
        value = tf.matmul(normed, kernel[:, wide:]) + bias[wide:]
        attended = _attended(self.query(asking), key, value, real, self.heads)
        flat += self.drops[0](self.out(attended), training=training)
        forward = self.narrow(self.wide(self.norms[1](flat)))
        flat += self.drops[1](forward, training=training)
        return tf.reshape(flat, [batch, -1, wide])


class Network(keras.Model):  # one object must hold all layers, so that Keras finds the weights
    """The two towers. Call it with user features by name for [batch, v] scores of known items."""

    def __init__(self, policy: NetworkPolicy, roles: Roles, knowledge: Knowledge) -> None:
        super().__init__()
        self.policy, self.roles, self.knowledge = policy, roles, knowledge
        # What a training knows is no constant, and how much it is no shape: networks of one policy
        # have one graph, which serving makes ready once for all versions.
        self.known = kept(knowledge.items)
        self.edges = {n: kept(_padded_edges(knowledge.edges[n])) for n in roles.history_numbers}
        scales = [knowledge.scales[n] for n in roles.numbers]
        self.scales = kept(np.array(scales, np.float32).reshape(-1, 2))
        self.ids = _embedding(len(knowledge.items) + 1, policy.width)
        self.content = {
            n: _embedding(policy.content_buckets + 1, policy.width) for n in roles.content
        }
        self.bias = self.add_weight(
            shape=knowledge.prior.shape,
            initializer=lambda shape, dtype: tf.constant(knowledge.prior, dtype),
            name="bias",
        )
        self.places = _embedding(roles.history_length, policy.width)
        self.types = {n: _embedding(_TYPES, policy.width) for n in roles.history_types}
        self.numbers = {n: _embedding(_BINS + 2, policy.width) for n in roles.history_numbers}
        self.attributes = _embedding(len(roles.hashed) * policy.attribute_buckets + 1, policy.width)
        self.context = [
            keras.layers.Dense(policy.width, activation="gelu"),
            keras.layers.Dense(policy.width),
        ]
        self.blocks = [Block(policy, last=i == policy.blocks - 1) for i in range(policy.blocks)]
        self.norm = keras.layers.LayerNormalization()
        # Zero: at the first step every user's ranking is the popular one.
        self.head = keras.layers.Dense(policy.width, kernel_initializer="zeros")

    def call(self, inputs: Tensors, training: bool = False) -> tf.Tensor:
        """Scores of the known items, [batch, v]."""
        vectors, bias = self.items(training=training)
        return self.scores(self.user(inputs, vectors, training=training), vectors, bias)

    def scores(self, users: tf.Tensor, vectors: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """[batch, width] against all items: [batch, v], the unknown item left out."""
        return tf.matmul(users, vectors[1:], transpose_b=True) + bias[1:]

    def items(self, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Item tower: vectors [v + 1, width] and biases [v + 1]; row 0 is the unknown item."""
        ids, bias = self.ids.embeddings, tf.convert_to_tensor(self.bias)
        if training and self.policy.unknown_share:
            hidden = tf.random.uniform([len(self.knowledge.items) + 1]) < self.policy.unknown_share
            ids = tf.where(hidden[:, None], ids[:1], ids)
            bias = tf.where(hidden, bias[0], bias)
        return ids + self.content_of(self.knowledge.content, pad=True), bias

    def content_of(self, content: Mapping[str, Any], *, pad: bool = False) -> tf.Tensor:
        """
        Sum over the content features of their values' mean embedding, [m, width].

        Args:
            content: by name, [m] or [m, length] int64; 0 pads.
            pad: put a row of nothing before the first, for the unknown item.
        """
        total = tf.zeros([1, self.policy.width])
        for name, table in self.content.items():
            values = tf.convert_to_tensor(content[name], tf.int64)
            values = values[:, None] if values.shape.rank == 1 else values
            bucket = _bucket(values, self.policy.content_buckets)
            real = tf.cast(bucket > 0, tf.float32)[..., None]
            mean = tf.reduce_sum(table(bucket) * real, 1) / tf.maximum(tf.reduce_sum(real, 1), 1.0)
            total += tf.pad(mean, [[1, 0], [0, 0]]) if pad else mean
        return total

    def index(self, hashes: tf.Tensor) -> tf.Tensor:
        """Vocabulary index of item hashes (int64, any shape); 0 where unknown."""
        known = tf.convert_to_tensor(self.known)
        flat = tf.reshape(hashes, [-1])
        at = tf.minimum(tf.searchsorted(known, flat), tf.shape(known)[0] - 1)
        found = tf.where(tf.gather(known, at) == flat, at + 1, 0)
        return tf.reshape(found, tf.shape(hashes))

    def user(self, inputs: Tensors, vectors: tf.Tensor, training: bool = False) -> tf.Tensor:
        """User tower, [batch, width]. `vectors` are those of the item tower."""
        states, real = self._history(inputs, vectors, training=training)
        query = self._context(inputs)[:, None]
        states = tf.concat([states, query], axis=1)
        real = tf.concat([real, tf.ones_like(real[:, :1])], axis=1)
        for block in self.blocks:
            states = block(states, real=real, training=training)
        return self.head(self.norm(states[:, -1]))

    def _history(
        self, inputs: Tensors, vectors: tf.Tensor, *, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """States [batch, length, width] and which are real [batch, length]."""
        hashes = inputs[HISTORY_ITEMS]
        states = tf.gather(vectors, self.index(hashes)) + self.places.embeddings
        small = [(t, tf.clip_by_value(inputs[n], 0, _TYPES - 1)) for n, t in self.types.items()]
        small += [(t, _bin(inputs[n], self.edges[n])) for n, t in self.numbers.items()]
        if training:
            # One product of ones and zeros for all small tables: the gradient of a lookup adds up
            # row by row on one core, which took a fifth of a training step.
            ones = tf.concat([tf.one_hot(at, table.input_dim) for table, at in small], axis=-1)
            states += tf.matmul(ones, tf.concat([table.embeddings for table, _ in small], axis=0))
        else:
            for table, at in small:
                states += tf.gather(table.embeddings, at)
        return states, tf.cast(hashes != 0, tf.float32)

    def _context(self, inputs: Tensors) -> tf.Tensor:
        """
        Counters, attributes and context, [batch, width].

        All numbers are scaled and all attributes looked up at once: dozens of small operations each
        would take most of the time of a small batch.
        """
        batch = tf.shape(inputs[HISTORY_ITEMS])[0]
        scaled, widths = _side_by_side(inputs, self.roles.numbers, batch, tf.float32)
        each = [at for at, n in enumerate(self.roles.numbers) for _ in range(widths[n])]
        scaled = _scaled(scaled, tf.gather(self.scales, np.array(each, np.int32)))
        found = self.context[1](self.context[0](tf.concat([tf.ones([batch, 1]), scaled], axis=1)))
        hashed, widths = _side_by_side(inputs, self.roles.hashed, batch, tf.int64)
        places = [at for at, n in enumerate(self.roles.hashed) for _ in range(widths[n])]
        bucket = _bucket(hashed, self.policy.attribute_buckets)
        offset = np.array(places, np.int64) * self.policy.attribute_buckets
        looked_up = self.attributes(tf.where(bucket > 0, bucket + offset, 0))
        return found + tf.reduce_sum(looked_up * tf.cast(bucket > 0, tf.float32)[..., None], 1)


def masked_seen(
    network: Network, logits: tf.Tensor, history: tf.Tensor, target: tf.Tensor
) -> tf.Tensor:
    """Scores [batch, v] with the items of each history out of the race, the target never."""
    index = network.index(history)
    row = tf.repeat(tf.range(tf.shape(index)[0]), tf.shape(index)[1])
    cell = tf.stack([row, tf.reshape(index, [-1])], axis=1)
    wide = len(network.knowledge.items) + 1
    counts = tf.scatter_nd(cell, tf.ones_like(row, tf.float32), [tf.shape(index)[0], wide])[:, 1:]
    out = (counts > 0) & (tf.range(wide - 1) != target[:, None])
    return tf.where(out, _MASKED, logits)


def _attended(
    query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, real: tf.Tensor, heads: int
) -> tf.Tensor:
    """
    Scaled dot-product attention of `heads` heads (Vaswani et al., 2017).

    Args:
        query: [batch * queries, width].
        key, value: [batch * length, width].
        real: [batch, length], 1 where there is something to attend to.

    Returns:
        [batch * queries, width].
    """
    batch, width = tf.shape(real)[0], query.shape[-1]

    def split(states: tf.Tensor) -> tf.Tensor:
        apart = tf.reshape(states, [batch, -1, heads, width // heads])
        return tf.transpose(apart, [0, 2, 1, 3])

    scaled = query * (width // heads) ** -0.5
    weights = tf.matmul(split(scaled), split(key), transpose_b=True)
    weights = tf.nn.softmax(weights + (1.0 - real[:, None, None]) * _MASKED)
    joined = tf.transpose(tf.matmul(weights, split(value)), [0, 2, 1, 3])
    return tf.reshape(joined, [-1, width])


def _embedding(rows: int, width: int) -> keras.layers.Embedding:
    layer = keras.layers.Embedding(
        rows, width, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02)
    )
    layer.build()
    return layer


def _bucket(values: tf.Tensor, buckets: int) -> tf.Tensor:
    """Hash bucket of 64-bit hashes, 1..buckets; 0 stays 0."""
    low = tf.bitwise.bitwise_and(values, tf.constant(buckets - 1, tf.int64))
    return tf.where(values == 0, tf.zeros_like(low), low + 1)


def kept(values: Array) -> tf.Variable:
    """What a graph reads beside its weights: restored from its file, of any length."""
    return tf.Variable(values, trainable=False, shape=tf.TensorShape([None, *values.shape[1:]]))


def _padded_edges(edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Up to `_BINS`, with ones that no finite number reaches."""
    return np.pad(edges, (0, _BINS - len(edges)), constant_values=np.inf)


def _bin(values: tf.Tensor, edges: tf.Variable) -> tf.Tensor:
    """Bin of each number, 1..edges + 1; 0 for what is not a number."""
    bounds = tf.convert_to_tensor(edges)
    real = tf.reduce_sum(tf.cast(tf.math.is_finite(bounds), tf.int32))
    passed = tf.searchsorted(bounds, tf.reshape(values, [-1]), side="right")
    found = 1 + tf.minimum(passed, real)  # an infinite number passes those that pad as well
    return tf.where(tf.math.is_nan(values), 0, tf.reshape(found, tf.shape(values)))


def _scaled(values: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """As `signed_log`, then to mean 0 and deviation 1, clipped. [batch, n] and [n, 2]."""
    known = tf.where(tf.math.is_finite(values), values, tf.zeros_like(values))
    logs = tf.sign(known) * tf.math.log1p(tf.abs(known))
    mean, deviation = tf.unstack(scales, axis=1)
    return tf.clip_by_value((logs - mean) / deviation, -_CLIP, _CLIP)


def _side_by_side(
    inputs: Tensors, names: Sequence[str], batch: tf.Tensor, dtype: tf.DType
) -> tuple[tf.Tensor, dict[str, int]]:
    """Inputs of shape [batch] and [batch, length] in one, and how wide each of them is."""
    if isinstance(inputs, PackedInputs):
        return inputs.side_by_side(names, dtype)
    flat = [inputs[n][:, None] if inputs[n].shape.rank == 1 else inputs[n] for n in names]
    widths = {n: int(part.shape[1]) for n, part in zip(names, flat, strict=True)}
    return tf.concat([tf.zeros([batch, 0], dtype), *flat], axis=1), widths
