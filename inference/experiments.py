"""
Experiments: which users take part, which arm they get, and how two arms share one list.

Sticky (a user keeps the arm for the experiment's life), nested (who takes part at 1 % does so at
5 %) and independent: taking part and the arm are two hashes, both salted with the experiment's
name, so that a user's place in one experiment, in a rollout or in a partition says nothing about
the place in another.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.hashing import salted
from inference.scorer import Pick
from schemas.events import Experiment, Release

NOT_IN_IT: Final = -1
ALL_USERS: Final = 10_000  # basis points
MOST_WEIGHT: Final = 1_000_000
INTERLEAVED: Final = "interleaved:"  # before the teams, where an arm's name would stand
_COINS: Final = 64  # of one hash


def assign(experiment: Experiment, users: NDArray[np.uint64]) -> NDArray[np.int64]:
    """
    Index of each user's arm, [n]; NOT_IN_IT for those who take no part.

    >>> from schemas.events import ExperimentArm
    >>> arms = (ExperimentArm(name="a", version=1), ExperimentArm(name="b", version=2, weight=3))
    >>> found = assign(Experiment(name="e", arms=arms), np.arange(4_000, dtype=np.uint64))
    >>> np.bincount(found) // 100
    array([ 9, 30])
    """
    taking_part = salted(users, f"experiment:{experiment.name}") % np.uint64(ALL_USERS)
    edges = np.cumsum([arm.weight for arm in experiment.arms])
    place = salted(users, f"experiment:{experiment.name}:arm") % np.uint64(edges[-1])
    arm = np.searchsorted(edges, place.astype(np.int64), side="right")
    return np.where(taking_part < np.uint64(experiment.share), arm, NOT_IN_IT)


def compared(release: Release) -> tuple[int, ...]:
    """The versions of all its experiments, each once."""
    return tuple(dict.fromkeys(arm.version for one in release.experiments for arm in one.arms))


def problem_of(experiment: Experiment) -> str:
    """Why it makes no sense, or an empty text."""
    arms = experiment.arms
    names = [arm.name for arm in arms]
    found = [
        "" if experiment.name.strip() else "the name is empty",
        "" if len(arms) >= 2 else f"at least two arms are compared, got {len(arms)}",
        "" if all(name.strip() for name in names) else "an arm's name is empty",
        *(f"arm {n!r} begins with {INTERLEAVED!r}" for n in names if n.startswith(INTERLEAVED)),
        "" if len(set(names)) == len(names) else f"two arms of one name among {', '.join(names)}",
        (
            ""
            if 1 <= experiment.share <= ALL_USERS
            else f"a share is 1 to {ALL_USERS} basis points, got {experiment.share}"
        ),
        *(
            f"weight of arm {arm.name!r} must be 1 to {MOST_WEIGHT}, got {arm.weight}"
            for arm in arms
            if not 1 <= arm.weight <= MOST_WEIGHT
        ),
        *(f"{arm.version} is not a version" for arm in arms if arm.version < 1),
    ]
    if experiment.interleaved:
        found += [
            "" if len(arms) == 2 else f"two versions are interleaved, got {len(arms)}",
            "" if len({a.version for a in arms}) == len(arms) else "both arms are one version",
        ]
    return "; ".join(text for text in found if text)


def coins(experiment: Experiment, requests: NDArray[np.uint64], rounds: int) -> NDArray[np.uint8]:
    """
    Who drafts first in each round of each request, [n, rounds]: 0 or 1, the same when repeated.

    Args:
        requests: [n] hashes of request ids.
    """
    hashes = [
        salted(requests, f"experiment:{experiment.name}:coin:{block}")
        for block in range(-(-rounds // _COINS))
    ]
    bits = [(one[:, None] >> np.arange(_COINS, dtype=np.uint64)) & np.uint64(1) for one in hashes]
    return np.concatenate(bits, axis=1)[:, :rounds].astype(np.uint8)


def drafted(a: Pick, b: Pick, k: int, first: NDArray[np.uint8]) -> tuple[Pick, str]:
    """
    One list of two, and the team of each of its items: "0" for a, "1" for b.

    Team draft (Radlinski, Kurup and Joachims, "How does clickthrough data reflect retrieval
    quality?", CIKM 2008): in each round a coin says which team drafts first; a team drafts its best
    item that is not in the list yet. Whoever runs out of items leaves the rest to the other.

    Args:
        first: [rounds] the team that drafts first.

    >>> def pick(ids):
    ...     n = len(ids)
    ...     return Pick(ids=ids, hashes=np.zeros(n, np.uint64), scores=np.arange(n, 0, -1.0))
    >>> found, teams = drafted(pick("xyz"), pick("xwv"), 4, np.array([0, 1], np.uint8))
    >>> "".join(found.ids), teams
    ('xwvy', '0110')
    """
    picks, names, at = (a, b), (list(a.ids), list(b.ids)), [0, 0]
    taken: set[str] = set()
    order: list[tuple[int, int]] = []
    for turn in range(2 * len(first)):
        team = int(first[turn // 2]) ^ (turn % 2)
        ids = names[team]
        while at[team] < len(ids) and ids[at[team]] in taken:
            at[team] += 1
        if len(order) < k and at[team] < len(ids):
            taken.add(ids[at[team]])
            order.append((team, at[team]))
    found = Pick(
        ids=tuple(names[team][place] for team, place in order),
        hashes=np.array([picks[team].hashes[place] for team, place in order], np.uint64),
        scores=np.array([picks[team].scores[place] for team, place in order], np.float32),
    )
    return found, "".join(str(team) for team, _ in order)
