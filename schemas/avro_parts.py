"""
Parts of many Avro records: each knows how many bytes every record has of it, and puts them.

So all records are written into one buffer, part by part, and cut apart (`laid`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.avro_bytes import (
    Bytes,
    Places,
    measure_arrays,
    measure_longs,
    measure_texts,
    put_arrays,
    put_floats,
    put_longs,
    put_same,
    put_texts,
)

_FLOAT_BYTES: Final = 4


class Part(Protocol):
    """What n records have of one field."""

    def __len__(self) -> int:
        """How many records."""

    def measure(self, sizes: Places) -> None:
        """Add to each record's size in bytes, [n]."""

    def put(self, out: Bytes, at: Places) -> None:
        """Write each record's bytes from its place on, [n], and move that behind them."""


def laid(part: Part) -> list[bytes]:
    """The bytes of each record."""
    sizes = np.zeros(len(part), np.int64)
    part.measure(sizes)
    ends = np.cumsum(sizes)
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    part.put(out, ends - sizes)
    whole = out.tobytes()
    return [whole[start:stop] for start, stop in pairwise([0, *ends.tolist()])]


class Longs:
    """Longs in each record, [n, v]."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = np.asarray(values, np.int64)

    def __len__(self) -> int:
        return len(self._values)

    def measure(self, sizes: Places) -> None:
        measure_longs(self._values, sizes)

    def put(self, out: Bytes, at: Places) -> None:
        put_longs(self._values, out, at)


class Floats:
    """Floats in each record, [n, v]."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = np.asarray(values, np.float32)

    def __len__(self) -> int:
        return len(self._values)

    def measure(self, sizes: Places) -> None:
        sizes += _FLOAT_BYTES * self._values.shape[1]

    def put(self, out: Bytes, at: Places) -> None:
        put_floats(self._values, out, at)


class Repeated:
    """The same bytes in all of n records."""

    def __init__(self, piece: bytes, n: int) -> None:
        self._piece, self._n = np.frombuffer(piece, np.uint8), n

    def __len__(self) -> int:
        return self._n

    def measure(self, sizes: Places) -> None:
        sizes += len(self._piece)

    def put(self, out: Bytes, at: Places) -> None:
        put_same(self._piece, out, at)


class Texts:
    """A text or bytes in each record."""

    def __init__(self, content: Bytes, splits: NDArray[np.int64]) -> None:
        self._content, self._splits = content, _checked(splits, len(content))

    def __len__(self) -> int:
        return len(self._splits) - 1

    def measure(self, sizes: Places) -> None:
        measure_texts(self._splits, sizes)

    def put(self, out: Bytes, at: Places) -> None:
        put_texts(self._content, self._splits, out, at)


class Arrays:
    """In each record an array of some of the values."""

    def __init__(self, splits: NDArray[np.int64], values: Part) -> None:
        self._splits, self._values = _checked(splits, len(values)), values
        self._each = np.zeros(len(values), np.int64)  # bytes, once measured

    def __len__(self) -> int:
        return len(self._splits) - 1

    def measure(self, sizes: Places) -> None:
        self._values.measure(self._each)
        measure_arrays(self._splits, self._each, sizes)

    def put(self, out: Bytes, at: Places) -> None:
        places = np.empty_like(self._each)
        put_arrays(self._splits, self._each, places, out, at)
        self._values.put(out, places)


class Optional:
    """Null in some records, in the others a part that has those alone."""

    def __init__(
        self, present: NDArray[np.bool_], given: Part, branches: tuple[bytes, bytes]
    ) -> None:
        self._present, self._absent, self._given = present, ~present, given
        missing = len(present) - len(given)
        self._null = Repeated(branches[0], missing)
        self._branch = Repeated(branches[1], len(given))

    def __len__(self) -> int:
        return len(self._present)

    def measure(self, sizes: Places) -> None:
        for chosen, parts in self._halves():
            some = sizes[chosen]
            for part in parts:
                part.measure(some)
            sizes[chosen] = some

    def put(self, out: Bytes, at: Places) -> None:
        for chosen, parts in self._halves():
            some = at[chosen]
            for part in parts:
                part.put(out, some)
            at[chosen] = some

    def _halves(self) -> tuple[tuple[NDArray[np.bool_], tuple[Part, ...]], ...]:
        return (self._absent, (self._null,)), (self._present, (self._branch, self._given))


class Record:
    """A part after the other."""

    def __init__(self, parts: Sequence[Part], n: int) -> None:
        self._parts, self._n = parts, n

    def __len__(self) -> int:
        return self._n

    def measure(self, sizes: Places) -> None:
        for part in self._parts:
            part.measure(sizes)

    def put(self, out: Bytes, at: Places) -> None:
        for part in self._parts:
            part.put(out, at)


def _checked(splits: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """
    Raises:
        ValueError: the splits are not those of so many values.
    """
    if splits[0] != 0 or splits[-1] != count or (splits[1:] < splits[:-1]).any():
        raise ValueError(f"{count} values cannot be split at {splits}")
    return np.asarray(splits, np.int64)
