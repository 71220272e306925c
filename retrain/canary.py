"""
Shadow and canary: a pure decision from a step's evidence to wait, go on, or roll back.

Guards are anytime-valid: they may be looked at after every answer, and a version no worse than its
limit is rolled back with probability at most alpha over its whole life (Ville's inequality). Too
little traffic is never a pass: the step goes on, and after the longest bake it stops and holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from schemas.events import Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPolicy:
    """Steps and limits. Shares are basis points of users."""

    shadow_answers: int = 200_000
    shares: tuple[int, ...] = (100, 500, 2_500)  # then 10,000: the version becomes stable
    step_answers: int = 2_000  # of the canary, in each step
    least_step_ms: int = 3_600_000
    longest_step_ms: int = 24 * 3_600_000
    alpha: float = 0.01
    fault_limit: float = 0.005  # share of faulty answers nobody minds, above the champion's
    slow_limit: float = 0.02  # share of slow answers nobody minds, above the champion's
    slow_factor: float = 1.5  # slow: slower than the champion's p99 by this factor

    def __post_init__(self) -> None:
        if list(self.shares) != sorted(set(self.shares)) or not all(
            0 < s < 10_000 for s in self.shares
        ):
            raise ValueError(f"shares must grow within (0, 10000), got {self.shares}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCounts:
    """Answers of one arm since the step began."""

    answers: int = 0
    faults: int = 0  # the model failed, gave NaN, or too few items
    slow: int = 0  # scored slower than the champion's p99

    def share(self, name: str) -> float:
        """A count as a share of the answers."""
        return float(getattr(self, name)) / self.answers if self.answers else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvidence:
    """What one step has gathered. `challenger` is the shadow or the canary."""

    challenger: ArmCounts
    champion: ArmCounts
    elapsed_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoOn:
    """The next step may begin."""

    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True)
class Bake:
    """Not enough seen yet."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBack:
    """Take the version out at once and quarantine it. All reasons, not the first."""

    reasons: tuple[str, ...]
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """The longest bake is over without enough traffic: take the version out, hold, tell."""

    reason: str


StepVerdict: TypeAlias = GoOn | Bake | RollBack | Stop


def judge_step(evidence: StepEvidence, least_answers: int, policy: RolloutPolicy) -> StepVerdict:
    """
    What to do with a challenger now.

    >>> good = StepEvidence(challenger=ArmCounts(answers=10), champion=ArmCounts(), elapsed_ms=0)
    >>> judge_step(good, 100, RolloutPolicy())
    Bake(reason='10 of 100 answers')
    """
    seen = evidence.challenger
    limits = {
        "faults": min(0.5, evidence.champion.share("faults") + policy.fault_limit),
        "slow": min(0.5, max(0.01, evidence.champion.share("slow")) + policy.slow_limit),
    }
    values = {n: evidence_above(getattr(seen, n), seen.answers, limits[n]) for n in limits}
    measures = [Measure(name="answers", value=float(seen.answers))]
    for name in limits:
        measures.append(Measure(name=f"{name}_share", value=seen.share(name)))
        measures.append(Measure(name=f"{name}_e", value=values[name]))
    reasons = tuple(
        f"{name}: {seen.share(name):.3f} of {seen.answers} answers, limit {limits[name]:.3f}"
        for name in limits
        if values[name] >= len(limits) / policy.alpha
    )
    if reasons:
        return RollBack(reasons=reasons, measures=tuple(measures))
    if seen.answers < least_answers or evidence.elapsed_ms < policy.least_step_ms:
        if evidence.elapsed_ms > policy.longest_step_ms:
            return Stop(f"{seen.answers} of {least_answers} answers in the longest bake")
        return Bake(f"{seen.answers} of {least_answers} answers")
    return GoOn(measures=tuple(measures))


def evidence_above(count: int, trials: int, limit: float) -> float:
    """
    E-value against "the share is at most `limit`"; may be looked at any time.

    The mean of likelihood ratios of larger shares to the limit: each is a nonnegative
    supermartingale under every share up to the limit (Ramdas et al. 2023, section 3).

    >>> evidence_above(0, 100, 0.01) < 1 < 100 < evidence_above(20, 100, 0.01)
    True
    """
    larger = [limit + (1 - limit) * f for f in (0.01, 0.03, 0.1, 0.3, 0.6, 0.9)]
    logs = [
        count * math.log(p / limit) + (trials - count) * math.log((1 - p) / (1 - limit))
        for p in larger
    ]
    return sum(math.exp(min(log, 600.0)) for log in logs) / len(logs)
