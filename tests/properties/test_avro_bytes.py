"""Numbers put in bytes together are the bytes of one at a time."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.avro_bytes import long_size, measure_longs, put_floats, put_long, put_longs
from schemas.plan import long_bytes

EDGES = [sign * (1 << bit) for bit in range(63) for sign in (1, -1)] + [0, -(2**63), 2**63 - 1]
LONGS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-70, 70),
    # Where a varint grows by a byte.
    st.builds(lambda bit, by: (1 << bit) - by, st.integers(0, 62), st.integers(0, 1)),
)


def written(matrix: NDArray[np.int64]) -> list[bytes]:
    """Each row's longs, measured and put."""
    sizes = np.zeros(len(matrix), np.int64)
    measure_longs(matrix, sizes)
    at = np.cumsum(sizes) - sizes
    starts = at.copy()
    out = np.zeros(int(sizes.sum()), np.uint8)
    put_longs(matrix, out, at)
    assert (at - starts).tolist() == sizes.tolist()
    return [out[start : start + size].tobytes() for start, size in zip(starts, sizes, strict=True)]


@pytest.mark.parametrize("value", [*EDGES, *(edge - 1 for edge in EDGES if edge > -(2**63))])
def test_a_long_at_every_edge(value: int) -> None:
    out = np.zeros(12, np.uint8)
    stop = put_long(value, out, 1)
    assert out[1:stop].tobytes() == long_bytes(value)
    assert long_size(value) == stop - 1


@settings(deadline=None)
@given(wide=st.integers(1, 4), data=st.data())
def test_longs_of_any_size(wide: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(*[LONGS] * wide)))
    matrix = np.array(rows, np.int64).reshape(len(rows), wide)
    assert written(matrix) == [b"".join(map(long_bytes, row)) for row in rows]


def test_longs_that_do_not_lie_side_by_side_in_memory() -> None:
    values = np.arange(-50, 50).reshape(10, 10)
    for matrix in (values[::2, ::3], values.T, np.broadcast_to(7, (4, 2))):
        rows = matrix.tolist()
        assert written(matrix) == [b"".join(map(long_bytes, row)) for row in rows]


@settings(deadline=None)
@given(wide=st.integers(0, 5), bits=st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_floats_are_their_bits(wide: int, bits: list[int]) -> None:
    n = len(bits) // wide if wide else 3
    values = np.array(bits[: n * wide], np.uint32).view(np.float32).reshape(n, wide)
    out, at = np.zeros(values.nbytes, np.uint8), np.arange(n) * 4 * wide
    put_floats(values, out, at)
    rows = values.view(np.uint32).reshape(n, wide).tolist()
    assert out.tobytes() == b"".join(struct.pack(f"<{wide}I", *row) for row in rows)
    assert at.tolist() == [4 * wide * (i + 1) for i in range(n)]
