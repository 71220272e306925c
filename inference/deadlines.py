"""Whose deadline has passed, and who would be answered too late."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inference.answers import closed
from inference.batcher import Cost
from inference.requests import Asked
from schemas.events import Recommendation, Status


def expired(one: Asked, now_ms: int) -> Recommendation | None:
    """The answer to a request whose deadline has passed: it is not scored."""
    deadline_ms = one.request.deadline_ms
    if deadline_ms is None or now_ms <= one.timestamp_ms + deadline_ms:
        return None
    late_ms = now_ms - one.timestamp_ms - deadline_ms
    return closed(one, Status.EXPIRED, f"taken up {late_ms} ms after its deadline")


def too_late(asked: Sequence[Asked], now_ms: int, cost: Cost | None) -> NDArray[np.bool_]:
    """
    [n] who would get a model's answer only after the deadline, as far as is known.

    Args:
        cost: of a call; None: nobody is too late for one.
    """
    if cost is None:
        return np.zeros(len(asked), bool)
    done_ms = now_ms + 1000 * cost.predict(len(asked))
    return np.array(
        [
            one.request.deadline_ms is not None
            and done_ms > one.timestamp_ms + one.request.deadline_ms
            for one in asked
        ],
        bool,
    )
