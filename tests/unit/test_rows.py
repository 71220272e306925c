"""The stored form of rows, and picking and joining them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from features import stored_tiles
from features.rows import Rows, concat, decode, empty, encode, take
from features.stored import SEAL_BYTES
from features.tiles import HOUR, tile_key

MINE = "0123456789abcdef"


def two_rows() -> Rows:
    """A full row, and one with a ring only."""
    return Rows(
        first_seen_ms=np.array([5, 0]),
        last_seen_ms=np.array([9, 0]),
        history_splits=np.array([0, 2, 2]),
        history_item=np.array([2**64 - 1, 7], np.uint64),
        history_time_ms=np.array([5, 9]),
        history_type=np.array([3, 9], np.uint8),
        history_value=np.array([np.nan, 4.5], np.float32),
        ring_splits=np.array([0, 1, 3]),
        ring=np.array([11, 12, 2**32 - 1], np.uint32),
        tile_splits=np.array([0, 1, 1]),
        tile_key=np.array([3], np.uint32),
        tile_count=np.array([2**32 - 1], np.uint32),
        profile_splits=np.array([0, 1, 1]),
        profile_name=np.array([21], np.uint64),
        profile_value=np.array([22], np.uint64),
    )


def same(a: Rows, b: Rows) -> bool:
    return encode(a, MINE) == encode(b, MINE)


def test_what_is_encoded_decodes_to_the_same_columns() -> None:
    rows = two_rows()
    decoded = decode(encode(rows, MINE), MINE)
    assert decoded.corrupt == ()
    for name in Rows.__slots__:
        np.testing.assert_array_equal(getattr(decoded.rows, name), getattr(rows, name), name)


def test_no_value_is_an_empty_row_and_not_corrupt() -> None:
    decoded = decode([None, *encode(two_rows(), MINE), None], MINE)
    assert decoded.corrupt == ()
    assert same(decoded.rows, concat([empty(1), two_rows(), empty(1)]))


def test_every_flipped_byte_is_noticed() -> None:
    good, other = encode(two_rows(), MINE)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x10
        decoded = decode([other, bytes(bad), other], MINE)
        assert decoded.corrupt == (1,), at
        assert same(decoded.rows, take(two_rows(), np.array([1, 1, 1]))) is False
        assert same(take(decoded.rows, np.array([0, 2])), take(two_rows(), np.array([1, 1])))


def test_every_cut_is_noticed() -> None:
    good = encode(two_rows(), MINE)[0]
    cuts = [good[:n] for n in range(len(good))] + [good + b"\0" * 8, good * 2]
    assert decode(cuts, MINE).corrupt == tuple(range(len(cuts)))


def test_a_row_of_another_feature_set_is_corrupt_and_empty() -> None:
    decoded = decode(encode(two_rows(), "f" * 16), MINE)
    assert decoded.corrupt == (0, 1)
    assert same(decoded.rows, empty(2))


def test_every_nan_is_stored_as_the_same_nan() -> None:
    rows = two_rows()
    odd = np.array([0x7FC00123, np.float32(4.5).view(np.uint32)], np.uint32).view(np.float32)
    other = {name: getattr(rows, name) for name in Rows.__slots__} | {"history_value": odd}
    assert same(rows, Rows(**other))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"tile_key": np.array([tile_key(HOUR, 1, 0)], np.uint32)}, "newer than its row's"),
        ({"tile_count": np.array([0], np.uint32)}, "counts nothing"),
        ({"history_type": np.array([16, 1], np.uint8)}, "types must be below 16, got 16"),
        ({"last_seen_ms": np.array([2**48, 0])}, "times out of range"),
    ],
)
def test_a_row_that_no_fold_gives_is_refused(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        encode(replace(two_rows(), **changed), MINE)


def test_a_row_that_is_too_long_is_refused() -> None:
    ring = {"ring_splits": np.array([0, 1024]), "ring": np.zeros(1024, np.uint32)}
    with pytest.raises(ValueError, match="too long"):
        encode(replace(empty(1), **ring), MINE)


@pytest.mark.parametrize(
    ("lengths", "problem"),
    [
        (1000 << stored_tiles.LENGTH_BITS, "history is shorter than it says"),
        (2 << stored_tiles.LENGTH_BITS | 9000 << 5, "tiles are shorter than they say"),
    ],
)
def test_a_row_that_claims_more_than_it_holds_is_refused(lengths: int, problem: str) -> None:
    """Its checksum is right: whoever made it was in error, not whoever carried it."""
    good = encode(two_rows(), MINE)[0]
    kind = int.from_bytes(good[:SEAL_BYTES], "little") ^ xxh3_64_intdigest(good[SEAL_BYTES:])
    body = lengths.to_bytes(8, "little") + good[SEAL_BYTES + 8 :]
    value = (xxh3_64_intdigest(body) ^ kind).to_bytes(SEAL_BYTES, "little") + body
    with pytest.raises(ValueError, match=problem):
        decode([value], MINE)


def test_rows_are_taken_in_any_order_and_number() -> None:
    rows = two_rows()
    picked = take(rows, np.array([1, 0, 0]))
    assert encode(picked, MINE) == [encode(rows, MINE)[i] for i in (1, 0, 0)]


def test_nothing_in_nothing_out() -> None:
    assert encode(empty(0), MINE) == []
    assert len(decode([], MINE).rows) == 0
    assert len(concat([])) == 0
