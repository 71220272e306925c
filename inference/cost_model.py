"""
How long a model call takes: `a + b * rows`, fitted while serving.

Recursive least squares with exponential forgetting (Haykin, Adaptive Filter Theory, 4th ed.,
chapter 9) of relative errors, since long calls scatter more. What lies far off pulls no more than
what lies at the limit (Huber 1964): a garbage collection moves the line little, a model that became
slower moves it within some dozen calls.

Calls of one size, as in a quiet night, say nothing of the slope. Forgetting alone would grow unsure
of it without end, until a single slow call moved the line anywhere: what is known is kept as the
matrix of second moments, which never falls below `LEAST_KNOWN` of one call.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from inference.batcher import Cost

FORGET: Final = 0.98  # a call counts half after 34 more
HUBER: Final = 3.0  # typical errors; beyond, an error's pull grows no more
LEAST_KNOWN: Final = 0.05  # of a call, in each direction
_LEAST_S: Final = 1e-5  # relative errors of shorter calls mean nothing
_LEAST_ERROR: Final = 0.02  # calls are never more alike than this
_FIRST: Final = 8  # calls that nothing is held against
_ROWS_UNIT: Final = 64.0  # rows are scaled to about 1, or the fit is ill-conditioned


class CostModel:
    """
    Seconds of a call by its rows. Thread-safe.

    >>> model = CostModel((4, 64))
    >>> for rows in (1, 64, 3, 60) * 20:
    ...     model.observe(rows, 0.002 + 0.0001 * model.padded(rows))
    >>> round(model.predict(64), 4), model.predict(1) == model.predict(4)
    (0.0084, True)
    """

    def __init__(self, sizes: Sequence[int], first_s: float = 0.005) -> None:
        """
        Args:
            sizes: what calls are padded to, ascending; larger calls are cut into the largest.
            first_s: of any call, until there are observations.
        """
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"sizes must be at least 1 and ascend, got {list(sizes)}")
        self._sizes = tuple(sizes)
        self._lock = threading.Lock()
        self._line = (first_s, 0.0)  # seconds, and seconds per _ROWS_UNIT rows
        # The observations' weighted second moments, [2, 2] and symmetric.
        self._known = (0.0, 0.0, 0.0)
        self._typical = 0.2  # relative error
        self._seen = 0

    @property
    def fixed_s(self) -> float:
        """`a`: seconds of a call without rows."""
        return max(0.0, self._line[0])

    @property
    def per_row_s(self) -> float:
        """`b`: seconds of each row."""
        return max(0.0, self._line[1] / _ROWS_UNIT)

    def padded(self, rows: int) -> int:
        """Rows that are computed for so many."""
        whole, rest = divmod(rows, self._sizes[-1])
        size = self._sizes[bisect_left(self._sizes, rest)] if rest else 0
        return whole * self._sizes[-1] + size

    def predict(self, rows: int) -> float:
        """Seconds that a call with so many rows takes; none: 0."""
        if rows <= 0:
            return 0.0
        calls = -(-rows // self._sizes[-1])
        fixed, slope = self._line
        return max(0.0, calls * fixed + slope * self.padded(rows) / _ROWS_UNIT)

    def observe(self, rows: int, took_s: float) -> None:
        """Learn from a call with `rows` at least 1 and at most the largest size."""
        x = self.padded(rows) / _ROWS_UNIT
        with self._lock:
            fixed, slope = self._line
            error = took_s - fixed - slope * x
            size_s = max(_LEAST_S, fixed + slope * x, took_s / 4)
            weight = self._weight(abs(error) / size_s) / size_s**2
            least = LEAST_KNOWN / size_s**2 * (1 - FORGET if self._seen > 1 else 1)
            p, q, r = (FORGET * known for known in self._known)
            p, q, r = p + weight + least, q + weight * x, r + weight * x * x + least
            pull = weight * error / (p * r - q * q)
            self._line = (fixed + (r - q * x) * pull, slope + (p * x - q) * pull)
            self._known = (p, q, r)

    def _weight(self, error: float) -> float:
        """Huber's, of a relative error: 1 for an ordinary one, less for one that is far off."""
        self._seen += 1
        limit = HUBER * self._typical
        if self._seen <= _FIRST or error <= limit:
            self._typical += (max(error, _LEAST_ERROR) - self._typical) * (1 - FORGET)
            return 1.0
        # An error that stays is no outlier: what is typical grows to it little by little.
        self._typical *= 1.05
        return limit / error


class TogetherCost:
    """Of things that follow each other. Implements `inference.batcher.Cost`."""

    def __init__(self, *costs: Cost) -> None:
        self._costs = costs

    def predict(self, rows: int) -> float:
        return sum(cost.predict(rows) for cost in self._costs)
