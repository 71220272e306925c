"""Shoppers who mostly take item i + 1 after item i: learnable, and not by popularity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from features import archive, example_bytes
from features.assemble import ItemFeatures, UserFeatures
from features.declare import Drift, Feature, FeatureSet, Level, RowPolicy
from features.examples import LABELS, Examples
from features.hashing import hash_ids
from retrain.recipe import NetworkPolicy, TrainPolicy
from retrain.roles import HISTORY_ITEMS
from schemas.events import EventType

LENGTH = 6
FEATURES = FeatureSet(
    features=(
        Feature(
            name=HISTORY_ITEMS,
            level=Level.USER,
            dtype="int64",
            length=LENGTH,
            compute=len,
            doc="items, newest last",
            drift=Drift.HASHED,
        ),
        Feature(
            name="history_type",
            level=Level.USER,
            dtype="int64",
            length=LENGTH,
            compute=len,
            doc="event types",
            drift=Drift.CATEGORICAL,
        ),
        Feature(
            name="history_age_s",
            level=Level.USER,
            dtype="float32",
            length=LENGTH,
            compute=len,
            doc="seconds before now",
        ),
        Feature(name="events", level=Level.USER, dtype="float32", compute=len, doc="so far"),
        Feature(
            name="country",
            level=Level.USER,
            dtype="int64",
            compute=len,
            doc="hash",
            drift=Drift.HASHED,
        ),
        Feature(
            name="item_categories",
            level=Level.ITEM,
            dtype="int64",
            length=2,
            compute=len,
            doc="hashes",
            drift=Drift.HASHED,
        ),
        Feature(name="item_price", level=Level.ITEM, dtype="float32", compute=len, doc="price"),
    ),
    row=RowPolicy(history_length=LENGTH),
)
ITEMS = 40
HASHES = hash_ids([f"item-{i}" for i in range(ITEMS)])
CATEGORIES = np.stack([HASHES[::-1].view(np.int64), np.zeros(ITEMS, np.int64)], axis=1)
START_MS = 1_700_000_000_000
STEP_MS = 1_000
SMALL = TrainPolicy(
    network=NetworkPolicy(width=16, blocks=1, content_buckets=64, attribute_buckets=64),
    epochs=4,
    batch=64,
    learning_rate=1e-2,
    holdout_share=0.2,
    embargo_ms=5 * STEP_MS,
    least_positives=100,
)


def shoppers(
    users: int = 60, each: int = 50, *, shift: int = 1, seed: int = 1, start_ms: int = START_MS
) -> Examples:
    """`users * each` choices in order of time; each user mostly goes from item i to i + shift."""
    random = np.random.default_rng(seed)
    walk = np.empty((each, users), np.int64)
    walk[0] = random.integers(0, ITEMS, users)
    for turn in range(1, each):
        astray = random.random(users) < 0.1
        walk[turn] = np.where(
            astray, random.integers(0, ITEMS, users), (walk[turn - 1] + shift) % ITEMS
        )
    history = np.zeros((each, users, LENGTH), np.int64)
    for turn in range(1, each):
        history[turn] = np.roll(history[turn - 1], -1, axis=1)
        history[turn, :, -1] = HASHES.view(np.int64)[walk[turn - 1]]
    n = users * each
    times = start_ms + np.arange(n) * STEP_MS
    return _examples(walk.reshape(n), history.reshape(n, LENGTH), np.arange(n) % users, times)


def _examples(
    item: np.ndarray, history: np.ndarray, user: np.ndarray, times: np.ndarray
) -> Examples:
    n = len(item)
    real = history != 0
    labels = np.zeros((n, LABELS), np.int64)
    labels[:, EventType.CLICK] = 1
    ages = np.arange(LENGTH, 0, -1) * 60.0
    return Examples(
        request_id=[f"r{at}" for at in times.tolist()],
        user_id=[f"u{i}" for i in user],
        item_id=[f"item-{i}" for i in item],
        source=["history"] * n,
        surface=["shop"] * n,
        fingerprint=FEATURES.fingerprint,
        position=np.full(n, -1),
        event_time=times,
        model_version=np.zeros(n, np.int64),
        events_partition=np.zeros(n, np.int64),
        events_offset=np.arange(n),
        item_hash=HASHES[item],
        users=UserFeatures(
            longs=np.concatenate(
                [history, np.where(real, EventType.CLICK, 0), np.ones((n, 1), np.int64)], axis=1
            ),
            floats=np.concatenate(
                [np.where(real, ages, 0), real.sum(axis=1, keepdims=True)], axis=1
            ).astype(np.float32),
        ),
        items=ItemFeatures(longs=CATEGORIES[item], floats=np.ones((n, 1), np.float32)),
        labels=labels,
    )


def archived(root: Path, examples: Examples, partition: int = 0) -> Path:
    """The examples as a whole archive below `root`."""
    first = archive.Manifest(
        kind="examples",
        partition=partition,
        sequence=0,
        generation=0,
        position={"recommendations": 0},
        log={"cluster": "c"},
        fingerprint=examples.fingerprint,
    )
    writer = archive.claim(root, first, ".tfrecord.gz")
    records = example_bytes.encode(examples, FEATURES)
    writer.append(example_bytes.framed(records), len(records), START_MS)
    writer.commit({"recommendations": len(records)})
    return root
