"""Whose deadline has passed, and who would be answered too late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.answers import closed
from inference.batcher import Cost
from inference.requests import Asked
from ingest.clock import Clock
from schemas.events import Recommendation, Status

# Nobody is too late by costs that are older: a slow spell in which nobody gets a model would be the
# last thing known of it.
BELIEVED_S: Final = 1.0


def expired(one: Asked, now_ms: int) -> Recommendation | None:
    """The answer to a request whose deadline has passed: it is not scored."""
    deadline_ms = one.request.deadline_ms
    if deadline_ms is None or now_ms <= one.timestamp_ms + deadline_ms:
        return None
    late_ms = now_ms - one.timestamp_ms - deadline_ms
    return closed(one, Status.EXPIRED, f"taken up {late_ms} ms after its deadline")


class TooLate:
    """
    Tells who would get a model's answer only after the deadline, as far as is known.

    If nobody got one for `BELIEVED_S`, nobody is too late: what a call costs is learnt anew.
    """

    def __init__(self, cost: Cost | None, clock: Clock) -> None:
        """`cost`: from now to the answer; None: nobody is too late."""
        self._cost = cost
        self._clock = clock
        self._asked_s = clock.monotonic_s()  # when a model was last asked

    def among(self, asked: Sequence[Asked]) -> NDArray[np.bool_]:
        """[n] whether each is too late, if all were scored in one call that begins now."""
        now_s, late = self._clock.monotonic_s(), np.zeros(len(asked), bool)
        if self._cost is not None and now_s - self._asked_s <= BELIEVED_S:
            done_ms = self._clock.now_ms() + 1000 * self._cost.predict(len(asked))
            for i, one in enumerate(asked):
                deadline_ms = one.request.deadline_ms
                late[i] = deadline_ms is not None and done_ms > one.timestamp_ms + deadline_ms
        if not late.all():
            self._asked_s = now_s
        return late
