"""
The frozen questions of an evaluation: what users were about to do, after the training's time.

Built once from examples and put to every model alike, so that reports compare user by user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.assemble import ItemFeatures, UserFeatures
from features.declare import FeatureSet
from features.examples import Examples, ExampleSource, take
from features.hashing import hash_ids
from retrain.report import HoldoutFacts
from retrain.roles import history_items
from retrain.split import is_positive
from schemas.errors import Refused

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPolicy:
    """How an evaluation is run."""

    k: int = 10
    batch: int = 32  # of the timed calls: what serving sends
    new_user_history: int = 5  # interactions: with fewer a user counts as new
    most_requests: int = 50_000  # of the holdout: the newest
    most_shown: int = 20  # candidates of a list that are ranked for the AUC
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """n lists of which something was chosen and something was not, for the AUC."""

    row: NDArray[np.int64]  # [n] the request
    candidates: Hashes  # [n, c]; 0 pads
    items: ItemFeatures  # [n * c]
    chosen: NDArray[np.bool_]  # [n, c]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """n requests in the order of their event time, and what each user then did."""

    facts: HoldoutFacts
    users: UserFeatures  # [n]
    user: Hashes  # [n]
    seen: Hashes  # [n, e] items that must not be recommended; 0 pads
    truth_row: NDArray[np.int64]  # [m] the request of each choice
    truth_item: Hashes  # [m]
    slices: Mapping[str, NDArray[np.bool_]]  # [n] each
    shown: Shown | None

    def __len__(self) -> int:
        return len(self.user)


def fair(examples: Examples, least: int) -> Examples:
    """
    Examples that judge every model alike: choices made without a list of ours, if enough.

    A choice from a list can only be an item that the serving model put there; on such choices the
    champion is judged by its own proposals, and a challenger by the champion's.
    """
    alone = np.flatnonzero([source == ExampleSource.HISTORY for source in examples.source])
    return take(examples, alone) if len(alone) >= least else examples


def hold_out(
    examples: Examples,
    features: FeatureSet,
    policy: EvaluationPolicy,
    *,
    head: Hashes | None = None,
) -> Holdout:
    """
    The questions of an evaluation: each list of which something was chosen that was not seen yet.

    Args:
        examples: those after the training's cut.
        head: the popular items of the training's time, for the slices head and tail.

    Raises:
        Refused: nobody chose anything.
    """
    at = np.flatnonzero(is_positive(examples.labels))
    seen = history_items(features, examples.users.longs[at])
    at = at[~(seen == examples.item_hash[at, None]).any(axis=1)]
    if not len(at):
        raise Refused("nobody chose anything new in the holdout: nothing to evaluate on")
    first, row = _requests(examples, at, policy.most_requests)
    at, row = at[row >= 0], row[row >= 0]
    users = UserFeatures(longs=examples.users.longs[first], floats=examples.users.floats[first])
    user = hash_ids([examples.user_id[i] for i in first])
    truth_item = examples.item_hash[at]
    seen = history_items(features, users.longs)
    return Holdout(
        facts=_facts(examples, first, user, row, truth_item),
        users=users,
        user=user,
        seen=seen,
        truth_row=row,
        truth_item=truth_item,
        slices=_slices(examples, first, seen, policy, (row, truth_item, head)),
        shown=_shown(examples, first, policy),
    )


def _requests(
    examples: Examples, at: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    The newest requests among the examples `at`, in order of time.

    Returns:
        The first example of each request [n], and the request of each of `at` (-1: none).
    """
    ids = np.array([examples.request_id[i] for i in at])
    _, start, code = np.unique(ids, return_index=True, return_inverse=True)
    first = at[start]
    order = np.lexsort((first, examples.event_time[first]))[-most:]
    place = np.full(len(first), -1, np.int64)
    place[order] = np.arange(len(order))
    return first[order], place[code.ravel()]


def _facts(
    examples: Examples,
    first: NDArray[np.int64],
    user: Hashes,
    truth_row: NDArray[np.int64],
    truth_item: Hashes,
) -> HoldoutFacts:
    digest = hashlib.sha256()
    for part in (user, examples.event_time[first], truth_row, truth_item):
        digest.update(np.ascontiguousarray(part).tobytes())
    return HoldoutFacts(
        digest=digest.hexdigest()[:16],
        from_ms=int(examples.event_time[first[0]]),
        until_ms=int(examples.event_time[first[-1]]),
        requests=len(first),
        users=len(np.unique(user)),
    )


def _slices(
    examples: Examples,
    first: NDArray[np.int64],
    seen: Hashes,
    policy: EvaluationPolicy,
    truth: tuple[NDArray[np.int64], Hashes, Hashes | None],
) -> dict[str, NDArray[np.bool_]]:
    """The requests by surface, of new users, and for popular and other items."""
    surface = np.array([examples.surface[i] or "none" for i in first])
    found = {f"surface:{name}": surface == name for name in np.unique(surface).tolist()}
    found["new users"] = (seen != 0).sum(axis=1) < policy.new_user_history
    row, item, head = truth
    if head is not None:
        popular = np.zeros(len(first), bool)
        popular[row[np.isin(item, head)]] = True
        found["head"], found["tail"] = popular, ~popular
    return found


def _shown(examples: Examples, first: NDArray[np.int64], policy: EvaluationPolicy) -> Shown | None:
    """Lists of the holdout with both chosen and other items, cut at `most_shown`."""
    place = {examples.request_id[i]: row for row, i in enumerate(first)}
    row = np.array([place.get(r, -1) for r in examples.request_id], np.int64)
    at = np.flatnonzero(row >= 0)
    at = at[np.lexsort((examples.position[at], row[at]))]
    positive = is_positive(examples.labels[at])
    n_shown = np.bincount(row[at], minlength=len(first))
    n_chosen = np.bincount(row[at], weights=positive, minlength=len(first))
    mixed = (n_chosen > 0) & (n_chosen < n_shown)
    if not mixed.any():
        return None
    keep = mixed[row[at]]
    at, positive = at[keep], positive[keep]
    lists, where = np.unique(row[at], return_inverse=True)
    column = np.arange(len(at)) - np.searchsorted(where, where)
    inside = column < policy.most_shown
    at, positive, where, column = at[inside], positive[inside], where[inside], column[inside]
    wide = int(column.max()) + 1
    cell = where * wide + column
    chosen = np.zeros((len(lists), wide), bool)
    chosen[where, column] = positive
    candidates = np.zeros((len(lists), wide), np.uint64)
    candidates[where, column] = examples.item_hash[at]
    longs = np.zeros((chosen.size, examples.items.longs.shape[1]), np.int64)
    floats = np.zeros((chosen.size, examples.items.floats.shape[1]), np.float32)
    longs[cell], floats[cell] = examples.items.longs[at], examples.items.floats[at]
    return Shown(
        row=lists,
        candidates=candidates,
        items=ItemFeatures(longs=longs, floats=floats),
        chosen=chosen,
    )
