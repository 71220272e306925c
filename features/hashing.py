"""
The one 64-bit hash of ids: xxHash64, seed 0, of the UTF-8 bytes (https://xxhash.com, stable spec).

0 is kept for "none": the id that hashes to 0 (1 in 2**64) is taken as 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray


def hash_id(text: str) -> int:
    """
    Hash of one id, in [1, 2**64).

    >>> hash_id("movie-1") == int(hash_ids(["movie-1"])[0])
    True
    """
    return hash_bytes(text.encode())


def hash_bytes(text: bytes | memoryview) -> int:
    """Hash of one id in UTF-8."""
    return xxhash.xxh64_intdigest(text) or 1


def hash_ids(texts: Sequence[str | None]) -> NDArray[np.uint64]:
    """Hash of each id, [n] uint64; 0 where there is none."""
    digest = xxhash.xxh64_intdigest
    found: Iterable[int] = (0 if text is None else digest(text.encode()) or 1 for text in texts)
    return np.fromiter(found, np.uint64, len(texts))


def salted(hashes: NDArray[np.uint64], salt: str) -> NDArray[np.uint64]:
    """
    Independent 64-bit hashes of hashes, one family per salt (splitmix64 finaliser, Steele 2014).

    Partition, drift halves, rollout and each experiment take their own salt, so that a user's
    place in one says nothing about the place in another.
    """
    h = hashes ^ np.uint64(hash_id(salt))
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))
