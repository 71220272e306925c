"""The simplest model: the same ranking for everybody. For tests and for evaluation's floor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemsShown, UserFeatures
from inference.model import ModelRef, Scored
from schemas.errors import ModelFault


class ConstantModel:
    """
    Ranks a fixed list of items by fixed scores. Implements `inference.model.Model`.

    >>> ref = ModelRef(name="m", version=1, fingerprint="f")
    >>> model = ConstantModel(ref, np.array([5, 7, 9], np.uint64), np.array([1, 3, 2], np.float32))
    >>> one = UserFeatures(longs=np.zeros((1, 0), np.int64), floats=np.zeros((1, 0), np.float32))
    >>> model.retrieve(one, np.array([[7]], np.uint64), 2).items.tolist()
    [[9, 5]]
    """

    def __init__(
        self, ref: ModelRef, items: NDArray[np.uint64], scores: NDArray[np.float32]
    ) -> None:
        if items.shape != scores.shape:
            raise ValueError(f"{items.shape} items for {scores.shape} scores")
        order = np.argsort(-scores, kind="stable")
        self._ref = ref
        self._items = items[order].astype(np.uint64)
        self._scores = scores[order].astype(np.float32)
        by_hash = np.argsort(self._items)
        self._sorted, self._by_hash = self._items[by_hash], by_hash
        self._closed = False

    @property
    def ref(self) -> ModelRef:
        return self._ref

    def retrieve(self, users: UserFeatures, exclude: NDArray[np.uint64], k: int) -> Scored:
        self._check_open()
        return best(self._items, self._scores, exclude, k)

    def rank(
        self, users: UserFeatures, candidates: NDArray[np.uint64], items: ItemsShown
    ) -> NDArray[np.float32]:
        """Fixed score of each candidate; unknown ones score below all known ones."""
        self._check_open()
        if not len(self._items):
            return np.where(candidates == 0, -np.inf, 0.0).astype(np.float32)
        at = np.minimum(np.searchsorted(self._sorted, candidates), len(self._sorted) - 1)
        known = self._sorted[at] == candidates
        floor = self._scores[-1] - np.float32(1)
        scores = np.where(known, self._scores[self._by_hash[at]], floor)
        return np.where(candidates == 0, -np.inf, scores).astype(np.float32)

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ModelFault(f"{self._ref.name} version {self._ref.version} is closed")


def best(
    items: NDArray[np.uint64], scores: NDArray[np.float32], exclude: NDArray[np.uint64], k: int
) -> Scored:
    """
    The first k of one ranking for each request, less what each excludes; padded with hash 0, -inf.

    Args:
        items: [n] hashes, best first, each once.
        scores: [n].
        exclude: [batch, e]; 0 pads.
    """
    batch, wide = exclude.shape
    top, top_scores = items[: k + wide], scores[: k + wide]
    allowed = np.ones((batch, len(top)), bool)
    if wide and len(top):
        order = np.argsort(top)
        at = np.minimum(np.searchsorted(top[order], exclude), len(top) - 1)
        row, column = np.nonzero(top[order][at] == exclude)
        allowed[row, order[at[row, column]]] = False
    rank = np.cumsum(allowed, axis=1) - 1
    row, column = np.nonzero(allowed & (rank < k))
    found = np.zeros((batch, k), np.uint64)
    found_scores = np.full((batch, k), -np.inf, np.float32)
    found[row, rank[row, column]] = top[column]
    found_scores[row, rank[row, column]] = top_scores[column]
    return Scored(items=found, scores=found_scores)
