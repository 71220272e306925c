"""
Avro's binary encoding (specification 1.12) of many records, a field of all of them at a time.

First each field adds its size to every record's, then it is put where the record has got to: `at`
holds the place of each record's next byte, and moves on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, filled, given

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]

_SEVEN = np.uint64(7)  # bits of a varint in each byte; the high bit is on all but the last
_MORE = np.uint64(128)


@compiled("int64")
def _zigzag(value: Any) -> Any:
    return np.uint64((value << 1) ^ (value >> 63))


@compiled("int64")
def long_size(value: Any) -> Any:
    """Bytes of a long: counted without a branch, since no one knows which way it would go."""
    zigzag = _zigzag(value)
    size = 1
    for more in range(1, 10):
        size += zigzag >= np.uint64(1) << np.uint64(7 * more)
    return size


@compiled("int64", filled("uint8"), "int64")
def put_long(value: Any, out: Bytes, place: Any) -> Any:
    """The place behind it."""
    zigzag = _zigzag(value)
    while zigzag >= _MORE:
        out[place] = np.uint8(zigzag | _MORE)
        zigzag >>= _SEVEN
        place += 1
    out[place] = np.uint8(zigzag)
    return place + 1


@compiled(given("int64", 2), filled("int64"))
def measure_longs(values: NDArray[np.int64], sizes: Places) -> None:
    """Longs of every record, [n, v]."""
    for i in range(values.shape[0]):
        size = 0
        for j in range(values.shape[1]):
            size += long_size(values[i, j])
        sizes[i] += size


@compiled(given("int64", 2), filled("uint8"), filled("int64"))
def put_longs(values: NDArray[np.int64], out: Bytes, at: Places) -> None:
    """[n, v] zigzag varints."""
    for i in range(values.shape[0]):
        place = at[i]
        for j in range(values.shape[1]):
            place = put_long(values[i, j], out, place)
        at[i] = place


@compiled(given("float32", 2), filled("uint8"), filled("int64"))
def put_floats(values: NDArray[np.float32], out: Bytes, at: Places) -> None:
    """[n, v] IEEE 754 singles, little-endian."""
    for i in range(values.shape[0]):
        place = at[i]
        for j in range(values.shape[1]):
            bits = np.float32(values[i, j]).view(np.uint32)
            for _ in range(4):
                out[place] = np.uint8(bits)
                bits >>= np.uint32(8)
                place += 1
        at[i] = place


@compiled(given("uint8"), filled("uint8"), filled("int64"))
def put_same(piece: Bytes, out: Bytes, at: Places) -> None:
    """The same bytes in every record."""
    for i in range(len(at)):
        place = at[i]
        for j in range(len(piece)):
            out[place + j] = piece[j]
        at[i] = place + len(piece)


@compiled(given("int64"), filled("int64"))
def measure_texts(splits: Places, sizes: Places) -> None:
    """Texts or bytes of every record, [n + 1] splits of their content."""
    for i in range(len(sizes)):
        length = splits[i + 1] - splits[i]
        sizes[i] += long_size(length) + length


@compiled(given("uint8"), given("int64"), filled("uint8"), filled("int64"))
def put_texts(content: Bytes, splits: Places, out: Bytes, at: Places) -> None:
    """A length and the content that each record has of it."""
    for i in range(len(at)):
        place = put_long(splits[i + 1] - splits[i], out, at[i])
        for j in range(splits[i], splits[i + 1]):
            out[place] = content[j]
            place += 1
        at[i] = place


@compiled(given("int64"), given("int64"), filled("int64"))
def measure_arrays(splits: Places, each: Places, sizes: Places) -> None:
    """Arrays of every record, [n + 1] splits of values that take `each` so many bytes."""
    for i in range(len(sizes)):
        size = 1
        if splits[i + 1] > splits[i]:
            size += long_size(splits[i + 1] - splits[i])
        for j in range(splits[i], splits[i + 1]):
            size += each[j]
        sizes[i] += size


@compiled(given("int64"), given("int64"), filled("int64"), filled("uint8"), filled("int64"))
def put_arrays(splits: Places, each: Places, places: Places, out: Bytes, at: Places) -> None:
    """One block of values, unless there are none, and an empty one; fills in the values' places."""
    for i in range(len(at)):
        place = at[i]
        if splits[i + 1] > splits[i]:
            place = put_long(splits[i + 1] - splits[i], out, place)
        for j in range(splits[i], splits[i + 1]):
            places[j] = place
            place += each[j]
        out[place] = 0
        at[i] = place + 1
