"""
User rows: the columns that the fold and the assembly work on, and their stored form.

A batch of rows is columns: fixed fields [n] and ragged arrays (`splits` [n + 1] into flat values).
The stored form is known only to `encode` and `decode` in this module.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """
    n user rows as columns. Row i owns flat entries `splits[i]:splits[i + 1]` of a ragged part.

    history: the last interactions in log order, oldest first.
    ring:    hashes of the last event ids seen (and origins of erasures), oldest first.
    tiles:   event counts by (span, bucket, event type), sorted by that key; see `features.tiles`.
    profile: the static attributes that the catalog declares, sorted by name hash.
    """

    first_seen_ms: NDArray[np.int64]  # [n] event time of the first event; 0: the row is empty
    last_seen_ms: NDArray[np.int64]  # [n] newest event time
    history_splits: NDArray[np.int64]  # [n + 1]
    history_item: NDArray[np.uint64]  # item hash
    history_time_ms: NDArray[np.int64]
    history_type: NDArray[np.uint8]
    history_value: NDArray[np.float32]  # NaN: the event had none
    ring_splits: NDArray[np.int64]  # [n + 1]
    ring: NDArray[np.uint64]
    tile_splits: NDArray[np.int64]  # [n + 1]
    tile_key: NDArray[np.uint32]  # packed (span, bucket, event type)
    tile_count: NDArray[np.uint32]
    profile_splits: NDArray[np.int64]  # [n + 1]
    profile_name: NDArray[np.uint64]  # hash of the attribute's name
    profile_value: NDArray[np.uint64]  # hash of the attribute's value

    def __len__(self) -> int:
        return len(self.first_seen_ms)
