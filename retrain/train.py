"""
Training: examples become a network, or a typed failure. Never a half-trained model.

Every step's loss and gradient norm are looked at before the next step. When one is not finite or
explodes, training goes back to the weights after the last whole epoch and tries once more with a
lower learning rate; a second time it fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features.assemble import named
from features.declare import FeatureSet, Level
from features.examples import Examples
from retrain.network import Knowledge, Network, edges_of, masked_seen, scale_of
from retrain.recipe import TrainPolicy
from retrain.roles import HISTORY_ITEMS, roles_of
from retrain.split import weights_of

_SCALE_ROWS = 50_000  # that bins and scales are measured on: quantiles move by less than 1 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a training stands, told after every epoch."""

    epoch: int  # from 1
    epochs: int
    loss: float  # mean of the epoch, nats
    norm: float  # largest gradient norm of the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network that went through all epochs."""

    network: Network
    losses: tuple[float, ...]  # of each epoch
    positives: int
    retried: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No network: why, after one retry. `insufficient`: there was too little to learn from."""

    reason: str
    insufficient: bool = False


TrainResult: TypeAlias = Trained | Failed
Listener: TypeAlias = Callable[[Progress], None]


def learn_vocabulary(
    examples: Examples, rows: NDArray[np.int64], weights: NDArray[np.float32], features: FeatureSet
) -> Knowledge:
    """
    Items, their popularity and content, and the bins and scales of numbers, from training rows.

    Args:
        rows: the examples that may be looked at, in order of time.
        weights: [len(rows)] 0 where nothing was chosen.
    """
    roles = roles_of(features)
    hashes = np.ascontiguousarray(examples.item_hash[rows]).view(np.int64)
    items, code = np.unique(hashes, return_inverse=True)
    code = code.ravel()
    newest = np.zeros(len(items), np.int64)
    np.maximum.at(newest, code, np.arange(len(rows)))
    content = named(
        features,
        Level.ITEM,
        examples.items.longs[rows[newest]],
        examples.items.floats[rows[newest]],
    )
    chosen = np.bincount(code, weights=weights, minlength=len(items)) + 0.5
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SCALE_ROWS)).astype(np.int64)]
    users = named(features, Level.USER, examples.users.longs[sample], examples.users.floats[sample])
    real = users[HISTORY_ITEMS] != 0
    return Knowledge(
        items=items,
        prior=np.log(np.concatenate([[0.5], chosen]) / chosen.sum()).astype(np.float32),
        content={n: np.ascontiguousarray(content[n]) for n in roles.content},
        edges={n: edges_of(users[n][real]) for n in roles.history_numbers},
        scales={n: scale_of(users[n]) for n in roles.numbers},
    )


def train(
    examples: Examples,
    rows: NDArray[np.int64],
    features: FeatureSet,
    policy: TrainPolicy,
    *,
    recent_from_ms: int | None = None,
    listener: Listener = lambda progress: None,
) -> TrainResult:
    """
    Train on the choices among `rows`. The same arguments give the same network on one machine,
    up to the rounding of float32 sums (oneDNN cuts them by the threads that happen to be free).

    Args:
        rows: of `examples`, in order of time; those without a choice only tell of items.
        recent_from_ms: see `weights_of`.
        listener: told after every epoch.
    """
    weights = weights_of(examples.labels[rows], examples.event_time[rows], policy, recent_from_ms)
    positive = np.flatnonzero(weights > 0)
    if len(positive) < policy.least_positives:
        reason = f"{len(positive)} choices, at least {policy.least_positives} needed"
        return Failed(reason=reason, insufficient=True)
    keras.utils.clear_session()  # layers are counted anew: each training exports the same names
    keras.utils.set_random_seed(policy.seed)
    knowledge = learn_vocabulary(examples, rows, weights, features)
    network = Network(policy.network, roles_of(features), knowledge)
    data = _Data(
        examples=examples,
        features=features,
        rows=rows[positive],
        weights=weights[positive],
        targets=_targets(examples, rows[positive], knowledge),
    )
    return _with_retry(network, data, policy, listener)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """The choices to learn from."""

    examples: Examples
    features: FeatureSet
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    targets: NDArray[np.int64]

    def batch(self, at: NDArray[np.int64]) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """User features by name, targets and weights of some of the choices."""
        users = self.examples.users
        rows = self.rows[at]
        inputs = named(self.features, Level.USER, users.longs[rows], users.floats[rows])
        return (
            {name: tf.constant(value) for name, value in inputs.items()},
            tf.constant(self.targets[at], tf.int32),
            tf.constant(self.weights[at]),
        )

    def batches(self, size: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Whole batches of a random order; one smaller batch if there is not enough for one."""
        order = random.permutation(len(self.rows))
        for at in range(0, max(1, len(order) - size + 1), size):
            yield order[at : at + size]


class _Diverged(Exception):
    """A loss or gradient that must not be followed."""


def _with_retry(
    network: Network, data: _Data, policy: TrainPolicy, listener: Listener
) -> TrainResult:
    network(data.batch(np.arange(1))[0])  # creates the weights
    losses: list[float] = []
    epochs = policy.epochs_of(len(data.rows))
    good, rate, problem = network.get_weights(), policy.learning_rate, ""
    for attempt in range(2):
        network.set_weights(good)
        step = _stepper(network, data, policy, rate, epochs - len(losses))
        try:
            for epoch in range(len(losses), epochs):
                loss, norm = _epoch(step, data, policy, epoch)
                good = network.get_weights()
                losses.append(loss)
                listener(Progress(epoch=epoch + 1, epochs=epochs, loss=loss, norm=norm))
        except _Diverged as diverged:
            problem, rate = str(diverged), rate * policy.retry_factor
            continue
        return Trained(
            network=network,
            losses=tuple(losses),
            positives=len(data.rows),
            retried=attempt > 0,
        )
    return Failed(reason=f"{problem}, also at learning rate {rate / policy.retry_factor:g}")


def _epoch(
    step: Callable[..., Any], data: _Data, policy: TrainPolicy, epoch: int
) -> tuple[float, float]:
    """One pass; mean loss and largest norm."""
    random = np.random.default_rng([policy.seed, epoch])
    losses, largest = [], 0.0
    for number, at in enumerate(data.batches(policy.batch, random)):
        loss, norm = (float(x) for x in step(*data.batch(at)))
        if not (math.isfinite(loss) and norm <= policy.explode_norm):
            raise _Diverged(
                f"loss {loss:g}, gradient norm {norm:g} at epoch {epoch + 1} step {number + 1}"
            )
        losses.append(loss)
        largest = max(largest, norm)
    return float(np.mean(losses)), largest


def _stepper(
    network: Network, data: _Data, policy: TrainPolicy, rate: float, epochs: int
) -> Callable[..., Any]:
    """A compiled training step: (inputs, targets, weights) -> (loss, gradient norm)."""
    steps = max(1, epochs * (len(data.rows) // policy.batch))
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps, alpha=0.05)
    optimizer = keras.optimizers.Adam(schedule, beta_2=0.98)
    variables = network.trainable_variables
    optimizer.build(variables)

    @tf.function(reduce_retracing=True, autograph=False)
    def step(inputs: Any, targets: tf.Tensor, weights: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            logits = network(inputs, training=True)
            if policy.network.mask_seen:
                logits = masked_seen(network, logits, inputs[HISTORY_ITEMS], targets)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
        clipped, norm = tf.clip_by_global_norm(gradients, policy.clip_norm)
        optimizer.apply(clipped, variables)
        return loss, norm

    return step


def _targets(
    examples: Examples, rows: NDArray[np.int64], knowledge: Knowledge
) -> NDArray[np.int64]:
    """Place of each chosen item among the known ones."""
    hashes = np.ascontiguousarray(examples.item_hash[rows]).view(np.int64)
    return np.searchsorted(knowledge.items, hashes)
