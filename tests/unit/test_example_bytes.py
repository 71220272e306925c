"""Examples as bytes: what TensorFlow's own parser reads back is what went in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.assemble import ItemFeatures, UserFeatures
from features.declare import Array, Feature, FeatureSet, Level
from features.example_bytes import encode, framed, unframed
from features.examples import LABELS, Examples, concat, take
from schemas.errors import Refused


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
def test_tensorflow_reads_back_what_was_written() -> None:
    from features.tfrecord import parsed

    written = examples(300)
    read = parsed(encode(written, FEATURES), FEATURES)
    assert read["user_id"].tolist() == [u.encode() for u in written.user_id]
    np.testing.assert_array_equal(read["ids"], written.users.longs)
    np.testing.assert_array_equal(read["age"], written.users.floats[:, 0])
    np.testing.assert_array_equal(read["price"], written.items.floats)
    np.testing.assert_array_equal(read["labels"], written.labels)
    np.testing.assert_array_equal(read["item_hash"], written.item_hash.view(np.int64))
    assert set(read["fingerprint"].tolist()) == {FEATURES.fingerprint.encode()}


@pytest.mark.tf
def test_tensorflows_own_reader_takes_the_files_and_their_checksums(tmp_path: Path) -> None:
    import gzip

    import tensorflow as tf

    records = encode(examples(50), FEATURES)
    path = tmp_path / "part.tfrecord.gz"
    path.write_bytes(gzip.compress(framed(records)))
    assert list(tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator()) == records


@pytest.mark.tf
def test_only_the_examples_wanted_are_parsed() -> None:
    from features.tfrecord import parsed

    written = replace(examples(40), event_time=1_700_000_000_000 + np.arange(40))

    def wanted(labels: Array, event_time: Array) -> Array:
        return (labels[:, 2] > 0) & (event_time > 1_700_000_000_010)

    kept = wanted(written.labels, written.event_time)
    read = parsed(encode(written, FEATURES), FEATURES, wanted=wanted)
    assert 0 < kept.sum() < 40
    np.testing.assert_array_equal(read["events_offset"], np.flatnonzero(kept))
    assert len(parsed([], FEATURES, wanted=wanted)["event_time"]) == 0


@pytest.mark.tf
def test_a_feature_that_older_examples_lack_has_its_default() -> None:
    from features.tfrecord import parsed

    new = Feature(
        name="trend",
        level=Level.ITEM,
        dtype="float32",
        compute=nothing,
        doc="",
        length=2,
        default=7.0,
        defaultable=True,
    )
    wider = FeatureSet((*FEATURES.features, new))
    old = encode(examples(3), FEATURES)
    both = examples(2)
    floats = np.concatenate([both.items.floats, np.ones((2, 2), np.float32)], axis=1)
    newer = replace(
        both,
        fingerprint=wider.fingerprint,
        items=ItemFeatures(longs=both.items.longs, floats=floats),
    )
    records = [*old, *encode(newer, wider)]
    read = parsed(records, wider, lacking={FEATURES.fingerprint: ("trend",)})
    np.testing.assert_array_equal(read["trend"], [[7, 7]] * 3 + [[1, 1]] * 2)
    with pytest.raises(Refused, match="trend"):
        parsed(records, wider)


@pytest.mark.tf
def test_examples_of_another_feature_set_are_refused_when_read() -> None:
    from features.tfrecord import parsed

    other = FeatureSet(FEATURES.features, row=FEATURES.row.__class__(history_length=7))
    with pytest.raises(Refused, match=f"{FEATURES.fingerprint}, expected {other.fingerprint}"):
        parsed(encode(examples(3), FEATURES), other)
    with pytest.raises(Refused, match="does not parse"):
        parsed([b"\xff"], FEATURES)


@pytest.mark.parametrize("at", [0, 9, 12, 20, -1])
def test_a_damaged_byte_is_found_by_a_checksum(at: int) -> None:
    content = bytearray(framed([b"one record of thirty two bytes..", b"x"]))
    content[at] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        unframed(bytes(content))


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
