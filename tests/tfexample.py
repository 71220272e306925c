"""TFRecord files of tf.train.Example, read by hand: no TensorFlow, none of our writer's code."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_examples(path: Path) -> list[dict[str, list[Any]]]:
    """Every record of a gzip TFRecord file: feature name -> its values."""
    data = gzip.decompress(path.read_bytes())
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        found.append(_example(data[at + 12 : at + 12 + size]))
        at += 12 + size + 4
    return found


def _example(data: bytes) -> dict[str, list[Any]]:
    found = {}
    for _, features in _fields(data):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            found[parts[1].decode()] = _values(parts[2])
    return found


def _values(feature: bytes) -> list[Any]:
    ((kind, listed),) = _fields(feature)
    values = [value for _, value in _fields(listed)]
    if kind == 1:
        return values
    packed = b"".join(values)
    if kind == 2:
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))
    found, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        found.append(value - (1 << 64) if value >> 63 else value)
    return found


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        assert tag & 7 == 2, "all fields of an Example are length-delimited"
        size, at = _varint(data, at)
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
