"""The largest scores of each row."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, filled

Columns = NDArray[np.int64]
Scores = NDArray[np.float32]
Bits = NDArray[np.int32]

# Of more than so many, partitions take less time. They take a place of 8 bytes for each score.
_FEW: Final = 64
_SHORT, _LONG = 16, 64  # scores of a run
_BUT_SIGN: Final = np.int32(2**31 - 1)
_LEAST: Final = np.int32(~0x7F800000)  # minus infinity's key


def largest(scores: Scores, k: int) -> tuple[Columns, Scores]:
    """
    Columns and values [b, k] of the k largest of each row, largest first. Where the value is -inf,
    the column says nothing.

    Args:
        scores: [b, n], contiguous, no NaN.
        k: at most n.

    >>> largest(np.array([[1, 5, 3]], np.float32), 2)
    (array([[1, 2]]), array([[5., 3.]], dtype=float32))
    """
    if k > _FEW:
        return _partitioned(scores, k)
    found, best = np.zeros((len(scores), k), np.int64), np.empty((len(scores), k), np.float32)
    if k:
        run = max(_SHORT, min(_LONG, scores.shape[1] // (2 * k) // _SHORT * _SHORT))
        _choose(scores.view(np.int32), run, found, best.view(np.int32))
    return found, best


def _partitioned(scores: Scores, k: int) -> tuple[Columns, Scores]:
    found = np.argpartition(scores, -k, axis=1)[:, -k:]
    best = np.take_along_axis(scores, found, axis=1)
    order = np.argsort(-best, axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(best, order, axis=1)


@compiled("int32")
def _key(bits: Any) -> Any:
    """A float's bits as an integer of the same order, and back."""
    return np.int32(bits ^ np.int32(np.int32(bits >> 31) & _BUT_SIGN))


@compiled(filled("int32"), filled("int32"), "int64")
def _runs(row: Bits, most: Bits, run: Any) -> None:
    """Fill in the largest key of each run."""
    for i in range(len(most)):
        found = _LEAST
        for j in range(i * run, min(len(row), (i + 1) * run)):
            key = _key(row[j])
            found = max(found, key)
        most[i] = found


@compiled(filled("int32"), filled("int64"), "int32", "int64", "int64")
def _sift(keys: Bits, found: Columns, key: Any, column: Any, size: Any) -> None:
    """Put a key in the place of the root, which is the least, of a heap (Floyd, Algorithm 245)."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if key <= keys[child]:
            break
        keys[at], found[at] = keys[child], found[child]
        at = child
    keys[at], found[at] = key, column


@compiled(filled("int32"), filled("int32"), "int64", filled("int32"), filled("int64"))
def _gather(row: Bits, most: Bits, run: Any, keys: Bits, at: Columns) -> None:
    """Let the largest keys of a row be a heap, in any order."""
    keys[:] = _LEAST
    for key in most:
        if key > keys[0]:
            _sift(keys, at, key, 0, len(keys))
    bar = keys[0]
    keys[:] = _LEAST
    for part in range(len(most)):
        if most[part] < bar:
            continue
        for column in range(part * run, min(len(row), (part + 1) * run)):
            key = _key(row[column])
            if key >= bar and key > keys[0]:
                _sift(keys, at, key, column, len(keys))


@compiled(filled("int32", 2), "int64", filled("int64", 2), filled("int32", 2), nogil=True)
def _choose(bits: Bits, run: Any, found: Columns, best: Bits) -> None:
    """
    Fill in the best k of each row.

    At least k scores reach the k-th largest of the largest of all runs, and not many more do: they
    alone go through a heap.
    """
    k, most = found.shape[1], np.empty(-(-bits.shape[1] // run), np.int32)
    for i in range(len(bits)):
        keys, at = best[i], found[i]
        _runs(bits[i], most, run)
        _gather(bits[i], most, run, keys, at)
        for size in range(k - 1, 0, -1):
            key, column = keys[size], at[size]
            keys[size], at[size] = keys[0], at[0]
            _sift(keys, at, key, column, size)
        for rank in range(k):
            keys[rank] = _key(keys[rank])
