"""What goes into the fold and what comes out of it, beside the rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.rows import Rows
from features.tiles import EARLIEST_MS, LATEST_MS


def _numbers() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _hashes() -> NDArray[np.uint64]:
    return np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventColumns:
    """
    n events of one partition in log order, each for one of the rows that are folded with it.

    `profile_*` are the loose attributes of PROFILE events, [a], in log order too.
    """

    row: NDArray[np.int64]  # [n] index of the user's row
    event_id: NDArray[np.uint64]  # [n] hash of the event's id; of the origin where `erase`
    item: NDArray[np.uint64]  # [n] item hash; 0: none
    event_type: NDArray[np.uint8]  # [n]
    event_time_ms: NDArray[np.int64]  # [n] not read where `erase`
    value: NDArray[np.float32]  # [n] NaN: none
    erase: NDArray[np.bool_]  # [n] a null value: the row starts empty from here
    profile_event: NDArray[np.int64] = field(default_factory=_numbers)  # [a] index of the event
    profile_name: NDArray[np.uint64] = field(default_factory=_hashes)  # [a] hash of the name
    profile_value: NDArray[np.uint64] = field(default_factory=_hashes)  # [a] hash of the value

    def __post_init__(self) -> None:
        for name in (*EVENT_FIELDS, *_PROFILE_FIELDS):
            wanted = len(self.row) if name in EVENT_FIELDS else len(self.profile_event)
            if len(getattr(self, name)) != wanted:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, not {wanted}")
        time = self.event_time_ms[~self.erase]
        if len(time) and not EARLIEST_MS <= time.min() <= time.max() <= LATEST_MS:
            raise ValueError(f"event times out of range: {time.min()} to {time.max()}")

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: NDArray[np.int64]) -> EventColumns:
        """Events `index[0]`, `index[1]`, ..., each at most once, with their attributes."""
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in EVENT_FIELDS}
        if len(self.profile_event):
            place = np.full(len(self), -1, np.int64)
            place[index] = np.arange(len(index))
            moved = place[self.profile_event]
            kept = np.flatnonzero(moved >= 0)
            kept = kept[np.argsort(moved[kept], kind="stable")]
            columns["profile_event"] = moved[kept]
            columns["profile_name"] = self.profile_name[kept]
            columns["profile_value"] = self.profile_value[kept]
        return EventColumns(**columns)


EVENT_FIELDS = ("row", "event_id", "item", "event_type", "event_time_ms", "value", "erase")
_PROFILE_FIELDS = ("profile_event", "profile_name", "profile_value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """The rows after the events, and what became of each, [n] in the order given; else: erased."""

    rows: Rows
    accepted: NDArray[np.bool_]  # folded into its row: these go into the items' partials too
    duplicate: NDArray[np.bool_]
    late: NDArray[np.bool_]
    restarted: NDArray[np.bool_]  # its row started afresh before it
