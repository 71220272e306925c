"""Numbers written at once are the bytes of one at a time."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.plan import long_bytes
from schemas.words import booleans, floats, ints, longs, pieces, side_by_side

LONGS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-70, 70),
    # Where a varint grows by a byte.
    st.builds(lambda bit, by: (1 << bit) - by, st.integers(0, 62), st.integers(0, 1)),
)


@settings(deadline=None)
@given(wide=st.integers(1, 4), data=st.data())
def test_longs_of_any_size(wide: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(*[LONGS] * wide)))
    matrix = np.array(rows, np.int64).reshape(len(rows), wide)
    expected = [b"".join(map(long_bytes, row)) for row in rows]
    assert pieces(longs(matrix)) == expected


def test_every_length_of_a_long_beside_every_other() -> None:
    """Each word is written over the end of the one before, which may be longer than it."""
    edges = [sign * (1 << bit) for bit in range(63) for sign in (1, -1)] + [0, -(2**63), 2**63 - 1]
    pairs = np.array([(a, b) for a in edges for b in edges], np.int64)
    expected = [long_bytes(a) + long_bytes(b) for a, b in pairs.tolist()]
    assert pieces(longs(pairs)) == expected


@settings(deadline=None)
@given(wide=st.integers(0, 5), bits=st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_floats_are_their_bits(wide: int, bits: list[int]) -> None:
    n = len(bits) // wide if wide else 3
    values = np.array(bits[: n * wide], np.uint32).view(np.float32).reshape(n, wide)
    expected = [
        struct.pack(f"<{wide}I", *row) for row in values.view(np.uint32).reshape(n, wide).tolist()
    ]
    assert pieces(floats(values)) == expected


def test_all_kinds_side_by_side() -> None:
    n = 1_000
    chance = np.random.default_rng(1)
    wide = chance.integers(-(2**63), 2**63 - 1, (n, 3)) >> chance.integers(0, 63, (n, 3))
    given = chance.random((n, 3), np.float32)
    said = chance.random((n, 1)) < 0.5
    small = chance.integers(-(2**31), 2**31 - 1, (n, 1))
    seven = longs(np.array([[7]])).repeated(n)
    found = pieces(side_by_side([longs(wide), floats(given), booleans(said), seven, ints(small)]))
    assert found == [
        b"".join(map(long_bytes, wide[i].tolist()))
        + given[i].tobytes()
        + bytes([int(said[i, 0])])
        + long_bytes(7)
        + long_bytes(int(small[i, 0]))
        for i in range(n)
    ]


def test_no_numbers_are_no_bytes() -> None:
    assert pieces(longs(np.zeros((2, 0), np.int64))) == [b"", b""]
    assert pieces(longs(np.zeros((0, 2), np.int64))) == []


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_an_int_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="do not fit an Avro int"):
        ints(np.array([[value]]))
