"""
From assembled requests to picked items: each arm's model on its users, popular items where it
fails, and the shadow beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from features.assemble import ItemFeatures, LaterItems, UserFeatures, assemble_items
from features.declare import FeatureSet, ItemContext, UserContext
from features.hashing import hash_ids
from features.texts import Chosen
from inference.model import Model, Scored
from inference.requests import Asked
from inference.rules import DEPTH, Candidates, Rule, applied
from schemas.errors import ModelFault

if TYPE_CHECKING:
    from features.items import ItemTable

log = structlog.get_logger(__name__)

T = TypeVar("T")
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePolicy:
    """How models are called."""

    spare: int = 16  # asked for beyond k: room for items that are not available or not known (yet)
    rank_rows: int = 20_000  # candidates in one model call, at most, unless one request has more
    rules: tuple[Rule, ...] = ()  # on what is retrieved
    faults: int = 16  # model calls that may fail while a batch is bisected; then it falls back


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """n requests, ready to be scored."""

    asked: Sequence[Asked]
    context: UserContext
    users: UserFeatures
    exclude: NDArray[np.uint64]  # [n, e] 0 pads
    candidates: Sequence[tuple[str, ...]]  # [n] distinct, without the excluded; empty: retrieve


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """What one request gets, best first."""

    ids: Sequence[str]
    hashes: NDArray[np.uint64]
    scores: NDArray[np.float32]


class Scorer:
    """Runs one model on part of a batch."""

    def __init__(self, features: FeatureSet, items: ItemTable, policy: ScorePolicy) -> None:
        self._features = features
        self._items = items
        self._policy = policy

    def picks(self, model: Model, batch: Assembled, index: Index) -> dict[int, Pick]:
        """
        Picks of the requests `index` by their place in the batch.

        Requests on which the model fails are left out; one that poisons its batch is found by
        bisecting, unless too many calls fail: then the model is at fault.
        """
        wide = [i for i in index.tolist() if batch.candidates[i]]
        plain = [i for i in index.tolist() if not batch.candidates[i]]
        found: dict[int, Pick] = {}
        faults = Faults(self._policy.faults)
        for part in _by_k(batch, plain):
            found |= isolated(lambda at: self._retrieved(model, batch, at), part, faults)
        for part in self._rank_parts(batch, wide):
            found |= isolated(lambda at: self._ranked(model, batch, at), part, faults)
        if faults.last is not None:
            ref = model.ref
            log.error("serve.model_fault", version=ref.version, error=str(faults.last))
        return found

    def _retrieved(self, model: Model, batch: Assembled, index: Index) -> dict[int, Pick]:
        ks = np.array([batch.asked[i].request.k for i in index.tolist()])
        most, spare = int(ks.max()), self._policy.spare if len(self._items) else 0
        rules = self._policy.rules
        depth = DEPTH * most if rules else most
        found = model.retrieve(_taken(batch.users, index), batch.exclude[index], depth + spare)
        at, scores = self._known(found), found.scores
        if rules:
            ruled = applied(rules, Candidates(at=at, scores=scores, items=self._items), most)
            at, scores = ruled.at, ruled.scores
        keep = at >= 0
        keep &= np.cumsum(keep, axis=1) <= ks[:, None]
        kept, scores = at[keep], scores[keep]
        hashes, ids = self._items.hashes[kept], Chosen(self._items.ids, kept)
        picks, start = {}, 0
        for i, stop in zip(index.tolist(), np.cumsum(keep.sum(axis=1)).tolist(), strict=True):
            picks[i] = Pick(
                ids=ids.part(start, stop), hashes=hashes[start:stop], scores=scores[start:stop]
            )
            start = stop
        return picks

    def _known(self, found: Scored) -> Index:
        """[n, k] places in the item table of what may be recommended; -1 for the rest."""
        flat = found.items.ravel()
        at = self._items.index(flat)
        good = (at >= 0) & (flat != 0) & np.isfinite(found.scores.ravel())
        good[good] = self._items.available[at[good]]
        return np.where(good, at, -1).reshape(found.items.shape)

    def _ranked(self, model: Model, batch: Assembled, index: Index) -> dict[int, Pick]:
        lists = [batch.candidates[i] for i in index.tolist()]
        wide = max(map(len, lists))
        hashes = np.zeros((len(lists), wide), np.uint64)
        for row, ids in enumerate(lists):
            hashes[row, : len(ids)] = hash_ids(ids)
        owner = np.repeat(index, wide)
        flat = hashes.ravel()
        shown = LaterItems(len(flat), lambda: self.item_features(batch, owner, flat))
        scores = model.rank(_taken(batch.users, index), hashes, shown)
        picks = {}
        for row, (i, ids) in enumerate(zip(index.tolist(), lists, strict=True)):
            k = batch.asked[i].request.k
            order = np.argsort(-scores[row, : len(ids)], kind="stable")[:k]
            picks[i] = Pick(
                ids=tuple(ids[j] for j in order.tolist()),
                hashes=hashes[row, order],
                scores=scores[row, order],
            )
        return picks

    def item_features(
        self, batch: Assembled, request: Index, hashes: NDArray[np.uint64]
    ) -> ItemFeatures:
        """Features of m items, each for one request of the batch."""
        context = ItemContext(
            users=batch.context,
            request=request,
            hashes=hashes,
            items=self._items,
            index=self._items.index(hashes),
        )
        return assemble_items(self._features, context)

    def _rank_parts(self, batch: Assembled, index: list[int]) -> list[Index]:
        """Parts whose padded candidates fit one call; the longest lists first, to pad little."""
        parts: list[list[int]] = []
        for i in sorted(index, key=lambda i: -len(batch.candidates[i])):
            longest = len(batch.candidates[parts[-1][0]]) if parts else 0
            if parts and longest * (len(parts[-1]) + 1) <= self._policy.rank_rows:
                parts[-1].append(i)
            else:
                parts.append([i])
        return [np.array(part, np.int64) for part in parts]


class Faults:
    """How many model calls may still fail."""

    def __init__(self, allowed: int) -> None:
        self.left = allowed
        self.last: ModelFault | None = None


def isolated(
    run: Callable[[Index], dict[int, Pick]], index: Index, faults: Faults
) -> dict[int, Pick]:
    """
    `run` on all of `index`; on a ModelFault on its halves, until those that fail alone are left.

    Gives up on what is left once no more faults are allowed: then it is not one request's fault.
    """
    if not len(index) or not faults.left:
        return {}
    try:
        return run(index)
    except ModelFault as fault:
        faults.left -= 1
        faults.last = fault
    if len(index) == 1:
        return {}
    middle = len(index) // 2
    return isolated(run, index[:middle], faults) | isolated(run, index[middle:], faults)


def _by_k(batch: Assembled, index: list[int]) -> list[Index]:
    """Requests for few items apart from those for many: a batch computes its largest k for all."""
    few = [i for i in index if batch.asked[i].request.k <= 50]
    many = [i for i in index if batch.asked[i].request.k > 50]
    return [np.array(part, np.int64) for part in (few, many) if part]


def _taken(users: UserFeatures, index: Index) -> UserFeatures:
    if len(index) == len(users):
        return users  # index is ascending: these are all of them in order
    return UserFeatures(longs=users.longs[index], floats=users.floats[index])
