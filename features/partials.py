"""
Partials: what happened to one item in one partition of user-events, as tiles, and its stored form.

A partial is absolute: a repeat replaces its predecessor, readers add up the partitions'. Its stored
form, known only to this module, is an array of little-endian 64-bit words:

    0  checksum: xxh3-64 of everything after it
    1  magic and version
    2  fingerprint of the feature set
    3  number of tiles t
    4  newest event time, ms
    t  key | count << 32

One bucket more is kept than a user's row keeps: windows over items are closed (they leave out the
bucket of now), so the newest 24 closed hours are the 24 before the newest event's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features import tiles as tiling
from features.declare import RowPolicy
from features.ragged import spans, splits_of
from features.rows import sealed, unsealed
from features.tiles import Kept, Tiles, tiles_of_words, words_of_tiles

HEADER_WORDS: Final = 5
_MAGIC: Final = int.from_bytes(b"MSITEM", "big") << 16 | 1  # the last 16 bits are the version
_WORD: Final = np.dtype("<u8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partials:
    """Aggregates of n items over one partition."""

    newest_ms: NDArray[np.int64]  # [n] newest event time; 0: no events
    tiles: Tiles

    def __len__(self) -> int:
        return len(self.newest_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPartials:
    """Partials in the order of their stored values; `corrupt` are those that came out empty."""

    partials: Partials
    corrupt: tuple[int, ...]


def empty_partials(n: int) -> Partials:
    """Partials of n items that nothing has happened to."""
    nothing = np.empty(0, np.uint32)
    return Partials(
        newest_ms=np.zeros(n, np.int64), tiles=Tiles(np.zeros(n + 1, np.int64), nothing, nothing)
    )


def kept_for_items(policy: RowPolicy) -> Kept:
    """What a partial keeps under this policy."""
    return Kept(hours=policy.hour_tiles + 1, days=policy.day_tiles + 1)


def fold_partials(
    partials: Partials,
    item: NDArray[np.int64],
    event_type: NDArray[np.uint8],
    event_time_ms: NDArray[np.int64],
    policy: RowPolicy,
) -> Partials:
    """
    Count accepted events into the partials of their items.

    Args:
        item: [e] index of each event's item in `partials`; the events may be in any order.
    """
    newest = partials.newest_ms.copy()
    np.maximum.at(newest, item, event_time_ms)
    keys = tiling.tile_keys(event_type, event_time_ms)
    kept = kept_for_items(policy)
    return Partials(newest_ms=newest, tiles=tiling.add(partials.tiles, item, keys, newest, kept))


def encode_partials(partials: Partials, fingerprint: str) -> list[bytes]:
    """The stored form of each partial."""
    wide = np.diff(partials.tiles.splits)
    splits = splits_of(HEADER_WORDS + wide)
    words = np.empty(int(splits[-1]), _WORD)
    at = splits[:-1]
    words[at + 1] = _MAGIC
    words[at + 2] = int(fingerprint, 16)
    words[at + 3] = wide.view(np.uint64)
    words[at + 4] = partials.newest_ms.view(np.uint64)
    words[spans(at + HEADER_WORDS, wide)] = words_of_tiles(partials.tiles)
    return sealed(words, splits)


def decode_partials(values: Sequence[bytes | None], fingerprint: str) -> DecodedPartials:
    """
    Partials from their stored form. None gives an empty one; so does what is damaged or not ours.

    >>> decode_partials([None, b"rubbish"], "00" * 8).corrupt
    (1,)
    """
    words, splits, corrupt = unsealed(values, HEADER_WORDS, (_MAGIC, int(fingerprint, 16)), _sizes)
    wide = np.maximum(np.diff(splits) - HEADER_WORDS, 0)
    there = np.flatnonzero(np.diff(splits))
    newest = np.zeros(len(values), np.int64)
    newest[there] = words[splits[there] + 4].view(np.int64)
    found = words[spans(splits[:-1] + HEADER_WORDS, wide)]
    return DecodedPartials(
        partials=Partials(newest_ms=newest, tiles=tiles_of_words(splits_of(wide), found)),
        corrupt=corrupt,
    )


def _sizes(counts: NDArray[np.uint64]) -> NDArray[np.int64]:
    # A count past any real one must not overflow; the length then differs, and that is the point.
    return HEADER_WORDS + np.minimum(counts, np.uint64(2**32)).astype(np.int64)
