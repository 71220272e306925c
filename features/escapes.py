"""
Numbers that are mostly small, in few bytes each: those that do not fit follow in a list of theirs.

The largest short number marks one that does not fit.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.ragged import lengths_of, sums
from features.stored import Part

_WIDE: Final = {1: "u1", 3: "u4", 4: "u4", 6: "u8"}


class Widths(NamedTuple):
    """Bytes of a short number, and of one that does not fit."""

    short: int
    long: int


def parts_of(
    numbers: NDArray[np.int64], splits: NDArray[np.int64], widths: Widths
) -> tuple[Part, Part]:
    """
    Short numbers and long ones of each row. Negative ones are long, in two's complement.

    Raises:
        ValueError: a number does not even fit into a long one.
    """
    mark = (1 << 8 * widths.short) - 1
    lengths = lengths_of(splits)
    escapes = numbers.view(np.uint64) >= np.uint64(mark)
    short = numbers.astype(_WIDE[widths.short])
    some = numbers[escapes]
    if not len(some):
        return Part(short, lengths, widths.short), Part(some, np.zeros_like(lengths), widths.long)
    short[escapes] = mark
    most = 1 << 8 * widths.long - 1
    if not -most <= some.min() <= some.max() < most:
        raise ValueError(f"{some.min()} to {some.max()} do not fit into {widths.long} bytes")
    long = (some & (2 * most - 1)).astype(_WIDE[widths.long])
    return (
        Part(short, lengths, widths.short),
        Part(long, sums(escapes, splits), widths.long),
    )
