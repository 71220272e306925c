"""
Which version answers whom: a pure hash of user and rollout.

Sticky (the same user gets the same arm for a canary's life) and nested (who was in at 1 % is in at
5 %), since the rollout_id alone salts the hash and the share only moves the threshold.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.hashing import salted
from schemas.events import Arm, Release

ARMS: Final = (Arm.NONE, Arm.STABLE, Arm.CANARY)  # by index, in the schema's order
_ALL = np.uint64(10_000)


def arms(release: Release, user_hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """
    Arm of each user, [n] uint8 indexes into ARMS.

    >>> import numpy as np
    >>> everybody = Release(model_name="m", generation=1, stable=3)
    >>> [ARMS[i].value for i in arms(everybody, np.array([7, 8], np.uint64))]
    ['STABLE', 'STABLE']
    """
    stable = ARMS.index(Arm.STABLE) if release.stable else ARMS.index(Arm.NONE)
    chosen = np.full(len(user_hashes), stable, np.uint8)
    if release.canary:
        chosen[in_canary(release, user_hashes)] = ARMS.index(Arm.CANARY)
    return chosen


def in_canary(release: Release, user_hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each user belongs to the canary's share, [n] bool."""
    bucket = salted(user_hashes, f"rollout:{release.rollout_id}") % _ALL
    return bucket < np.uint64(release.canary_share)
