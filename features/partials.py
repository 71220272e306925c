"""
Partials: what happened to one item in one partition of user-events, as tiles, and its stored form.

A partial is absolute: a repeat replaces its predecessor, readers add up the partitions'. Its stored
form, known only to this module, is a checksum (see `features.stored`), the tiles of each span in a
word, the newest event time in 6 bytes, and the tiles (see `features.stored_tiles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features import stored_tiles
from features import tiles as tiling
from features.declare import RowPolicy
from features.ragged import splits_of
from features.stored import SEAL_BYTES, Part, Unsealed, laid_out, sealed
from features.tiles import Kept, Tiles

VERSION: Final = 2  # of the stored form; partials of another one are corrupt, and rebuilt
_MAGIC: Final = int.from_bytes(b"MSITEM", "big") << 16 | VERSION
_TIME_BYTES: Final = 6
_LEAST_BYTES: Final = SEAL_BYTES + 8 + _TIME_BYTES


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
    kept = Kept(hours=policy.hour_tiles, days=policy.day_tiles)
    return Partials(newest_ms=newest, tiles=tiling.add(partials.tiles, item, keys, newest, kept))


def encode_partials(partials: Partials, fingerprint: str) -> list[bytes]:
    """The stored form of each partial."""
    lengths = stored_tiles.packed_lengths(partials.tiles)
    laid = laid_out(
        len(partials),
        [
            Part(lengths, None, 8),
            Part(partials.newest_ms.view(np.uint64), None, _TIME_BYTES),
            *stored_tiles.parts_of(partials.tiles, lengths, partials.newest_ms),
        ],
    )
    return sealed(laid, _kind(fingerprint))


def decode_partials(values: Sequence[bytes | None], fingerprint: str) -> DecodedPartials:
    """
    Partials from their stored form. None gives an empty one; so does what is damaged or not ours.

    >>> decode_partials([None, b"rubbish"], "00" * 8).corrupt
    (1,)
    """
    found = Unsealed(values, _kind(fingerprint), _LEAST_BYTES)
    lengths, newest_ms = found.one("u8", 8), found.one("u8", _TIME_BYTES).view(np.int64)
    tiles = stored_tiles.read(found, lengths, newest_ms)
    if len(found.there) < len(values):
        tiles, newest_ms = _spread(tiles, newest_ms, found.there, len(values))
    return DecodedPartials(
        partials=Partials(newest_ms=newest_ms, tiles=tiles), corrupt=found.corrupt
    )


def _kind(fingerprint: str) -> int:
    return int(fingerprint, 16) ^ _MAGIC


def _spread(
    tiles: Tiles, newest_ms: NDArray[np.int64], there: NDArray[np.int64], n: int
) -> tuple[Tiles, NDArray[np.int64]]:
    """Those of n items, of which only those at `there` (ascending) have any."""
    lengths, newest = np.zeros((2, n), np.int64)
    lengths[there], newest[there] = np.diff(tiles.splits), newest_ms
    return Tiles(splits_of(lengths), tiles.key, tiles.count), newest
