"""
Many short texts in one growing array of bytes: no object a text.

One thread adds, any number read: bytes and ends are only ever appended, behind the published
length, and what grows is a new array. So a reader finds every text that it was told of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from features.declare import Array
from schemas.compiled import compiled, filled, given


class Texts:
    """
    A list of texts that only grows.

    >>> texts = Texts()
    >>> texts.extend(["film", "book"])
    >>> list(texts), texts[1], texts.at(np.array([1, 1, 0])), len(texts)
    (['film', 'book'], 'book', ['book', 'book', 'film'], 2)
    """

    def __init__(self) -> None:
        self._bytes = np.empty(1024, np.uint8)
        self._ends = np.zeros(64, np.int64)  # [i + 1] where text i ends
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self._count:
            raise IndexError(f"there is no text {index} among {self._count}")
        ends = self._ends
        return self._bytes[ends[index] : ends[index + 1]].tobytes().decode()

    def at(self, places: NDArray[np.int64]) -> list[str]:
        """
        The texts at these places, [n]; for many at once.

        Raises:
            IndexError: there is no text at one of them.
        """
        if len(places) and not 0 <= places.min() <= places.max() < self._count:
            wrong = places[(places < 0) | (places >= self._count)][0]
            raise IndexError(f"there is no text {wrong} among {self._count}")
        ends = self._ends
        starts, lengths = ends[places], ends[places + 1] - ends[places]
        stops = np.cumsum(lengths)
        gathered = np.empty(int(stops[-1]) if len(stops) else 0, np.uint8)
        _gather(self._bytes, starts, lengths, gathered)
        content = gathered.tobytes()
        cuts = list(pairwise([0, *stops.tolist()]))
        text = content.decode()
        if len(text) == len(content):  # ASCII: a byte is a character
            return [text[start:stop] for start, stop in cuts]
        return [content[start:stop].decode() for start, stop in cuts]

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(self._count))

    def extend(self, texts: Sequence[str]) -> None:
        """Add these behind the others."""
        content = [text.encode() for text in texts]
        start, count = int(self._ends[self._count]), self._count + len(content)
        ends = start + np.cumsum([len(one) for one in content], dtype=np.int64)
        end = int(ends[-1]) if len(ends) else start
        if end > len(self._bytes):
            self._bytes = _grown(self._bytes, end, start)
        if count + 1 > len(self._ends):
            self._ends = _grown(self._ends, count + 1, self._count + 1)
        self._bytes[start:end] = np.frombuffer(b"".join(content), np.uint8)
        self._ends[self._count + 1 : count + 1] = ends
        self._count = count


@compiled(given("uint8"), given("int64"), given("int64"), filled("uint8"))
def _gather(
    content: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    gathered: NDArray[np.uint8],
) -> None:
    at = 0
    for i in range(len(starts)):
        for j in range(starts[i], starts[i] + lengths[i]):
            gathered[at] = content[j]
            at += 1


def _grown(array: Array, size: int, used: int) -> Array:
    """A copy of what is used, with room for `size` and as much again as there was."""
    larger = np.empty(max(size, 2 * len(array)), array.dtype)
    larger[:used] = array[:used]
    return larger
