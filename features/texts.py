"""
Many short texts in one growing array of bytes: no object a text.

One thread adds, any number read: bytes and ends are only ever appended, behind the published
length, and what grows is a new array. So a reader finds every text that it was told of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from features.declare import Array
from features.ragged import splits_of
from schemas.column_writer import Encoded
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
        return self.encoded(places).texts()

    def encoded(self, places: NDArray[np.int64]) -> Encoded:
        """
        The texts at these places in UTF-8, [n].

        Raises:
            IndexError: there is no text at one of them.
        """
        if len(places) and not 0 <= places.min() <= places.max() < self._count:
            wrong = places[(places < 0) | (places >= self._count)][0]
            raise IndexError(f"there is no text {wrong} among {self._count}")
        ends = self._ends
        starts, lengths = ends[places], ends[places + 1] - ends[places]
        splits = splits_of(lengths)
        gathered = np.empty(int(splits[-1]), np.uint8)
        _gather(self._bytes, starts, lengths, gathered)
        return Encoded(gathered, splits)

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


class Chosen:
    """
    The texts at some places, made when one of them is looked at.

    >>> texts = Texts()
    >>> texts.extend(["film", "book", "song"])
    >>> list(Chosen(texts, np.array([2, 0, 1])).part(1, 3))
    ['film', 'book']
    """

    def __init__(self, texts: Texts, places: NDArray[np.int64]) -> None:
        self.texts = texts
        self.places = places

    def part(self, start: int, stop: int) -> ChosenTexts:
        """Some of them, by themselves."""
        return ChosenTexts(self, start, stop)

    @cached_property
    def made(self) -> list[str]:
        """[n]"""
        return self.texts.at(self.places)


@dataclass(frozen=True, slots=True)
class ChosenTexts(Sequence[str]):
    """A sequence of texts, of which so far only the places may be known."""

    of: Chosen
    start: int
    stop: int

    @property
    def places(self) -> NDArray[np.int64]:
        """[n]"""
        return self.of.places[self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.of.made[self.start : self.stop][index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.of.made[self.start : self.stop])


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
