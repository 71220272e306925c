"""The stored form of rows: nothing is lost, whatever a row holds and whoever is stored with it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.declare import DAY_MS, HOUR_MS
from features.ragged import splits_of
from features.rows import Rows, decode, encode, take
from features.tiles import DAY, HOUR, MAX_COUNT, TOTAL, tile_key

MINE = "fedcba9876543210"
NOW = 20_000 * DAY_MS + 7 * HOUR_MS

# Around every border of the stored times: 16 bits, 32 bits less the bias, and what is left.
steps = st.sampled_from(
    [0, 1, 30_000, 2**16 - 1, 2**16, -1, 2**31 - 2, 2**31 - 1, 2**31, -(2**31), 2**40, -(2**40)]
)
interactions = st.tuples(
    st.integers(1, 3) | st.just(2**64 - 1),  # few items: often that of the one before
    steps,
    st.integers(0, 15),
    st.sampled_from([np.nan, 0.0, -0.0, 4.5, 3.14159, np.inf, 1e-45, -2.5e38]),
)
tiles = st.dictionaries(
    st.tuples(st.sampled_from([TOTAL, DAY, HOUR]), st.integers(0, 999), st.integers(0, 15)),
    st.sampled_from([1, 2, 3, 4, 5, 258, 259, 2**31, MAX_COUNT]),
    max_size=8,
)
one_row = st.tuples(
    st.lists(interactions, max_size=6),
    st.lists(st.integers(0, 2**32 - 1), max_size=5),
    tiles,
    st.dictionaries(st.integers(1, 2**64 - 1), st.integers(1, 2**64 - 1), max_size=2),
    steps,
)


@st.composite
def any_rows(draw: st.DrawFn) -> Rows:
    """A few rows, some of them empty."""
    drawn = draw(st.lists(one_row, max_size=5))
    keys = [sorted((_key(*tile), count) for tile, count in row[2].items()) for row in drawn]
    # Two tiles of the total may fall on one key.
    keys = [list(dict(row).items()) for row in keys]
    names = [sorted(row[3].items()) for row in drawn]

    def splits(lengths: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return splits_of(np.array(lengths, np.int64))

    return Rows(
        first_seen_ms=np.array([NOW - abs(row[4]) for row in drawn], np.int64),
        last_seen_ms=np.full(len(drawn), NOW),
        history_splits=splits([len(row[0]) for row in drawn]),
        history_item=np.array([e[0] for row in drawn for e in row[0]], np.uint64),
        history_time_ms=np.array([NOW - e[1] for row in drawn for e in row[0]], np.int64),
        history_type=np.array([e[2] for row in drawn for e in row[0]], np.uint8),
        history_value=np.array([e[3] for row in drawn for e in row[0]], np.float32),
        ring_splits=splits([len(row[1]) for row in drawn]),
        ring=np.array([i for row in drawn for i in row[1]], np.uint32),
        tile_splits=splits([len(row) for row in keys]),
        tile_key=np.array([k for row in keys for k, _ in row], np.uint32),
        tile_count=np.array([c for row in keys for _, c in row], np.uint32),
        profile_splits=splits([len(row) for row in names]),
        profile_name=np.array([n for row in names for n, _ in row], np.uint64),
        profile_value=np.array([v for row in names for _, v in row], np.uint64),
    )


def _key(span: int, age: int, kind: int) -> int:
    newest = {TOTAL: age, DAY: NOW // DAY_MS, HOUR: NOW // HOUR_MS}[span]
    return tile_key(span, newest - age, kind)


@settings(max_examples=200, deadline=None)
@given(rows=any_rows())
def test_what_is_stored_comes_back_bit_by_bit(rows: Rows) -> None:
    found = decode(encode(rows, MINE), MINE)
    assert found.corrupt == ()
    for name in Rows.__slots__:
        assert getattr(found.rows, name).dtype == getattr(rows, name).dtype, name
        assert getattr(found.rows, name).tobytes() == getattr(rows, name).tobytes(), name


@settings(max_examples=100, deadline=None)
@given(rows=any_rows(), data=st.data())
def test_a_row_is_stored_the_same_whoever_is_stored_with_it(
    rows: Rows, data: st.DataObject
) -> None:
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if len(rows) else []
    stored = encode(rows, MINE)
    assert encode(take(rows, np.array(index, np.int64)), MINE) == [stored[i] for i in index]


@settings(max_examples=100, deadline=None)
@given(rows=any_rows(), data=st.data())
def test_damaged_values_among_others_are_found_and_the_others_read(
    rows: Rows, data: st.DataObject
) -> None:
    stored: list[bytes | None] = [*encode(rows, MINE)]
    fate = data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    for at, what in enumerate(fate):
        value = stored[at] or b""
        damaged = {
            1: value[:-1],
            2: value[:-2] + bytes([value[-2] ^ 1, value[-1]]),
            3: encode(take(rows, np.array([at])), "0" * 16)[0],
        }
        stored[at] = None if what == 4 else damaged.get(what, value)
    found = decode(stored, MINE)
    assert found.corrupt == tuple(at for at, what in enumerate(fate) if what in (1, 2, 3))
    good = np.array([at for at, what in enumerate(fate) if what == 0], np.int64)
    assert encode(take(found.rows, good), MINE) == encode(take(rows, good), MINE)
