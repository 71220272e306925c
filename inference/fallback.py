"""What is answered when no model can: the items that most users chose lately."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemsShown, UserFeatures
from inference.constant import ConstantModel
from inference.model import ModelRef, Scored
from ingest.clock import Clock
from schemas.events import EventType

if TYPE_CHECKING:
    from features.items import ItemTable

NAME = "popularity"


class PopularityModel:
    """
    Ranks items by how often they were chosen. Implements `inference.model.Model`.

    >>> model = PopularityModel("f", np.array([5, 7], np.uint64), np.array([1, 9]))
    >>> one = UserFeatures(longs=np.zeros((1, 0), np.int64), floats=np.zeros((1, 0), np.float32))
    >>> model.retrieve(one, np.zeros((1, 0), np.uint64), 2).items.tolist()
    [[7, 5]]
    """

    def __init__(
        self, fingerprint: str, items: NDArray[np.uint64], counts: NDArray[np.int64]
    ) -> None:
        ref = ModelRef(name=NAME, version=0, fingerprint=fingerprint)
        self._ranking = ConstantModel(ref, items, np.log1p(counts).astype(np.float32))

    @property
    def ref(self) -> ModelRef:
        return self._ranking.ref

    def retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        return self._ranking.retrieve(users, exclude, k)

    def rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemsShown
    ) -> NDArray[np.float32]:
        return self._ranking.rank(users, candidates, items)

    def close(self) -> None:
        self._ranking.close()


class Popular:
    """The popularity model of the item table, counted anew every `every_s`."""

    def __init__(
        self,
        fingerprint: str,
        items: ItemTable,
        targets: tuple[EventType, ...],
        clock: Clock,
        *,
        every_s: float = 10.0,
    ) -> None:
        self._fingerprint = fingerprint
        self._items = items
        self._targets = targets
        self._clock = clock
        self._every_s = every_s
        self._counted_s = float("-inf")
        self._counted_items = -1
        self._model = PopularityModel(fingerprint, np.zeros(0, np.uint64), np.zeros(0, np.int64))

    def model(self) -> PopularityModel:
        """The present ranking. One thread at a time."""
        now_s = self._clock.monotonic_s()
        # A table that fills up at start is counted at once: an empty ranking answers nothing.
        grown = self._counted_items <= 0 < len(self._items)
        if grown or now_s - self._counted_s >= self._every_s:
            self._counted_s, self._counted_items = now_s, len(self._items)
            self._model = popularity(
                self._fingerprint, self._items, self._targets, self._clock.now_ms()
            )
        return self._model


def popularity(
    fingerprint: str, items: ItemTable, targets: tuple[EventType, ...], now_ms: int
) -> PopularityModel:
    """Available items by their positive events of the last 30 days and, again, the last 24 h."""
    n = len(items)
    index = np.flatnonzero(items.available[:n])
    counts = items.window_counts(index, targets, now_ms, days=30)
    counts = counts + items.window_counts(index, targets, now_ms, hours=24)
    return PopularityModel(fingerprint, items.hashes[index], counts)
