"""
Calls of PredictionService.Predict in their bytes: where the tensors of a message are, and their
values (Protocol Buffers, Encoding; TensorFlow's tensor.proto, TensorFlow Serving's predict.proto).

Messages come from anywhere, so no byte is looked at before it is known to be there.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import compiled, filled, given

Bytes = NDArray[np.uint8]
Longs = NDArray[np.int64]

MOST_VARINT: Final = 10  # bytes
# Columns of a signature's lines, one an input: its name in all of them, its DataType, the tag of
# its packed values, bytes of a number, and its axes among all.
NAME, NAME_STOP, TYPE, TAG, BYTES, AXIS, AXIS_STOP = range(7)
# Columns of a message's table, one line an input: where its values are, how, and their bytes when
# they are decoded.
START, STOP, _FORM, SIZE = range(4)
_ABSENT, _RAW, _VARINTS = range(3)
_UNKNOWN = -1  # bytes of a tensor without shape
_FLOAT = 1  # DataType
# Tags: of an input, of its name and tensor; of type, shape and content of a tensor; of an axis, and
# of its size.
_INPUT, _KEY, _VALUE = 2 << 3 | 2, 1 << 3 | 2, 2 << 3 | 2
_DTYPE, _SHAPE, _CONTENT = 1 << 3, 2 << 3 | 2, 4 << 3 | 2
_DIM, _DIM_SIZE = 2 << 3 | 2, 1 << 3
_MOST = 1 << 31  # values of a tensor: so their bytes cannot overflow
_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


@compiled(given("uint8"), "int64", "int64")
def _hash(text: Bytes, start: Any, stop: Any) -> Any:
    """FNV-1a (Fowler, Noll and Vo), 64 bits."""
    hashed = _BASIS
    for at in range(start, stop):
        hashed = (hashed ^ np.uint64(text[at])) * _PRIME
    return hashed


@compiled(given("uint8"), given("int64", 2), filled("int64"))
def name_slots(text: Bytes, lines: Longs, slots: Longs) -> None:
    """Put each input, counted from 1, into a hash table of their names."""
    mask = np.uint64(len(slots) - 1)
    for i in range(len(lines)):
        slot = _hash(text, lines[i, NAME], lines[i, NAME_STOP]) & mask
        while slots[slot]:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = i + 1


@compiled(given("uint8"), "int64", "int64", given("uint8"), given("int64"), given("int64", 2))
def _named(data: Bytes, start: Any, stop: Any, text: Bytes, slots: Longs, lines: Longs) -> Any:
    """The input of that name; -1: there is none."""
    mask = np.uint64(len(slots) - 1)
    slot = _hash(data, start, stop) & mask
    while slots[slot]:
        i = slots[slot] - 1
        first = lines[i, NAME]
        if lines[i, NAME_STOP] - first == stop - start:
            same = True
            for j in range(stop - start):
                same &= data[start + j] == text[first + j]
            if same:
                return i
        slot = (slot + np.uint64(1)) & mask
    return -1


@compiled(given("uint8"), "int64", "int64")
def _varint(data: Bytes, at: Any, stop: Any) -> Any:
    """A number of 63 bits, and the place behind it; -1 and -1: there is none before `stop`."""
    value, shift = np.int64(0), np.int64(0)
    while at < stop and shift < 63:
        byte = np.int64(data[at])
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    return np.int64(-1), np.int64(-1)


@compiled(given("uint8"), "int64", "int64")
def _count(data: Bytes, at: Any, stop: Any) -> Any:
    """How many varints fill these bytes; -1: they do not, or one is too long."""
    count, length = 0, 0
    for i in range(at, stop):
        length += 1
        if length > MOST_VARINT:
            return -1
        if data[i] < 128:
            count += 1
            length = 0
    return -1 if length else count


@compiled(given("uint8"), "int64", "int64", "int64")
def _piece(data: Bytes, at: Any, stop: Any, tag: Any) -> Any:
    """Where what this field holds begins and ends; -1 and -1: it is not such a field."""
    if at < stop and data[at] == tag:
        length, at = _varint(data, at + 1, stop)
        if 0 <= length <= stop - at:
            return at, at + length
    return np.int64(-1), np.int64(-1)


@compiled(given("uint8"), "int64", "int64", filled("int64"), "int64", "int64")
def _shape(data: Bytes, at: Any, stop: Any, sizes: Longs, axis: Any, last: Any) -> Any:
    """Fill in the sizes of a tensor's axes; how many values it has, -1: it is not plain."""
    values = np.int64(1)
    while at < stop and axis < last:
        start, at = _piece(data, at, stop, _DIM)
        size = np.int64(0)
        if start < at:  # 0 is not written
            size, end = _varint(data, start + 1, at)
            if data[start] != _DIM_SIZE or end != at:
                return -1
        if at < 0 or size > _MOST or (sizes[axis] >= 0 and sizes[axis] != size):
            return -1
        sizes[axis] = size
        axis += 1
        values *= size
        if values > _MOST:
            return -1
    return values if at == stop and axis == last else -1


@compiled(
    given("uint8"), "int64", "int64", "int64", given("int64"), filled("int64"), filled("int64")
)
def _part(data: Bytes, tag: Any, at: Any, stop: Any, line: Longs, row: Longs, sizes: Longs) -> Any:
    """Take a part of a tensor; whether it is one that may come, and comes once."""
    if tag == _SHAPE and row[SIZE] == _UNKNOWN:
        values = _shape(data, at, stop, sizes, line[AXIS], line[AXIS_STOP])
        row[SIZE] = values * line[BYTES]
        return values >= 0
    if (tag == _CONTENT or tag == line[TAG]) and row[_FORM] == _ABSENT:
        row[START], row[STOP] = at, stop
        row[_FORM] = _RAW if tag == _CONTENT or line[TYPE] == _FLOAT else _VARINTS
        return True
    return False


@compiled(given("uint8"), "int64", "int64", given("int64"), filled("int64"), filled("int64"))
def _tensor(data: Bytes, at: Any, stop: Any, line: Longs, row: Longs, sizes: Longs) -> Any:
    """Fill in where a tensor's values are; how many it has, -1: it is not plain."""
    row[SIZE] = _UNKNOWN
    types = 0
    while at < stop:
        tag = np.int64(data[at])
        number, at = _varint(data, at + 1, stop)
        if at < 0:
            return -1
        if tag == _DTYPE:
            types += 1 if number == line[TYPE] else 2
        elif number > stop - at or not _part(data, tag, at, at + number, line, row, sizes):
            return -1
        else:
            at += number
    if row[SIZE] == _UNKNOWN and line[AXIS] == line[AXIS_STOP]:
        row[SIZE] = line[BYTES]  # a shape without axes need not be there
    if types != 1 or row[SIZE] < 0:
        return -1
    values, packed = row[SIZE] // line[BYTES], row[STOP] - row[START]
    if row[_FORM] == _VARINTS:
        return values if _count(data, row[START], row[STOP]) == values else -1
    row[_FORM] = _RAW  # of no values, nothing is written
    return values if packed == row[SIZE] else -1


@compiled(given("uint8"), "int64", "int64", given("uint8"), given("int64"), given("int64", 2))
def _entry(data: Bytes, at: Any, stop: Any, text: Bytes, slots: Longs, lines: Longs) -> Any:
    """Which input these bytes are, and where its tensor begins; -1 and -1: they are none."""
    name, name_stop = _piece(data, at, stop, _KEY)
    start, end = _piece(data, name_stop, stop, _VALUE)
    if name_stop < 0 or end != stop:
        return np.int64(-1), np.int64(-1)
    return _named(data, name, name_stop, text, slots, lines), start


@compiled(
    given("uint8"),
    given("uint8"),
    given("int64"),
    given("int64", 2),
    filled("int64", 2),
    filled("int64"),
)
def scan(data: Bytes, text: Bytes, slots: Longs, lines: Longs, table: Longs, sizes: Longs) -> Any:
    """Fill in the table and the sizes; how many values all tensors have, -1: it is not plain."""
    at, found, total = np.int64(0), 0, np.int64(0)
    while at < len(data):
        start, at = _piece(data, at, len(data), _INPUT)
        if at < 0:
            return -1
        i, start = _entry(data, start, at, text, slots, lines)
        if i < 0 or table[i, _FORM]:
            return -1
        values = _tensor(data, start, at, lines[i], table[i], sizes)
        if values < 0:
            return -1
        total += values
        found += 1
    return total if found == len(lines) else -1


@compiled(given("uint8"), "int64", filled("uint8"))
def _unpack(packed: Bytes, size: Any, out: Bytes) -> None:
    """Varints as integers of so many bytes, little-endian; what is beyond them is cut off."""
    place, value, shift = 0, np.uint64(0), np.uint64(0)
    for byte in packed:
        value |= np.uint64(byte & 127) << shift
        shift += np.uint64(7)
        if byte < 128:
            for _ in range(size):
                out[place] = np.uint8(value)
                value >>= np.uint64(8)
                place += 1
            value, shift = np.uint64(0), np.uint64(0)


@compiled(given("uint8"), given("int64", 3), given("int64", 2), given("int64"), filled("uint8"))
def stack(data: Bytes, tables: Longs, lines: Longs, places: Longs, out: Bytes) -> None:
    """Put the values of each input, of one call after the other, from its place on."""
    for i in range(len(lines)):
        place = places[i]
        for call in range(len(tables)):
            start, stop = tables[call, i, START], tables[call, i, STOP]
            if tables[call, i, _FORM] == _RAW:
                for j in range(stop - start):
                    out[place + j] = data[start + j]
            elif tables[call, i, _FORM] == _VARINTS:
                _unpack(data[start:stop], lines[i, BYTES], out[place:])
            place += tables[call, i, SIZE]


@compiled(given("int64"), filled("uint8"))
def put_varints(values: Longs, out: Bytes) -> Any:
    """How many bytes they take."""
    place = 0
    for value in values:
        left = np.uint64(value)
        while left > np.uint64(127):
            out[place] = np.uint8(left) | np.uint8(128)
            left >>= np.uint64(7)
            place += 1
        out[place] = np.uint8(left)
        place += 1
    return place
