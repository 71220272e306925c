"""
What the label join works on: lists that were shown, and what users did, as columns.

Both come from batches of one partition; records that cannot give an example or a label are left
out and counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.assemble import ItemFeatures, UserFeatures
from features.declare import Array, FeatureSet, Level
from features.hashing import hash_ids
from features.misplaced import grouped, misplaced
from features.validate import Candidates, rejections
from ingest.log import RecordBatch
from ingest.origin import of_another_topic
from schemas.columns import ColumnReader
from schemas.events import Recommendation, Status, UserEvent

_STATUSES: Final = list(Status)
_LISTED: Final = [_STATUSES.index(Status.OK), _STATUSES.index(Status.FALLBACK)]
_LIST_COLUMNS: Final = (
    *("request_id", "user_id", "event_time", "status", "items", "model_version", "fingerprint"),
    *("events_partition", "events_offset", "user_longs", "user_floats", "surface"),
)
_EVENT_COLUMNS: Final = (
    *("event_id", "user_id", "item_id", "event_type", "event_time", "value", "request_id"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """n lists in log order; list i owns items `splits[i]:splits[i + 1]` of m."""

    offset: NDArray[np.int64]  # [n] in recommendations
    request_id: Sequence[str]
    request_hash: NDArray[np.uint64]
    user_id: Sequence[str]
    user_hash: NDArray[np.uint64]
    event_time: NDArray[np.int64]
    events_offset: NDArray[np.int64]
    model_version: NDArray[np.int64]
    surface: Sequence[str]
    users: UserFeatures  # [n]
    splits: NDArray[np.int64]  # [n + 1]
    item_id: Sequence[str]  # [m]
    item_hash: NDArray[np.uint64]
    items: ItemFeatures

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """n user-events in log order. Hash 0: not given."""

    offset: NDArray[np.int64]
    came_ms: NDArray[np.int64]  # record timestamps
    event_time: NDArray[np.int64]
    event_type: NDArray[np.int64]
    user_hash: NDArray[np.uint64]
    item_hash: NDArray[np.uint64]
    event_hash: NDArray[np.uint64]
    request_hash: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.offset)


class ShownReader:
    """Batches of recommendations to lists."""

    def __init__(self, reader: ColumnReader[Recommendation], features: FeatureSet) -> None:
        self._reader = reader
        self._features = features

    def read(self, batch: RecordBatch, partitions: int) -> tuple[Shown, Counter[str]]:
        """The batch's lists, and how many of its records give none, by reason."""
        decoded = self._reader.read(batch.values, _LIST_COLUMNS)
        wrong = misplaced(batch, grouped(batch.keys), partitions)[decoded.index]
        copied = np.zeros(len(batch), bool)
        copied[[i for i in batch.headers if of_another_topic(batch, i)]] = True
        stamps = batch.timestamps_ms[decoded.index]
        judged = decoded.frame.with_columns(
            pl.Series("offset", batch.offsets[decoded.index]),
            self._reasons(batch, wrong, copied[decoded.index], stamps),
        )
        skipped = Counter(judged["reason"].drop_nulls().to_list())
        skipped["undecodable"] += len(decoded.bad)
        return self._lists(judged.filter(pl.col("reason").is_null())), +skipped

    def _reasons(
        self,
        batch: RecordBatch,
        wrong: NDArray[np.bool_],
        copied: NDArray[np.bool_],
        stamps: NDArray[np.int64],
    ) -> pl.Expr:
        """Why a record gives no list; null: it does."""
        wide = {
            (level, dtype): self._features.width(level, dtype)
            for level in Level
            for dtype in ("int64", "float32")
        }
        item = pl.element().struct
        whole = (
            (pl.col("user_longs").list.len() == wide[Level.USER, "int64"])
            & (pl.col("user_floats").list.len() == wide[Level.USER, "float32"])
            & pl.col("items")
            .list.eval(
                (item.field("longs").list.len() == wide[Level.ITEM, "int64"])
                & (item.field("floats").list.len() == wide[Level.ITEM, "float32"])
            )
            .list.all()
        )
        # A request from the future would hold up all that follow: they close in their order.
        late = pl.Series(stamps + self._features.row.future_ms)
        reasons: dict[str, pl.Expr | pl.Series] = {
            # Their position counts in another log, where they were joined.
            "of another log": pl.Series(copied),
            "no list": ~pl.col("status").is_in(_LISTED) | (pl.col("items").list.len() == 0),
            "misplaced": pl.Series(wrong) | (pl.col("events_partition") != batch.partition),
            "in the future": pl.col("event_time") > late,
            "another feature set": pl.col("fingerprint") != self._features.fingerprint,
            "without position": pl.col("events_offset") < 0,
            "without features": ~whole,
        }
        found = pl.lit(None, pl.String)
        for reason, applies in reversed(reasons.items()):
            found = pl.when(applies).then(pl.lit(reason)).otherwise(found)
        return found.alias("reason")

    def _lists(self, frame: pl.DataFrame) -> Shown:
        counts = frame["items"].list.len().to_numpy().astype(np.int64)
        entry = frame["items"].explode(empty_as_null=False).struct
        item_id = entry.field("item_id").to_list()
        user_id, request_id = frame["user_id"].to_list(), frame["request_id"].to_list()
        longs, floats = _matrix(frame["user_longs"], "i8"), _matrix(frame["user_floats"], "f4")
        return Shown(
            offset=frame["offset"].to_numpy(),
            request_id=request_id,
            request_hash=hash_ids([text or None for text in request_id]),
            user_id=user_id,
            user_hash=hash_ids(user_id),
            event_time=frame["event_time"].to_numpy(),
            events_offset=frame["events_offset"].to_numpy().astype(np.int64),
            model_version=frame["model_version"].to_numpy().astype(np.int64),
            surface=frame["surface"].fill_null("").to_list(),
            users=UserFeatures(longs=longs, floats=floats),
            splits=np.concatenate([[0], np.cumsum(counts)]),
            item_id=item_id,
            item_hash=hash_ids(item_id),
            items=ItemFeatures(
                longs=_matrix(entry.field("longs"), "i8"),
                floats=_matrix(entry.field("floats"), "f4"),
            ),
        )


class DoneReader:
    """Batches of user-events to what may become a label."""

    def __init__(self, reader: ColumnReader[UserEvent], future_ms: int) -> None:
        self._reader = reader
        self._future_ms = future_ms

    def read(self, batch: RecordBatch, partitions: int) -> Done:
        """The events that the fold would judge fit, erasures and misplaced originals left out."""
        decoded = self._reader.read(batch.values, _EVENT_COLUMNS)
        frame, index = decoded.frame, decoded.index
        keys = [batch.keys[i] or b"" for i in index.tolist()]
        judged = Candidates(
            frame=frame,
            users=pl.Series(keys, dtype=pl.Binary).cast(pl.String, strict=False),
            timestamps_ms=batch.timestamps_ms[index],
            future_ms=self._future_ms,
        )
        keep = ~misplaced(batch, grouped(batch.keys), partitions)[index]
        keep[[row for row, _ in rejections(judged)]] = False
        frame, index = frame.filter(pl.Series(keep)), index[keep]
        return Done(
            offset=batch.offsets[index],
            came_ms=batch.timestamps_ms[index],
            event_time=frame["event_time"].to_numpy(),
            event_type=frame["event_type"].to_numpy().astype(np.int64),
            user_hash=hash_ids(frame["user_id"].to_list()),
            item_hash=hash_ids(frame["item_id"].to_list()),
            event_hash=hash_ids(frame["event_id"].to_list()),
            request_hash=hash_ids([text or None for text in frame["request_id"].to_list()]),
        )


def sliced(lists: Shown, start: int, stop: int) -> Shown:
    """Lists `start` to `stop` (exclusive)."""
    a, b = int(lists.splits[start]), int(lists.splits[stop])
    found: dict[str, Any] = {
        f.name: getattr(lists, f.name)[start:stop]
        for f in fields(Shown)
        if f.name not in ("users", "items", "splits", "item_id", "item_hash")
    }
    users, items = lists.users, lists.items
    return Shown(
        **found,
        users=UserFeatures(longs=users.longs[start:stop], floats=users.floats[start:stop]),
        splits=lists.splits[start : stop + 1] - a,
        item_id=lists.item_id[a:b],
        item_hash=lists.item_hash[a:b],
        items=ItemFeatures(longs=items.longs[a:b], floats=items.floats[a:b]),
    )


def concat_lists(parts: Sequence[Shown]) -> Shown:
    """All lists of at least one part, in order."""
    if len(parts) == 1:
        return parts[0]
    counts = np.concatenate([np.diff(part.splits) for part in parts])
    found: dict[str, Any] = {
        f.name: _joined([getattr(part, f.name) for part in parts])
        for f in fields(Shown)
        if f.name != "splits"
    }
    return Shown(**found, splits=np.concatenate([[0], np.cumsum(counts)]))


def take_done(events: Done, index: Array) -> Done:
    """The events at an index or under a mask."""
    return Done(**{f.name: getattr(events, f.name)[index] for f in fields(Done)})


def concat_done(parts: Sequence[Done]) -> Done:
    """All events of at least one part, in order."""
    return Done(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Done)}
    )


def _joined(columns: list[Any]) -> Any:
    first = columns[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(columns)
    if isinstance(first, UserFeatures | ItemFeatures):
        return type(first)(
            longs=np.concatenate([c.longs for c in columns]),
            floats=np.concatenate([c.floats for c in columns]),
        )
    return list(chain.from_iterable(columns))


def _matrix(lists: pl.Series, dtype: str) -> Array:
    """Lists of one length as a matrix."""
    n = len(lists)
    flat = lists.explode(empty_as_null=False).to_numpy().astype(dtype)
    return flat.reshape(n, len(flat) // n if n else 0)
