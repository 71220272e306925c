"""The real network with weights as they are born, exported like a trained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemFeatures, UserFeatures, named
from features.catalog import CATALOG
from features.declare import FeatureSet, Level
from retrain.recipe import NetworkPolicy
from retrain.roles import HISTORY_ITEMS, roles_of

SMALL = NetworkPolicy(width=16, blocks=1, content_buckets=64, attribute_buckets=64)


def some_users(
    items: NDArray[np.uint64], count: int, features: FeatureSet = CATALOG
) -> tuple[UserFeatures, NDArray[np.uint64]]:
    """Users whose histories are full of these items, and those histories, [n, length]."""
    chance = np.random.default_rng(5)
    longs = chance.integers(0, 50, (count, features.width(Level.USER, "int64")))
    history = features.slices(Level.USER, "int64")[HISTORY_ITEMS]
    seen = chance.choice(items, (count, history.stop - history.start))
    longs[:, history] = seen.view(np.int64)
    floats = chance.random((count, features.width(Level.USER, "float32")), np.float32)
    return UserFeatures(longs=longs, floats=floats), seen


def export_untrained(
    folder: Path,
    items: NDArray[np.uint64],
    content: dict[str, NDArray[np.int64]] | None = None,
    *,
    policy: NetworkPolicy = SMALL,
    spread: float = 1.0,
    features: FeatureSet = CATALOG,
    seed: int = 1,
    asked: tuple[UserFeatures, NDArray[np.uint64]] | None = None,
) -> None:
    """
    Write the SavedModel with its samples. Each seed's has other weights, bins and scales, as each
    training's has, and other contents where none are given.

    Args:
        items: [v] the vocabulary.
        content: of these items by feature, [v] or [v, length]; default: random.
        spread: of the user tower's last layer; 0: everybody has the same taste.
        asked: users and their histories, for the samples; default: `some_users`.
    """
    import keras

    from retrain.export import Sample, export
    from retrain.network import Knowledge, Network

    keras.utils.clear_session()  # as a training does
    keras.utils.set_random_seed(seed)
    chance = np.random.default_rng(seed)
    roles = roles_of(features)
    order = np.argsort(items.view(np.int64))
    lengths = {f.name: f.length for f in features.of(Level.ITEM)}
    if content is None:
        content = {n: chance.integers(1, 2**62, (len(items), lengths[n])) for n in roles.content}
    knowledge = Knowledge(
        items=items[order].view(np.int64),
        prior=np.log(np.full(len(items) + 1, 1 / len(items), np.float32)),
        content={name: values[order] for name, values in content.items()},
        edges=dict.fromkeys(roles.history_numbers, np.linspace(0, seed, 31, dtype=np.float32)),
        scales=dict.fromkeys(roles.numbers, (0.0, float(seed))),
    )
    network = Network(policy, roles, knowledge)
    users, seen = asked or some_users(items, 256, features)
    network(named(features, Level.USER, users.longs[:2], users.floats[:2]))  # makes the weights
    kernel, bias = network.head.get_weights()
    network.head.set_weights([spread * chance.normal(size=kernel.shape), bias])
    longs = np.zeros((len(users), features.width(Level.ITEM, "int64")), np.int64)
    candidates = np.resize(items, len(users))
    sample = Sample(
        users=users,
        seen=seen,
        candidates=candidates,
        items=ItemFeatures(
            longs=longs,
            floats=np.zeros((len(users), features.width(Level.ITEM, "float32")), np.float32),
        ),
    )
    integrity = export(network, features, sample, folder)
    if integrity.problem:
        raise RuntimeError(integrity.problem)
