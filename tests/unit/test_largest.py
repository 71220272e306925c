"""The largest of each row are those that sorting it would give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from inference.exclusion import hide
from inference.largest import largest

SCORES = st.floats(width=32, allow_nan=False)


@st.composite
def cases(draw) -> tuple[np.ndarray, int]:
    """Rows of up to three runs, of values that are often equal."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 200))
    values = draw(st.lists(SCORES, min_size=1, max_size=300, unique=True))
    which = draw(arrays.arrays(np.int64, (rows, columns), elements=st.integers(0, 10**6)))
    return np.array(values, np.float32)[which % len(values)], draw(st.integers(0, columns))


@given(cases())
def test_they_are_the_first_of_the_sorted_row(case) -> None:
    scores, k = case
    given_scores = scores.copy()
    at, best = largest(scores, k)
    np.testing.assert_array_equal(scores, given_scores)
    np.testing.assert_array_equal(best, -np.sort(-scores, axis=1)[:, :k])
    reached = best > -np.inf
    np.testing.assert_array_equal(np.take_along_axis(scores, at, axis=1)[reached], best[reached])
    for row, there in zip(at, reached, strict=True):
        assert len(set(row[there].tolist())) == there.sum()  # none twice


@pytest.mark.parametrize("order", ["up", "down", "same", "groups"])
@pytest.mark.parametrize("k", [1, 10, 64, 65, 500])
@pytest.mark.parametrize("columns", [500, 3_400])
def test_rows_in_an_order_that_is_hard_for_some(order: str, k: int, columns: int) -> None:
    up = np.arange(columns, dtype=np.float32) - columns / 2
    row = {"up": up, "down": -up, "same": 0 * up, "groups": up // 100}[order]
    scores = np.stack([row, np.roll(row, 777)])
    at, best = largest(scores, k)
    np.testing.assert_array_equal(best, -np.sort(-scores, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(scores, at, axis=1), best)
    assert all(len(set(row.tolist())) == k for row in at)


@given(
    st.lists(st.integers(-1, 12), max_size=6),
    st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True),
)
def test_what_is_hidden_has_the_least_score_and_nothing_else_has(left_out, at) -> None:
    columns = np.full(10, -1)
    columns[at] = np.arange(len(at))
    scores = np.ones((2, len(at)), np.float32)
    hide(scores, np.array([left_out, [-1] * len(left_out)], np.int64), columns)
    assert np.isneginf(scores[0]).tolist() == [place in left_out for place in at]
    assert (scores[1] == 1).all()
