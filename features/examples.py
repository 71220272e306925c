"""
Examples as columns: one example is one item of one list, as served, with what followed.

The features are those of the moment when the item was shown; the labels count the user's events on
the item within the attribution window, by event type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemFeatures, UserFeatures
from schemas.events import EventType

LABELS = len(EventType)


class ExampleSource(StrEnum):
    """Where an example comes from."""

    SERVED = "served"  # the label join: an answer of ours
    HISTORY = "history"  # the backfill: shown by others, or done without being shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """n examples; every column has n entries or rows."""

    request_id: Sequence[str]  # of history that nobody asked for: the event's own id
    user_id: Sequence[str]
    item_id: Sequence[str]
    source: Sequence[str]
    surface: Sequence[str]  # empty: not given
    fingerprint: str  # of the feature set, the same for all
    position: NDArray[np.int64]  # in the list, from 0; -1: not in a list
    event_time: NDArray[np.int64]  # ms, when the item was shown
    model_version: NDArray[np.int64]  # 0: no model
    events_partition: NDArray[np.int64]
    events_offset: NDArray[np.int64]  # the row held user-events before this offset, and no other
    item_hash: NDArray[np.uint64]
    users: UserFeatures
    items: ItemFeatures
    labels: NDArray[np.int64]  # [n, LABELS] events on the item in the window, by EventType

    def __post_init__(self) -> None:
        n = len(self.position)
        lengths = {
            name: len(getattr(self, name)) for name in self.__slots__ if name != "fingerprint"
        }
        wrong = {name: found for name, found in lengths.items() if found != n}
        if wrong:
            raise ValueError(f"{n} examples, but columns of other lengths: {wrong}")
        if self.labels.shape != (n, LABELS):
            raise ValueError(f"labels are [{n}, {LABELS}], got {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.position)


def take(examples: Examples, index: NDArray[np.int64]) -> Examples:
    """The examples at these places, in this order."""
    at = index.tolist()
    return Examples(
        request_id=[examples.request_id[i] for i in at],
        user_id=[examples.user_id[i] for i in at],
        item_id=[examples.item_id[i] for i in at],
        source=[examples.source[i] for i in at],
        surface=[examples.surface[i] for i in at],
        fingerprint=examples.fingerprint,
        position=examples.position[index],
        event_time=examples.event_time[index],
        model_version=examples.model_version[index],
        events_partition=examples.events_partition[index],
        events_offset=examples.events_offset[index],
        item_hash=examples.item_hash[index],
        users=UserFeatures(longs=examples.users.longs[index], floats=examples.users.floats[index]),
        items=ItemFeatures(longs=examples.items.longs[index], floats=examples.items.floats[index]),
        labels=examples.labels[index],
    )


def concat(parts: Sequence[Examples]) -> Examples:
    """
    All parts after one another.

    Raises:
        ValueError: no part, or parts of different feature sets.
    """
    if not parts:
        raise ValueError("nothing to concatenate")
    sets = {part.fingerprint for part in parts}
    if len(sets) > 1:
        raise ValueError(f"examples of different feature sets: {', '.join(sorted(sets))}")
    first = parts[0]
    if len(parts) == 1:
        return first
    return Examples(
        request_id=[text for part in parts for text in part.request_id],
        user_id=[text for part in parts for text in part.user_id],
        item_id=[text for part in parts for text in part.item_id],
        source=[text for part in parts for text in part.source],
        surface=[text for part in parts for text in part.surface],
        fingerprint=first.fingerprint,
        position=np.concatenate([part.position for part in parts]),
        event_time=np.concatenate([part.event_time for part in parts]),
        model_version=np.concatenate([part.model_version for part in parts]),
        events_partition=np.concatenate([part.events_partition for part in parts]),
        events_offset=np.concatenate([part.events_offset for part in parts]),
        item_hash=np.concatenate([part.item_hash for part in parts]),
        users=UserFeatures(
            longs=np.concatenate([part.users.longs for part in parts]),
            floats=np.concatenate([part.users.floats for part in parts]),
        ),
        items=ItemFeatures(
            longs=np.concatenate([part.items.longs for part in parts]),
            floats=np.concatenate([part.items.floats for part in parts]),
        ),
        labels=np.concatenate([part.labels for part in parts]),
    )
