"""
Tiles: mergeable event counts by (span, bucket, event type), of users' rows and of items' partials.

A key packs span, bucket and type into 32 bits, so that the order of keys is the order of span,
then time, then type:

    bits 30-31  span: 0 total, 1 day, 2 hour
    bits  4-29  bucket: days or hours since the epoch (UTC); 0 for the total
    bits  0-3   event type

Which tiles are kept depends on the newest event time alone, and it may be judged once, by the
newest time of a whole batch, instead of event by event: a tile inside the kept span at the end was
inside it at every moment before (the newest time only grows), so none of its events was turned
away; a tile outside the span at the end is dropped at the end, whenever its events came. Counts
saturate at 2**32 - 1; as they only grow, that too is the same wherever a batch is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from features.declare import DAY_MS, HOUR_MS
from features.ragged import owners, spans, splits_of
from schemas.compiled import compiled, filled, given

TOTAL, DAY, HOUR = 0, 1, 2
SPANS = 3
MAX_COUNT = 2**32 - 1
TYPES = 16  # places of a window table: event types fit in 4 bits
EARLIEST_MS = 1  # 0 marks an empty row
LATEST_MS = (2**26 - 1) * HOUR_MS  # the last hour bucket that fits: in the year 9625

_SPAN_SHIFT = 30
_BUCKET_SHIFT = 4
_IN_SPAN = (1 << _SPAN_SHIFT) - 1
_SIZE_MS = {DAY: DAY_MS, HOUR: HOUR_MS}
_EVER_MS = 2**62  # all times are in its first bucket


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of n rows: row i owns `splits[i]:splits[i + 1]`, sorted by key."""

    splits: NDArray[np.int64]  # [n + 1]
    key: NDArray[np.uint32]
    count: NDArray[np.uint32]


class HasTiles(Protocol):
    """Anything that carries tiles under the names that `Rows` uses."""

    @property
    def tile_splits(self) -> NDArray[np.int64]: ...
    @property
    def tile_key(self) -> NDArray[np.uint32]: ...
    @property
    def tile_count(self) -> NDArray[np.uint32]: ...


class Window(NamedTuple):
    """How far back a window reaches: so many hours or days. Neither: these are the totals."""

    name: str
    hours: int = 0
    days: int = 0


class Kept(NamedTuple):
    """How many buckets are kept, the newest event's own bucket included."""

    hours: int
    days: int


def tile_key(span: int, bucket: int, event_type: int) -> int:
    """
    One packed key.

    >>> hex(tile_key(HOUR, 1, 3))
    '0x80000013'
    """
    return (span << _SPAN_SHIFT) | (bucket << _BUCKET_SHIFT) | event_type


def tile_keys(
    event_type: NDArray[np.uint8], event_time_ms: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """Keys of the three tiles that each event falls into, [3, n]: total, day, hour."""
    keys = np.empty((SPANS, len(event_type)), np.uint32)
    keys[TOTAL] = event_type
    for span, size_ms in _SIZE_MS.items():
        bucket = (event_time_ms // size_ms).astype(np.uint32) << np.uint32(_BUCKET_SHIFT)
        keys[span] = bucket | event_type | np.uint32(span << _SPAN_SHIFT)
    return keys


def span_of(key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Span of each packed key."""
    return key >> np.uint32(_SPAN_SHIFT)


def newest_key(newest_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest key of each span that a row with this newest time may have, [3, n]."""
    most = np.full((SPANS, len(newest_ms)), TYPES - 1, np.int64)
    for span, size_ms in _SIZE_MS.items():
        most[span] |= (newest_ms // size_ms << _BUCKET_SHIFT) | (span << _SPAN_SHIFT)
    return most


def oldest_kept(newest_ms: NDArray[np.int64], kept: Kept) -> NDArray[np.uint32]:
    """The smallest key of each span that a row with this newest time keeps, [3, n]."""
    least = np.zeros((SPANS, len(newest_ms)), np.uint32)
    for span, buckets in ((DAY, kept.days), (HOUR, kept.hours)):
        oldest = np.maximum(newest_ms // _SIZE_MS[span] - buckets + 1, 0).astype(np.uint32)
        least[span] = (oldest << np.uint32(_BUCKET_SHIFT)) | np.uint32(span << _SPAN_SHIFT)
    return least


def add(
    tiles: Tiles,
    row: NDArray[np.int64],
    keys: NDArray[np.uint32],
    newest_ms: NDArray[np.int64],
    kept: Kept,
) -> Tiles:
    """
    Count events into the tiles of n rows, and drop what is no longer kept.

    Args:
        row: [e] the row of each event, in any order.
        keys: [3, e] from `tile_keys`.
        newest_ms: [n] each row's newest event time, these events included.
    """
    found, times = _counted((row.astype(np.uint64) << np.uint64(32)) | keys)
    have = (owners(tiles.splits).astype(np.uint64) << np.uint64(32)) | tiles.key
    place = np.searchsorted(have, found)
    known = place < len(have)
    known[known] = have[place[known]] == found[known]
    grown = tiles.count.astype(np.uint64)
    grown[place[known]] += times[known]
    fresh = ~known
    is_new = np.zeros(len(have) + int(fresh.sum()), np.bool_)
    is_new[place[fresh] + np.arange(int(fresh.sum()))] = True
    key, count = np.empty(len(is_new), np.uint64), np.empty(len(is_new), np.uint64)
    key[is_new], count[is_new] = found[fresh], times[fresh]
    key[~is_new], count[~is_new] = have, grown
    return _pruned(key, np.minimum(count, MAX_COUNT).astype(np.uint32), newest_ms, kept)


def summed(
    rows: NDArray[np.int64], key: NDArray[np.uint32], count: NDArray[np.uint32], n: int
) -> Tiles:
    """Tiles of n rows from loose ones: those of equal row and key are added up, saturating."""
    wide = (rows.astype(np.uint64) << np.uint64(32)) | key
    order = np.argsort(wide, kind="stable")
    wide = wide[order]
    first = _run_starts(wide)
    total = np.add.reduceat(count[order].astype(np.uint64), first) if len(first) else first
    return Tiles(
        _splits_by_row(wide[first], n),
        (wide[first] & np.uint64(MAX_COUNT)).astype(np.uint32),
        np.minimum(total, MAX_COUNT).astype(np.uint32),
    )


def take(tiles: Tiles, index: NDArray[np.int64]) -> Tiles:
    """Tiles of the rows `index`, in that order."""
    lengths = np.diff(tiles.splits)[index]
    at = spans(tiles.splits[index], lengths)
    return Tiles(splits_of(lengths), tiles.key[at], tiles.count[at])


def words_of_tiles(tiles: Tiles) -> NDArray[np.uint64]:
    """The stored form: key | count << 32 of each tile."""
    pairs = np.empty((len(tiles.key), 2), "<u4")
    pairs[:, 0] = tiles.key
    pairs[:, 1] = tiles.count
    return pairs.view("<u8")[:, 0]


def tiles_of_words(splits: NDArray[np.int64], words: NDArray[np.uint64]) -> Tiles:
    """Tiles from their stored form: views, nothing is copied."""
    halves = words.view(np.uint32)
    return Tiles(splits, halves[0::2], halves[1::2])


def window_table(
    tiles: Tiles,
    now_ms: NDArray[np.int64],
    *,
    hours: int = 0,
    days: int = 0,
) -> NDArray[np.int64]:
    """
    Counts of every event type in a window that ends at each row's now, [n, TYPES] int64.

    Give `hours` or `days`; neither: the totals. The window is the bucket of now and those before
    it, so many in all.
    """
    n = len(now_ms)
    (low,), (high,) = window_keys(now_ms, (Window("", hours, days),))
    row = owners(tiles.splits)
    inside = np.flatnonzero((tiles.key >= low[row]) & (tiles.key < high[row]))
    place = row[inside] * TYPES + (tiles.key[inside] & np.uint32(TYPES - 1))
    # float64 sums are exact here: at most 880 counts below 2**32 each.
    found = np.bincount(place, weights=tiles.count[inside], minlength=n * TYPES)
    return found.astype(np.int64).reshape(n, TYPES)


def window_keys(
    now_ms: NDArray[np.int64], windows: tuple[Window, ...], *, closed: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    The least key in each row's windows, and the least beyond it, [m, n].

    Each window is that of `window_table`; `closed` leaves the bucket of now out and goes one
    further back, but not of the totals.
    """
    span, size_ms, wide = _bounds(windows).T[..., None]
    newest = now_ms // size_ms - np.where(span == TOTAL, 0, int(closed))
    base = span << _SPAN_SHIFT
    low = base + (np.maximum(newest - wide + 1, 0) << _BUCKET_SHIFT)
    return low, base + (np.maximum(newest + 1, 0) << _BUCKET_SHIFT)


class Sliding:
    """Windows and decays up to each row's now, [n], over the same tiles."""

    def __init__(self, tiles: Tiles, now_ms: NDArray[np.int64]) -> None:
        self._tiles = tiles
        self._now_ms = now_ms

    def windows(self, wanted: tuple[Window, ...]) -> NDArray[np.float64]:
        """
        Events of every type in windows up to now, [n, m, TYPES] float64.

        The bucket of now counts whole, and so do those before it but the oldest: it counts by the
        share of it that the window still covers, as if its events were spread evenly over it. So an
        event leaves a window of an hour between 1 and 2 hours after it came, and never suddenly.
        """
        tiles = self._tiles
        found = np.zeros((len(self._now_ms), len(wanted), TYPES), np.float64)
        _slide(tiles.splits, tiles.key, tiles.count, self._now_ms, _bounds(wanted), found)
        return found

    def decayed(self, half_life_ms: int) -> NDArray[np.float64]:
        """
        Events of every type in the days kept, each halved for every half-life passed, [n, TYPES].

        The events of a day are taken to be as old as its middle; those of the day of now, as the
        middle of what has passed of it. Days after now do not count.
        """
        tiles, found = self._tiles, np.zeros((len(self._now_ms), TYPES), np.float64)
        _decay(tiles.splits, tiles.key, tiles.count, self._now_ms, DAY_MS, half_life_ms, found)
        return found


_OF_TILES = (given("int64"), given("uint32"), given("uint32"))


@compiled(*_OF_TILES, given("int64"), given("int64", 2), filled("float64", 3))
def _slide(
    splits: NDArray[np.int64],
    keys: NDArray[np.uint32],
    counts: NDArray[np.uint32],
    now_ms: NDArray[np.int64],
    bounds: NDArray[np.int64],
    found: NDArray[np.float64],
) -> None:
    """`bounds`: of each window, [m, 3], as `_bounds` tells."""
    for i in range(len(now_ms)):
        for w in range(len(bounds)):
            span, size_ms, wide = bounds[w]
            # In buckets. The span stands above them: those of another one are far away.
            now = (span << _SPAN_SHIFT - _BUCKET_SHIFT) + now_ms[i] // size_ms
            left = 1 - now_ms[i] % size_ms / size_ms
            for j in range(splits[i], splits[i + 1]):
                key = np.int64(keys[j])
                age = now - (key >> _BUCKET_SHIFT)
                if 0 <= age <= wide:
                    found[i, w, key & (TYPES - 1)] += counts[j] * (left if age == wide else 1.0)


@compiled(*_OF_TILES, given("int64"), "int64", "int64", filled("float64", 2))
def _decay(
    splits: NDArray[np.int64],
    keys: NDArray[np.uint32],
    counts: NDArray[np.uint32],
    now_ms: NDArray[np.int64],
    day_ms: int,
    half_life_ms: int,
    found: NDArray[np.float64],
) -> None:
    for i in range(len(now_ms)):
        day, left = np.int64(-1), 0.0
        for j in range(splits[i], splits[i + 1]):
            key = np.int64(keys[j])
            if key >> _SPAN_SHIFT != DAY:
                continue
            bucket = (key & _IN_SPAN) >> _BUCKET_SHIFT
            if bucket * day_ms > now_ms[i]:
                continue
            if bucket != day:  # the types of a day stand together
                day = bucket
                middle_ms = (day * day_ms + min((day + 1) * day_ms, now_ms[i])) / 2
                left = 2.0 ** (-(now_ms[i] - middle_ms) / half_life_ms)
            found[i, key & (TYPES - 1)] += counts[j] * left


def window_counts(
    rows: HasTiles,
    event_types: Sequence[int],
    now_ms: NDArray[np.int64],
    *,
    hours: int = 0,
    days: int = 0,
) -> NDArray[np.int64]:
    """Events of these types in the window up to and with the bucket of now, [n] int64."""
    tiles = Tiles(rows.tile_splits, rows.tile_key, rows.tile_count)
    table = window_table(tiles, now_ms, hours=hours, days=days)
    return np.asarray(table[:, list(event_types)].sum(axis=1), np.int64)


@lru_cache
def _bounds(windows: tuple[Window, ...]) -> NDArray[np.int64]:
    """The span of each window, its buckets' milliseconds and how many there are, [m, 3]."""
    found = []
    for _, hours, days in windows:
        if hours and days:
            raise ValueError(f"hours={hours} and days={days}: give one of them")
        span = HOUR if hours else DAY if days else TOTAL
        found.append((span, _SIZE_MS.get(span, _EVER_MS), hours or days or 1))
    return np.array(found, np.int64)


def _counted(wide: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Distinct values, ascending, and how often each occurs."""
    flat = np.sort(wide, axis=None)
    first = _run_starts(flat)
    return flat[first], np.diff(first, append=len(flat)).astype(np.uint64)


def _run_starts(ascending: NDArray[np.uint64]) -> NDArray[np.int64]:
    changes = np.ones(len(ascending), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=changes[1:])
    return np.flatnonzero(changes)


def _splits_by_row(wide: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """Splits of n rows whose entries carry their row in the upper 32 bits, ascending."""
    return np.searchsorted(wide, np.arange(n + 1, dtype=np.uint64) << np.uint64(32))


def _pruned(
    wide: NDArray[np.uint64],
    count: NDArray[np.uint32],
    newest_ms: NDArray[np.int64],
    kept: Kept,
) -> Tiles:
    row = (wide >> np.uint64(32)).astype(np.int64)
    key = wide.astype(np.uint32)
    least = oldest_kept(newest_ms, kept)
    stays = np.flatnonzero(key >= least[span_of(key), row])
    return Tiles(_splits_by_row(wide[stays], len(newest_ms)), key[stays], count[stays])
