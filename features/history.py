"""
The past as columns: user-events of all partitions, and items as they stood at any time in it.

Partitions have no order among each other, and a result must not depend on how their batches came.
So events of all partitions are put in order of (their partition's newest event time so far,
partition, offset): within a partition that is the order of its log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import tiles as tiling
from features.declare import DAY_MS, HOUR_MS
from features.fit import EventReader
from features.fold import EventColumns
from features.hashing import hash_id, hash_ids
from features.items import ItemTable
from features.misplaced import grouped, misplaced
from features.tiles import Window
from features.validate import Candidates, rejections
from ingest.log import RecordBatch
from ingest.origin import origin_of
from schemas.events import EventType, Item

_HOURS_A_DAY: Final = DAY_MS // HOUR_MS
_BUCKET_BITS: Final = np.int64(32)
_HOUR_MASK: Final = np.int64(2**32 - 1)
_NO_HOURS: Final = np.zeros((0, tiling.TYPES), np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """n user-events (erasures among them) in the one order; `events` has their fold columns."""

    frame: pl.DataFrame  # [n] columns of UserEvent, `partition` and `offset`
    events: EventColumns  # [n] `row` is the user's code, from 0
    clock_ms: NDArray[np.int64]  # [n] newest event time of the partition, up to and with this
    users: int
    ends: dict[int, int]  # partition -> next offset

    def __len__(self) -> int:
        return len(self.frame)


class HistoryReader:
    """Takes batches of user-events in, in any order of partitions."""

    def __init__(self, reader: EventReader, partitions: int, future_ms: int) -> None:
        self._reader = reader
        self._partitions = partitions
        self._future_ms = future_ms
        self._parts: list[pl.DataFrame] = []
        self._ends: dict[int, int] = {}

    def add(self, batch: RecordBatch) -> None:
        """
        Take a batch in. What the fold would refuse is left out, misplaced originals too.

        Raises:
            ValueError: the batch does not follow its partition's last one.
        """
        start = self._ends.get(batch.partition, batch.start_offset)
        if batch.start_offset != start:
            raise ValueError(
                f"partition {batch.partition}: offset {batch.start_offset} after {start}"
            )
        self._ends[batch.partition] = batch.next_offset
        if len(batch):
            self._parts.append(self._fit(batch))

    def history(self) -> History:
        """All that was taken in."""
        frame = pl.concat(self._parts) if self._parts else self._nothing()
        frame = (
            frame.sort("partition", "offset")
            .with_columns(
                pl.col("event_time").cum_max().forward_fill().over("partition").alias("clock")
            )
            .with_columns(pl.col("clock").fill_null(0))
            .sort("clock", "partition", "offset")
        )
        codes, users = _codes(frame["user_id"])
        clock = frame["clock"].to_numpy()
        return History(
            frame=frame,
            events=_events(frame, codes),
            clock_ms=clock,
            users=users,
            ends=dict(sorted(self._ends.items())),
        )

    def _fit(self, batch: RecordBatch) -> pl.DataFrame:
        decoded = self._reader.read(batch.values)
        keys = pl.Series(list(batch.keys), dtype=pl.Binary).cast(pl.String, strict=False)
        here = ~misplaced(batch, grouped(batch.keys), self._partitions)
        keep = here[decoded.index]
        judged = Candidates(
            frame=decoded.frame,
            users=keys.gather(decoded.index),
            timestamps_ms=batch.timestamps_ms[decoded.index],
            future_ms=self._future_ms,
        )
        keep[[row for row, _ in rejections(judged)]] = False
        frame = decoded.frame.with_columns(
            pl.lit(batch.partition, pl.Int64).alias("partition"),
            pl.Series("offset", batch.offsets[decoded.index]),
            pl.lit(value=False).alias("erase"),
        ).filter(pl.Series(keep))
        return pl.concat([frame, self._erasures(batch, keys, here)]).sort("offset")

    def _erasures(
        self, batch: RecordBatch, keys: pl.Series, here: NDArray[np.bool_]
    ) -> pl.DataFrame:
        """Null values as rows of the frame; their event id is their origin."""
        valid = (keys.is_not_null() & (keys != "")).fill_null(value=False).to_numpy()
        at = [i for i, v in enumerate(batch.values) if v is None and here[i] and valid[i]]
        columns = {
            "user_id": keys.gather(at),
            "event_id": [origin_of(batch, i).decode() for i in at],
            "partition": [batch.partition] * len(at),
            "offset": batch.offsets[at],
            "erase": [True] * len(at),
        }
        nothing = self._nothing()
        found = {name: columns.get(name, [None] * len(at)) for name in nothing.columns}
        return pl.DataFrame(found, schema=nothing.schema)

    def _nothing(self) -> pl.DataFrame:
        schema = dict(self._reader.dtypes)
        return pl.DataFrame(
            schema=schema | {"partition": pl.Int64(), "offset": pl.Int64(), "erase": pl.Boolean()}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemHours:
    """What was done to items, by the hour in which it came: k counts, that add up."""

    items: list[str]
    item: NDArray[np.int64]  # [k] index in `items`
    hour: NDArray[np.int64]  # [k] since the epoch
    counts: NDArray[np.int64]  # [k, TYPES]


def item_hours(history: History, accepted: NDArray[np.bool_]) -> ItemHours:
    """
    The accepted events of a history.

    One that came when its hour was over, by the newest event time of its partition, counts from
    the hour in which it came.
    """
    at = np.flatnonzero(accepted & (history.events.item != 0))
    _, first, item = np.unique(history.events.item[at], return_index=True, return_inverse=True)
    came, said = history.clock_ms[at], history.events.event_time_ms[at]
    hour = np.where(said // HOUR_MS < came // HOUR_MS, came, said) // HOUR_MS
    keys, place = np.unique(item << _BUCKET_BITS | hour, return_inverse=True)
    counts = np.zeros((len(keys), tiling.TYPES), np.int64)
    np.add.at(counts, (place, history.events.event_type[at]), 1)
    return ItemHours(
        items=history.frame["item_id"].gather(at[first]).to_list(),
        item=keys >> _BUCKET_BITS,
        hour=keys & _HOUR_MASK,
        counts=counts,
    )


class HistoryItems(ItemTable):
    """
    The item table as it stood at any time of a history: counts of whole hours before now.

    It differs from the live table in this alone: it forgets no tile, and an event that came when
    its hour was over (by the newest event time of its partition) counts from the hour in which it
    came. So nothing that the log did not hold yet is ever seen.
    """

    def __init__(self, fingerprint: str, catalogue: Sequence[Item]) -> None:
        super().__init__(fingerprint)
        self.put_items(catalogue)
        self._keys = np.zeros(0, np.int64)  # item, hour: ascending
        self._before = np.zeros((1, tiling.TYPES), np.int64)  # [keys + 1] counts of the keys before

    def put_hours(self, parts: Sequence[ItemHours]) -> None:
        """Take in what was done in all partitions, instead of anything before."""
        self._index_or_add(list(dict.fromkeys(name for part in parts for name in part.items)))
        keys = [
            self.index(hash_ids(part.items))[part.item] << _BUCKET_BITS | part.hour
            for part in parts
        ]
        self._keys, place = np.unique(_joined(keys), return_inverse=True)
        counts = np.zeros((len(self._keys) + 1, tiling.TYPES), np.int64)
        np.add.at(counts[1:], place, np.concatenate([_NO_HOURS, *(part.counts for part in parts)]))
        self._before = np.cumsum(counts, axis=0)

    def window_tables(
        self, index: NDArray[np.int64], now_ms: NDArray[np.int64], windows: tuple[Window, ...]
    ) -> NDArray[np.float64]:
        tables = [self._window_table(index, now_ms, one) for one in windows]
        return np.stack(tables, axis=1).astype(np.float64)

    def _window_table(
        self, index: NDArray[np.int64], now_ms: NDArray[np.int64], window: Window
    ) -> NDArray[np.int64]:
        """[m, TYPES]"""
        if window.days:
            end = now_ms // DAY_MS * _HOURS_A_DAY
            start = end - window.days * _HOURS_A_DAY
        else:
            end = now_ms // HOUR_MS
            start = end - window.hours if window.hours else np.zeros_like(end)
        item = np.maximum(index, 0) << _BUCKET_BITS
        low, high = (np.searchsorted(self._keys, item | np.maximum(b, 0)) for b in (start, end))
        table: NDArray[np.int64] = self._before[high] - self._before[low]
        table[index < 0] = 0
        return table


def read_history(batches: Iterable[RecordBatch], reader: HistoryReader) -> History:
    """The history in the batches."""
    for batch in batches:
        reader.add(batch)
    return reader.history()


def _joined(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _codes(users: pl.Series) -> tuple[NDArray[np.int64], int]:
    """A code for each user, by first appearance, and how many there are."""
    if not len(users):
        return np.zeros(0, np.int64), 0
    codes = users.rank("dense").to_numpy().astype(np.int64) - 1
    return codes, int(codes.max()) + 1


def _events(frame: pl.DataFrame, codes: NDArray[np.int64]) -> EventColumns:
    """The columns that the fold takes."""
    erase = frame["erase"].to_numpy()
    profile = frame["event_type"].fill_null(0) == int(EventType.PROFILE)
    at = np.flatnonzero(profile.to_numpy())
    lists = frame["profile"].gather(at)
    loose = lists.explode(empty_as_null=False).struct
    wide = lists.list.len().to_numpy() if len(at) else np.zeros(0, np.int64)
    ids = frame["event_id"].to_list()
    return EventColumns(
        row=codes,
        event_id=hash_ids(ids),
        item=hash_ids(frame["item_id"].to_list()),
        event_type=frame["event_type"].fill_null(0).to_numpy().astype(np.uint8),
        event_time_ms=frame["event_time"].fill_null(0).to_numpy(),
        value=frame["value"].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
        erase=erase,
        profile_event=np.repeat(at, wide),
        profile_name=hash_ids(loose.field("name").to_list()),
        profile_value=hash_ids(loose.field("value").to_list()),
    )


def text_hashes(texts: pl.Series) -> NDArray[np.uint64]:
    """Hash of each of a few different texts, [n]; 0 where there is none."""
    distinct = {text: hash_id(text) for text in texts.unique().drop_nulls().to_list()}
    found = (distinct.get(text, 0) for text in texts.to_list())
    return np.fromiter(found, np.uint64, len(texts))
