"""Examples as bytes: what TensorFlow's own parser reads back is what went in."""

from pathlib import Path

import numpy as np
import pytest

from features.assemble import ItemFeatures, UserFeatures
from features.declare import Feature, FeatureSet, Level
from features.example_bytes import encode, framed
from features.examples import LABELS, Examples, concat, take


def nothing(_: object) -> np.ndarray:  # type: ignore[type-arg]
    raise AssertionError("not computed here")


FEATURES = FeatureSet(
    (
        Feature(name="ids", level=Level.USER, dtype="int64", compute=nothing, doc="", length=5),
        Feature(name="age", level=Level.USER, dtype="float32", compute=nothing, doc=""),
        Feature(name="price", level=Level.ITEM, dtype="float32", compute=nothing, doc="", length=3),
    )
)


def examples(n: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    longs = rng.integers(-(2**63), 2**63 - 1, (n, 5))
    longs[:, 0] = [0, 1, -1, 127, 128, 2**63 - 1, -(2**63)][: min(n, 7)] + [300] * max(0, n - 7)
    return Examples(
        request_id=[f"r{i}" for i in range(n)],
        user_id=[f"ü{i}" * (i % 40) for i in range(n)],
        item_id=[f"i{i}" for i in range(n)],
        source=["served"] * n,
        surface=[""] * n,
        fingerprint=FEATURES.fingerprint,
        position=np.arange(n),
        event_time=np.full(n, 1_700_000_000_000),
        model_version=np.ones(n, np.int64),
        events_partition=np.zeros(n, np.int64),
        events_offset=np.arange(n),
        item_hash=rng.integers(0, 2**64 - 1, n, np.uint64),
        users=UserFeatures(longs=longs, floats=rng.normal(size=(n, 1)).astype(np.float32)),
        items=ItemFeatures(
            longs=np.zeros((n, 0), np.int64), floats=rng.normal(size=(n, 3)).astype(np.float32)
        ),
        labels=rng.integers(0, 3, (n, LABELS)),
    )


@pytest.mark.tf
def test_tensorflow_reads_back_what_was_written(tmp_path: Path) -> None:
    import gzip

    from features.tfrecord import dataset

    written = examples(300)
    path = tmp_path / "part.tfrecord.gz"
    path.write_bytes(gzip.compress(framed(encode(written, FEATURES))))
    [read] = list(dataset([path], FEATURES, batch=1_000).as_numpy_iterator())
    assert read["user_id"].tolist() == [u.encode() for u in written.user_id]
    np.testing.assert_array_equal(read["ids"], written.users.longs)
    np.testing.assert_array_equal(read["age"], written.users.floats[:, 0])
    np.testing.assert_array_equal(read["price"], written.items.floats)
    np.testing.assert_array_equal(read["labels"], written.labels)
    np.testing.assert_array_equal(read["item_hash"], written.item_hash.view(np.int64))
    assert set(read["fingerprint"].tolist()) == {FEATURES.fingerprint.encode()}


@pytest.mark.tf
def test_examples_of_another_feature_set_are_an_error_when_read(tmp_path: Path) -> None:
    import gzip

    import tensorflow as tf

    from features.tfrecord import dataset

    other = FeatureSet(FEATURES.features, row=FEATURES.row.__class__(history_length=7))
    path = tmp_path / "part.tfrecord.gz"
    path.write_bytes(gzip.compress(framed(encode(examples(3), FEATURES))))
    with pytest.raises(tf.errors.InvalidArgumentError, match="another feature set"):
        list(dataset([path], other, batch=10))


def test_examples_of_another_feature_set_are_not_written() -> None:
    other = FeatureSet(FEATURES.features[:2])
    with pytest.raises(ValueError, match=f"expected {other.fingerprint}"):
        encode(examples(1), other)


def test_taking_and_concatenating_gives_the_same_bytes() -> None:
    whole = examples(20)
    parts = [take(whole, np.arange(0, 7)), take(whole, np.arange(7, 20))]
    assert encode(concat(parts), FEATURES) == encode(whole, FEATURES)


def test_the_items_of_a_list_have_the_bytes_that_each_has_alone() -> None:
    mixed = take(examples(4), np.repeat([0, 1, 2, 1], 3))
    mixed.users.floats[4:7] = np.nan
    mixed.labels[5] = 9
    alone = [encode(take(mixed, np.array([i])), FEATURES)[0] for i in range(len(mixed))]
    assert encode(mixed, FEATURES) == alone
    assert len(set(alone)) == 6


def test_columns_of_unequal_length_are_named() -> None:
    with pytest.raises(ValueError, match=r"columns of other lengths.*user_id"):
        Examples(**{**{n: getattr(examples(2), n) for n in Examples.__slots__}, "user_id": ["a"]})  # type: ignore[arg-type]
