"""
User rows: the columns that the fold and the assembly work on, and their stored form.

A batch of rows is columns: fixed fields [n] and ragged arrays (`splits` [n + 1] into flat values).
The stored form is known only to `encode` and `decode` in this module. A row of h interactions, r
ids, t tiles and p attributes is, in this order and without gaps:

    8    checksum, version, fingerprint; see `features.stored`
    8    h, r, p and the tiles of each span, 10 + 10 + 8 + 33 bits
    6    last seen, ms
    3 h+ first seen and history; see `features.stored_history`
    t+   tiles; see `features.stored_tiles`
    4 r  event ids
    8 p  name hashes          8 p  value hashes

It is canonical: equal rows give equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features import stored_history, stored_tiles
from features.ragged import lengths_of, spans, splits_of
from features.stored import SEAL_BYTES, Part, Unsealed, laid_out, sealed
from features.stored_history import History
from features.tiles import Tiles

VERSION: Final = 2  # of the stored form; rows of another one are corrupt, and rebuilt
_MAGIC: Final = int.from_bytes(b"MSROW\0", "big") << 16 | VERSION
_TIME_BYTES: Final = 6
_LEAST_BYTES: Final = SEAL_BYTES + 8 + _TIME_BYTES

# Of history, ring and profile, above the tiles' lengths.
_LENGTH_BITS: Final = np.array([10, 10, 8], np.uint64)
_LENGTH_SHIFTS: Final = stored_tiles.LENGTH_BITS + np.array([0, 10, 20], np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """
    n user rows as columns. Row i owns flat entries `splits[i]:splits[i + 1]` of a ragged part.

    history: the last interactions in log order, oldest first.
    ring:    the last event ids seen (and origins of erasures), oldest first; see `ring_ids`.
    tiles:   event counts by (span, bucket, event type), sorted by that key; see `features.tiles`.
    profile: the static attributes that the catalog declares, sorted by name hash.
    """

    first_seen_ms: NDArray[np.int64]  # [n] smallest event time; 0: the row is empty
    last_seen_ms: NDArray[np.int64]  # [n] newest event time
    history_splits: NDArray[np.int64]  # [n + 1]
    history_item: NDArray[np.uint64]  # item hash
    history_time_ms: NDArray[np.int64]
    history_type: NDArray[np.uint8]
    history_value: NDArray[np.float32]  # NaN: the event had none
    ring_splits: NDArray[np.int64]  # [n + 1]
    ring: NDArray[np.uint32]
    tile_splits: NDArray[np.int64]  # [n + 1]
    tile_key: NDArray[np.uint32]  # packed (span, bucket, event type)
    tile_count: NDArray[np.uint32]
    profile_splits: NDArray[np.int64]  # [n + 1]
    profile_name: NDArray[np.uint64]  # hash of the attribute's name
    profile_value: NDArray[np.uint64]  # hash of the attribute's value

    def __len__(self) -> int:
        return len(self.first_seen_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedRows:
    """Rows in the order of their stored values; `corrupt` are those that came out empty."""

    rows: Rows
    corrupt: tuple[int, ...]  # damaged, of another feature set or of another version


_SCALARS: Final = ("first_seen_ms", "last_seen_ms")
_RAGGED: Final = {
    "history_splits": ("history_item", "history_time_ms", "history_type", "history_value"),
    "ring_splits": ("ring",),
    "tile_splits": ("tile_key", "tile_count"),
    "profile_splits": ("profile_name", "profile_value"),
}


def empty(n: int) -> Rows:
    """
    Rows of n users that nothing is known of.

    >>> len(empty(3)), empty(3).ring_splits.tolist()
    (3, [0, 0, 0, 0])
    """
    none = np.zeros(n + 1, np.int64)
    return Rows(
        first_seen_ms=np.zeros(n, np.int64),
        last_seen_ms=np.zeros(n, np.int64),
        history_splits=none,
        history_item=np.empty(0, np.uint64),
        history_time_ms=np.empty(0, np.int64),
        history_type=np.empty(0, np.uint8),
        history_value=np.empty(0, np.float32),
        ring_splits=none,
        ring=np.empty(0, np.uint32),
        tile_splits=none,
        tile_key=np.empty(0, np.uint32),
        tile_count=np.empty(0, np.uint32),
        profile_splits=none,
        profile_name=np.empty(0, np.uint64),
        profile_value=np.empty(0, np.uint64),
    )


def take(rows: Rows, index: NDArray[np.int64]) -> Rows:
    """Rows `index[0]`, `index[1]`, ...; an index may occur more than once."""
    found: dict[str, NDArray[Any]] = {name: getattr(rows, name)[index] for name in _SCALARS}
    for splits_name, columns in _RAGGED.items():
        splits = getattr(rows, splits_name)
        lengths = np.diff(splits)[index]
        at = spans(splits[index], lengths)
        found[splits_name] = splits_of(lengths)
        found |= {name: getattr(rows, name)[at] for name in columns}
    return Rows(**found)


def concat(parts: Sequence[Rows]) -> Rows:
    """
    All rows of all parts, one part after the other.

    >>> len(concat([empty(2), empty(1)]))
    3
    """
    if not parts:
        return empty(0)
    found: dict[str, NDArray[Any]] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _SCALARS
    }
    for splits_name, columns in _RAGGED.items():
        lengths = np.concatenate([np.diff(getattr(part, splits_name)) for part in parts])
        found[splits_name] = splits_of(lengths)
        for name in columns:
            found[name] = np.concatenate([getattr(part, name) for part in parts])
    return Rows(**found)


def ring_ids(event_id: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """
    What a ring keeps of event-id hashes: 32 bits, which are half of a row's bytes for ids.

    A new event is taken for a repeat if one of r ids in its ring has the same 32 bits by chance:
    r / 2**32, one event in 16.8 million where rings are full (256), in 200 million at 20 ids.
    """
    return event_id.astype(np.uint32)


def encode(rows: Rows, fingerprint: str) -> list[bytes]:
    """
    The stored form of each row.

    Raises:
        ValueError: a row that no fold gives: too long, or with a type or a tile that cannot be.
    """
    tiles = Tiles(rows.tile_splits, rows.tile_key, rows.tile_count)
    tiled = stored_tiles.packed_lengths(tiles)
    history = History(
        rows.history_splits,
        rows.history_item,
        rows.history_time_ms,
        rows.history_type,
        rows.history_value,
    )
    names = lengths_of(rows.profile_splits)
    laid = laid_out(
        len(rows),
        [
            Part(tiled | _lengths(rows), None, 8),
            Part(_within(rows.last_seen_ms).view(np.uint64), None, _TIME_BYTES),
            *stored_history.parts_of(history, rows.first_seen_ms, rows.last_seen_ms),
            *stored_tiles.parts_of(tiles, tiled, rows.last_seen_ms),
            Part(rows.ring, lengths_of(rows.ring_splits), 4),
            Part(rows.profile_name, names, 8),
            Part(rows.profile_value, names, 8),
        ],
    )
    return sealed(laid, _kind(fingerprint))


def decode(values: Sequence[bytes | None], fingerprint: str) -> DecodedRows:
    """
    Rows from their stored form. None gives an empty row; so does what is not whole or not ours.

    >>> decode([None, b"rubbish"], "00" * 8).corrupt
    (1,)
    """
    found = Unsealed(values, _kind(fingerprint), _LEAST_BYTES)
    lengths = found.one("u8", 8)
    last_ms = found.one("u8", _TIME_BYTES).view(np.int64)
    h, r, p = ((lengths >> _LENGTH_SHIFTS[:, None]) & _LENGTH_MASKS[:, None]).astype(np.int64)
    first_ms, history = stored_history.read(found, splits_of(h), last_ms)
    tiles = stored_tiles.read(found, lengths, last_ms)
    rows = Rows(
        first_seen_ms=first_ms,
        last_seen_ms=last_ms,
        history_splits=history.splits,
        history_item=history.item,
        history_time_ms=history.time_ms,
        history_type=history.event_type,
        history_value=history.value,
        ring_splits=splits_of(r),
        ring=found.next("u4", 4, r),
        tile_splits=tiles.splits,
        tile_key=tiles.key,
        tile_count=tiles.count,
        profile_splits=splits_of(p),
        profile_name=found.next("u8", 8, p),
        profile_value=found.next("u8", 8, p),
    )
    return DecodedRows(rows=_spread(rows, found.there, len(values)), corrupt=found.corrupt)


_LENGTH_MASKS: Final = (np.uint64(1) << _LENGTH_BITS) - np.uint64(1)


def _kind(fingerprint: str) -> int:
    return int(fingerprint, 16) ^ _MAGIC


def _lengths(rows: Rows) -> NDArray[np.uint64]:
    """Lengths of history, ring and profile in one word a row, above those of the tiles."""
    parts = (rows.history_splits, rows.ring_splits, rows.profile_splits)
    found = np.stack([lengths_of(splits) for splits in parts]).astype(np.uint64)
    if (found > _LENGTH_MASKS[:, None]).any():
        raise ValueError(f"a row is too long: {found.max(axis=1).tolist()} entries at most")
    return np.asarray((found << _LENGTH_SHIFTS[:, None]).sum(axis=0, dtype=np.uint64))


def _within(time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """The times, if their bytes can hold them."""
    if len(time_ms) and not 0 <= time_ms.min() <= time_ms.max() < 1 << 8 * _TIME_BYTES:
        raise ValueError(f"times out of range: {time_ms.min()} to {time_ms.max()}")
    return time_ms


def _spread(rows: Rows, there: NDArray[np.int64], n: int) -> Rows:
    """n rows, empty but for those at `there` (ascending)."""
    if len(there) == n:
        return rows
    found: dict[str, NDArray[Any]] = {}
    for name in _SCALARS:
        found[name] = np.zeros(n, np.int64)
        found[name][there] = getattr(rows, name)
    for splits_name, columns in _RAGGED.items():
        lengths = np.zeros(n, np.int64)
        lengths[there] = np.diff(getattr(rows, splits_name))
        found[splits_name] = splits_of(lengths)
        found |= {name: getattr(rows, name) for name in columns}
    return Rows(**found)
