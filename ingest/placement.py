"""
Placement: which partition a key belongs to.

Kafka's own murmur2 partitioner (org.apache.kafka.common.utils.Utils.murmur2, seed 0x9747b28c):
`toPositive(murmur2(key)) % partitions`. librdkafka names it `murmur2_random`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_M = np.uint32(0x5BD1E995)
_SEED = np.uint32(0x9747B28C)


def partition_of(key: bytes, partitions: int) -> int:
    """
    Partition of one key.

    >>> partition_of(b"21", 1000)   # Utils.murmur2("21") = -973932308
    340
    """
    return int(partitions_of([key], partitions)[0])


def partitions_of(keys: Sequence[bytes], partitions: int) -> NDArray[np.int32]:
    """Partition of each key, [n] int32. Vectorised: one pass per 4 bytes of the longest key."""
    if partitions < 1:
        raise ValueError(f"partitions must be at least 1, got {partitions}")
    return ((murmur2(keys) & np.uint32(0x7FFFFFFF)) % np.uint32(partitions)).astype(np.int32)


def murmur2(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """
    Kafka's murmur2 of each key, [n] uint32 (Java prints the same bits signed).

    >>> [int(h) for h in murmur2([b"21", b"foobar", b"a-little-bit-long-string"]).astype("i4")]
    [-973932308, -790332482, -985981536]
    """
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    ends = np.cumsum(lengths)
    # Three bytes of padding let every read of 4 bytes stay inside the buffer.
    data = np.frombuffer(b"".join(keys) + b"\0\0\0", np.uint8)
    starts = ends - lengths
    h = _SEED ^ lengths.astype(np.uint32)
    longest = int(lengths.max(initial=0))
    for i in range(longest // 4):
        live = np.flatnonzero(lengths >= 4 * i + 4)
        k = _word(data, starts[live] + 4 * i) * _M
        k ^= k >> np.uint32(24)
        h[live] = (h[live] * _M) ^ (k * _M)
    tail = lengths % 4
    live = np.flatnonzero(tail)
    mask = ((np.uint64(1) << (tail[live] * 8).astype(np.uint64)) - np.uint64(1)).astype(np.uint32)
    last = _word(data, (ends - tail)[live]) & mask
    h[live] = (h[live] ^ last) * _M
    h ^= h >> np.uint32(13)
    h *= _M
    h ^= h >> np.uint32(15)
    return h


def _word(data: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Little-endian 32-bit words that start at the byte positions `at`."""
    word = data[at].astype(np.uint32)
    for shift in (1, 2, 3):
        word |= data[at + shift].astype(np.uint32) << np.uint32(8 * shift)
    return word
