"""What a request must not get: hidden where all are compared, else taken out of what was found."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, filled, given

Places = NDArray[np.int64]
Scores = NDArray[np.float32]

_NEAR: Final = 1024  # a power of two, several times what most requests leave out


def hide(scores: Scores, left_out: Places, columns: Places) -> None:
    """
    Give what a row leaves out the score -inf.

    Args:
        scores: [b, n], contiguous; written to.
        left_out: [b, e] places; -1 pads.
        columns: [p] of each place among the scores; -1: it is not. Later places are not either.

    >>> scores = np.ones((1, 2), np.float32)
    >>> hide(scores, np.array([[2, -1, 7, 0]]), np.array([-1, 0, 1])); scores.tolist()
    [[1.0, -inf]]
    """
    _hide(scores, left_out, columns)


def without(at: Places, scores: Scores, left_out: Places, k: int) -> tuple[Places, Scores]:
    """
    The first k of each row less what that row leaves out; -1 and -inf pad.

    Args:
        at: [b, m] places, best first; -1 pads.
        scores: [b, m]
        left_out: [b, e] places; -1 pads.

    >>> found = np.array([[4, 7, 9]]), np.array([[3, 2, 1]], np.float32)
    >>> without(*found, np.array([[7, -1]]), 2)[0].tolist()
    [[4, 9]]
    """
    found = np.full((len(at), k), -1, np.int64)
    best = np.full((len(at), k), -np.inf, np.float32)
    _fill(at, scores, left_out, found, best)
    return found, best


@compiled(filled("float32", 2), given("int64", 2), given("int64"))
def _hide(scores: Scores, left_out: Places, columns: Places) -> None:
    for i in range(len(scores)):
        for place in left_out[i]:
            if 0 <= place < len(columns) and columns[place] >= 0:
                scores[i, columns[place]] = -np.inf


@compiled(given("int64"), "int64")
def _among(places: Places, place: int) -> bool:
    found = False
    for one in places:
        found |= one == place
    return found


@compiled(
    given("int64", 2),
    given("float32", 2),
    given("int64", 2),
    filled("int64", 2),
    filled("float32", 2),
)
def _fill(at: Places, scores: Scores, left_out: Places, found: Places, best: Scores) -> None:
    # Most are in nobody's way, which a look at a few bits of the place tells.
    near = np.zeros(_NEAR, np.bool_)
    for i in range(len(at)):
        for place in left_out[i]:
            near[place & (_NEAR - 1)] = True
        rank = 0
        for j in range(at.shape[1]):
            place = at[i, j]
            if rank == found.shape[1]:
                break
            if place >= 0 and not (near[place & (_NEAR - 1)] and _among(left_out[i], place)):
                found[i, rank], best[i, rank] = place, scores[i, j]
                rank += 1
        for place in left_out[i]:
            near[place & (_NEAR - 1)] = False
