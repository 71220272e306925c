"""
User rows: the columns that the fold and the assembly work on, and their stored form.

A batch of rows is columns: fixed fields [n] and ragged arrays (`splits` [n + 1] into flat values).
The stored form is known only to `encode` and `decode` in this module. It is an array of
little-endian 64-bit words, so that a batch is gathered and scattered by index arithmetic:

    0  checksum: xxh3-64 of everything after it
    1  magic and version
    2  fingerprint of the feature set
    3  lengths, 16 bits each: history h, ring r, tiles t, profile p
    4  first seen, ms
    5  last seen, ms
    h  item hashes          h  times, ms        h  type | float32 value << 32
    r  event-id hashes      t  key | count << 32
    p  name hashes          p  value hashes

It is canonical: equal rows give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from features.ragged import spans, splits_of

HEADER_WORDS: Final = 6
_MAGIC: Final = int.from_bytes(b"MSROW\0", "big") << 16 | 1  # the last 16 bits are the version
_MAX_LENGTH: Final = 0xFFFF
_WORD: Final = np.dtype("<u8")

Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """
    n user rows as columns. Row i owns flat entries `splits[i]:splits[i + 1]` of a ragged part.

    history: the last interactions in log order, oldest first.
    ring:    hashes of the last event ids seen (and origins of erasures), oldest first.
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
    ring: NDArray[np.uint64]
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
        ring=np.empty(0, np.uint64),
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


def encode(rows: Rows, fingerprint: str) -> list[bytes]:
    """The stored form of each row."""
    h, r, t, p = (np.diff(getattr(rows, name)) for name in _RAGGED)
    lengths = np.stack([h, r, t, p])
    if lengths.max(initial=0) > _MAX_LENGTH:
        raise ValueError(f"a row's part is longer than {_MAX_LENGTH}: {lengths.max(axis=1)}")
    splits = splits_of(HEADER_WORDS + 3 * h + r + t + 2 * p)
    words = np.empty(int(splits[-1]), _WORD)
    at = splits[:-1]
    words[at + 1] = _MAGIC
    words[at + 2] = int(fingerprint, 16)
    words[at + 3] = (lengths.astype(np.uint64) << _LENGTH_SHIFTS[:, None]).sum(axis=0, dtype="u8")
    words[at + 4] = rows.first_seen_ms.view(np.uint64)
    words[at + 5] = rows.last_seen_ms.view(np.uint64)
    at = at + HEADER_WORDS
    for flat, wide in (
        (rows.history_item, h),
        (rows.history_time_ms, h),
        (_paired(rows.history_type, _value_bits(rows.history_value)), h),
        (rows.ring, r),
        (_paired(rows.tile_key, rows.tile_count), t),
        (rows.profile_name, p),
        (rows.profile_value, p),
    ):
        words[spans(at, wide)] = flat.view(_WORD)
        at = at + wide
    return sealed(words, splits)


def decode(values: Sequence[bytes | None], fingerprint: str) -> DecodedRows:
    """
    Rows from their stored form. None gives an empty row; so does what is not whole or not ours.

    >>> decode([None, b"rubbish"], "00" * 8).corrupt
    (1,)
    """
    words, splits, corrupt = unsealed(values, HEADER_WORDS, (_MAGIC, int(fingerprint, 16)), _sizes)
    at = splits[:-1]
    there = np.flatnonzero(np.diff(splits))
    lengths = np.zeros((4, len(values)), np.int64)
    lengths[:, there] = _lengths(words[at[there] + 3])
    seen = np.zeros((2, len(values)), np.int64)
    seen[:, there] = words[at[there] + np.array([[4], [5]])].view(np.int64)
    h, r, t, p = lengths
    parts, at = [], at + HEADER_WORDS
    for wide in (h, h, h, r, t, p, p):
        parts.append(words[spans(at, wide)])
        at = at + wide
    item, time_ms, typed, ring, tile, name, value = parts
    rows = Rows(
        first_seen_ms=seen[0],
        last_seen_ms=seen[1],
        history_splits=splits_of(h),
        history_item=item,
        history_time_ms=time_ms.view(np.int64),
        history_type=typed.view(np.uint8)[0::8],
        history_value=typed.view(np.float32)[1::2],
        ring_splits=splits_of(r),
        ring=ring,
        tile_splits=splits_of(t),
        tile_key=tile.view(np.uint32)[0::2],
        tile_count=tile.view(np.uint32)[1::2],
        profile_splits=splits_of(p),
        profile_name=name,
        profile_value=value,
    )
    return DecodedRows(rows=rows, corrupt=corrupt)


def sealed(words: Words, splits: NDArray[np.int64]) -> list[bytes]:
    """Put each value's checksum into its first word, and cut the values apart."""
    data, digest = words.view(np.uint8).data, xxhash.xxh3_64_intdigest
    bounds = (splits * 8).tolist()
    ends = bounds[1:]
    words[splits[:-1]] = np.fromiter(
        (digest(data[a + 8 : b]) for a, b in zip(bounds, ends, strict=False)),
        np.uint64,
        len(ends),
    )
    return [bytes(data[a:b]) for a, b in zip(bounds, ends, strict=False)]


def unsealed(
    values: Sequence[bytes | None],
    header_words: int,
    expected: tuple[int, int],
    sizes: Callable[[NDArray[np.uint64]], NDArray[np.int64]],
) -> tuple[Words, NDArray[np.int64], tuple[int, ...]]:
    """
    Words of the values that are whole and ours; the others have none, and are named unless None.

    Args:
        expected: words 1 and 2 of the header.
        sizes: from word 3 of the header to the value's length in words.
    """
    lengths = np.fromiter((0 if v is None else len(v) for v in values), np.int64, len(values))
    given = np.fromiter((v is not None for v in values), np.bool_, len(values))
    good = (lengths >= 8 * header_words) & (lengths % 8 == 0)
    if good.sum() < len(values):
        values = [v if ok else b"" for v, ok in zip(values, good.tolist(), strict=True)]
    words = np.frombuffer(b"".join(values), _WORD)  # type: ignore[arg-type]  # None is not good
    wide = np.where(good, lengths // 8, 0)
    splits = splits_of(wide)
    there = np.flatnonzero(good)
    at = splits[there]
    digest = xxhash.xxh3_64_intdigest
    sums = np.fromiter((digest(memoryview(v)[8:]) for v in values if v), np.uint64, len(there))
    fine = (words[at] == sums) & (words[at + 1] == expected[0]) & (words[at + 2] == expected[1])
    fine &= sizes(words[at + 3]) == wide[there]
    if not fine.all():
        good[there[~fine]] = False
        words = words[np.repeat(good, wide)]
        splits = splits_of(np.where(good, wide, 0))
    return words, splits, tuple(np.flatnonzero(given & ~good).tolist())


_LENGTH_SHIFTS: Final = np.arange(0, 64, 16, dtype=np.uint64)


def _lengths(packed: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[4, n] from word 3."""
    parts = (packed >> _LENGTH_SHIFTS[:, None]) & np.uint64(_MAX_LENGTH)
    return parts.astype(np.int64)


def _sizes(packed: NDArray[np.uint64]) -> NDArray[np.int64]:
    h, r, t, p = _lengths(packed)
    return np.asarray(HEADER_WORDS + 3 * h + r + t + 2 * p, np.int64)


def _paired(low: NDArray[Any], high: NDArray[np.uint32]) -> Words:
    """low | high << 32."""
    pairs = np.empty((len(low), 2), "<u4")
    pairs[:, 0] = low
    pairs[:, 1] = high
    return pairs.view(_WORD)[:, 0]


def _value_bits(value: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The bits of each value, with one NaN only."""
    return np.where(np.isnan(value), np.float32(np.nan), value).astype(np.float32).view(np.uint32)
