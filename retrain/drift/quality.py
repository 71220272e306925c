"""
The fast path: faults of the data that one window shows without any statistics of drift.

A fault stops retraining rather than causing it: half of the answers without features is an
incident, and what was learned from it would be poison.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityCounts:
    """Additive counts of a window's answers."""

    answers: int = 0
    fallbacks: int = 0
    without_row: int = 0
    non_finite: int = 0
    stale: int = 0
    joined: int = 0  # lists of which an impression came back

    @classmethod
    def total(cls, parts: Iterable[QualityCounts]) -> Self:
        """The sum of several windows."""
        listed = list(parts)
        return cls(**{f.name: sum(getattr(p, f.name) for p in listed) for f in fields(cls)})

    def share(self, name: str) -> float:
        """A count as a share of the answers; 0 when there are none."""
        return float(getattr(self, name)) / self.answers if self.answers else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPolicy:
    """How far a share may exceed the reference's before it is a fault."""

    least_answers: int = 50
    rise: float = 0.25  # of all answers
    join_fall: float = 0.5  # the join rate, as a factor of the reference's


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One broken thing, with the numbers."""

    name: str
    seen: float
    expected: float
    breaks_labels: bool


def faults(
    seen: QualityCounts, reference: QualityCounts, policy: QualityPolicy
) -> tuple[Fault, ...]:
    """
    Faults of one window against the reference.

    >>> ordinary = QualityCounts(answers=1000, joined=900)
    >>> outage = QualityCounts(answers=100, joined=3)
    >>> [f.name for f in faults(outage, ordinary, QualityPolicy())]
    ['joined']
    """
    if seen.answers < policy.least_answers:
        return ()
    found = [
        Fault(name=name, seen=seen.share(name), expected=reference.share(name), breaks_labels=False)
        for name in ("fallbacks", "without_row", "non_finite", "stale")
        if seen.share(name) > reference.share(name) + policy.rise
    ]
    expected = reference.share("joined")
    if expected > 0 and seen.share("joined") < policy.join_fall * expected:
        found.append(
            Fault(name="joined", seen=seen.share("joined"), expected=expected, breaks_labels=True)
        )
    return tuple(found)
