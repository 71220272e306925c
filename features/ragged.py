"""
Ragged columns: row i owns the flat entries `splits[i]:splits[i + 1]`. Index arithmetic, no loops.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def splits_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """
    Splits [n + 1] of rows with these lengths [n].

    >>> splits_of(np.array([2, 0, 1])).tolist()
    [0, 2, 2, 3]
    """
    splits = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=splits[1:])
    return splits


def lengths_of(splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """
    Lengths [n] of rows with these splits.

    >>> lengths_of(np.array([0, 2, 2, 3])).tolist()
    [2, 0, 1]
    """
    # numpy's diff takes five times as long for few rows.
    lengths: NDArray[np.int64] = splits[1:] - splits[:-1]
    return lengths


def spans(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], step: int = 1
) -> NDArray[np.int64]:
    """
    The indexes start, start + step, ... of every span, one span after the other.

    >>> spans(np.array([10, 5]), np.array([2, 3])).tolist()
    [10, 11, 5, 6, 7]
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    index: NDArray[np.int64] = np.arange(0, total * step, step)
    index += np.repeat(starts - (ends - lengths) * step, lengths)
    return index


def owners(splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """
    Row of every flat entry.

    >>> owners(np.array([0, 2, 2, 3])).tolist()
    [0, 0, 2]
    """
    return np.repeat(np.arange(len(splits) - 1), lengths_of(splits))


def sums(values: NDArray[Any], splits: NDArray[np.int64]) -> NDArray[np.int64]:
    """
    Sum of every row's entries.

    >>> sums(np.array([1, 2, 5]), np.array([0, 2, 2, 3])).tolist()
    [3, 0, 5]
    """
    return lengths_of(splits_of(values)[splits])


class Appended(NamedTuple):
    """How to append to ragged rows that keep their newest entries only."""

    splits: NDArray[np.int64]  # [n + 1] of the result
    old_kept: NDArray[np.bool_]  # [old entries]
    new_kept: NDArray[np.bool_]  # [new entries]
    is_new: NDArray[np.bool_]  # [result]: the place holds a new entry

    def apply(self, old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
        """The appended column."""
        result = np.empty(len(self.is_new), old.dtype)
        result[~self.is_new] = old[self.old_kept]
        result[self.is_new] = new[self.new_kept]
        return result


def append_newest(splits: NDArray[np.int64], added: NDArray[np.int64], limit: int) -> Appended:
    """
    Append `added[i]` entries to row i, which keeps its newest `limit`.

    New entries come row by row. Cost: one pass over the old entries, whatever the rows' number.

    >>> plan = append_newest(np.array([0, 3, 4]), np.array([2, 1]), 3)
    >>> plan.apply(np.array([1, 2, 3, 7]), np.array([4, 5, 8])).tolist(), plan.splits.tolist()
    ([3, 4, 5, 7, 8], [0, 3, 5])
    """
    had = lengths_of(splits)
    taken = np.minimum(added, limit)
    stay = np.minimum(had, limit - taken)
    result = splits_of(stay + taken)
    old_kept = np.ones(int(splits[-1]), np.bool_)
    old_kept[spans(splits[:-1], had - stay)] = False
    new_kept = np.ones(int(added.sum()), np.bool_)
    new_kept[spans(np.cumsum(added) - added, added - taken)] = False
    is_new = np.zeros(int(result[-1]), np.bool_)
    is_new[spans(result[:-1] + stay, taken)] = True
    return Appended(result, old_kept, new_kept, is_new)
