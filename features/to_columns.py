"""The records of a batch that are fit to be folded, as the columns that the fold takes. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.event_columns import EventColumns
from features.fit import Fit
from features.hashing import hash_id, hash_ids
from features.text_columns import hash_texts
from schemas.events import EventType


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOrder:
    """The m = n + e fit records, n good events and e erasures, in the order of the log."""

    places: NDArray[np.int64]  # [m] place in the batch, ascending
    source: NDArray[np.int64] | None  # [m] index among events, then erasures; None: as they are


def in_log_order(found: Fit) -> LogOrder:
    """Events and erasures ascend each; put together they must be sorted."""
    if not len(found.erased):
        return LogOrder(places=found.index, source=None)
    places = np.concatenate([found.index, found.erased])
    source = np.argsort(places)
    return LogOrder(places=places[source], source=source)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinctItems:
    """The distinct items of m records."""

    ids: list[str]  # [i]
    hashes: NDArray[np.uint64]  # [i]
    code: NDArray[np.int64]  # [m] index in `ids`; -1: no item


def distinct_items(column: pl.Series, order: LogOrder) -> DistinctItems:
    """Item ids in order of first appearance, each hashed once."""
    # A text that is new is given the next code by C alone.
    codes: defaultdict[str | None, int] = defaultdict(count().__next__, {None: -1})
    code = np.fromiter(map(codes.__getitem__, column.to_list()), np.int64, len(column))
    ids = [item for item in codes if item is not None]
    return DistinctItems(ids=ids, hashes=hash_ids(ids), code=_ordered(code, order, -1))


def event_columns(
    origin: Callable[[int], bytes],
    found: Fit,
    order: LogOrder,
    items: DistinctItems,
    row: NDArray[np.int64],
) -> EventColumns:
    """
    The fit records, each for its row [m].

    Args:
        origin: where the record at a place first was: its hash is the id of an erasure.
    """
    frame = found.frame
    origins = [hash_id(origin(at).decode()) for at in found.erased.tolist()]
    ids = np.append(hash_texts(frame["event_id"]), np.array(origins, np.uint64))
    value = frame["value"].to_numpy().astype(np.float32)  # null is NaN
    return EventColumns(
        row=row,
        event_id=ids if order.source is None else ids[order.source],
        item=np.append(items.hashes, np.uint64(0))[items.code],  # code -1 is the appended 0
        event_type=_ordered(frame["event_type"].to_numpy().astype(np.uint8), order, 0),
        event_time_ms=_ordered(frame["event_time"].to_numpy(), order, 0),
        value=_ordered(value, order, np.nan),
        erase=_ordered(np.zeros(len(frame), np.bool_), order, fill=True),
        **_profiles(frame, order),
    )


def _profiles(frame: pl.DataFrame, order: LogOrder) -> dict[str, NDArray[Any]]:
    """Loose attributes of PROFILE events; an event of another type brings none."""
    at = np.flatnonzero(frame["event_type"].to_numpy() == EventType.PROFILE)
    if not len(at):
        return {}
    lists = frame["profile"].gather(at)
    loose = lists.explode(empty_as_null=False).struct.unnest()
    event = np.repeat(at, lists.list.len().to_numpy())
    if order.source is not None:
        place = np.empty(len(order.source), np.int64)
        place[order.source] = np.arange(len(order.source))
        event = place[event]
    return {
        "profile_event": event,
        "profile_name": hash_ids(loose["name"].to_list()),
        "profile_value": hash_ids(loose["value"].to_list()),
    }


def _ordered(column: NDArray[Any], order: LogOrder, fill: Any) -> NDArray[Any]:
    """A column of the events in the order of the log, erasures filled."""
    if order.source is None:
        return column
    missing = np.full(len(order.source) - len(column), fill, column.dtype)
    return np.concatenate([column, missing])[order.source]
