"""
The gate: a pure verdict on a challenger from reports on the same frozen holdout.

Everything that speaks against it is told, not the first thing only. What was not measured speaks
against it too: missing or insufficient evidence is never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from features.audit_record import AuditRecord
from retrain.ranking import Interval, bootstrap_mean
from retrain.report import Report, UserScores
from schemas.events import Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """Margins, least evidence and limits. The defaults are those of `production`."""

    margin: float = 0.003  # NDCG@k that a challenger may lose: what 100,000 requests can resolve
    confidence: float = 0.95  # of the paired bootstrap; its lower bound decides
    rounds: int = 2_000
    least_users: int = 2_000
    least_requests: int = 10_000
    slice_users: int = 2_000  # a slice with fewer is reported, not judged
    slice_margins: float = 2.0  # a slice may lose this many margins
    slice_alpha: float = 0.05  # over all slices together (Holm)
    calibration: float = 0.03  # |observed / expected - 1|, where scores are probabilities
    coverage_ratio: float = 0.9  # of the champion's
    latency_ratio: float = 1.10  # p99 against the champion's, measured in the same run
    latency_slack_ms: float = 1.0  # the clock's and the scheduler's share of a p99
    size_ratio: float = 1.2
    parity: float = 1e-5  # of exported and trained scores, relative to 1 + |score|
    least_hit_rate: float = 0.02  # of a first model, which has no champion to be compared with
    # What was served is what is learned from: an audit a day costs one fold of the log. None: a
    # missing or old audit is not asked for; one that found skew refuses all the same.
    audit_age_ms: int | None = 24 * 3_600_000

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, got {self.confidence}")
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, got {self.margin}")


# Minutes of traffic on a laptop: tens of requests instead of 10,000, and a shared clock.
DEMO_GATE = GatePolicy(
    margin=0.02,
    least_users=15,
    least_requests=30,
    slice_users=50,
    coverage_ratio=0.25,  # a few hundred choices of the new half do not bring out all of it
    latency_ratio=3.0,
    latency_slack_ms=20.0,
    size_ratio=2.0,
    audit_age_ms=None,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A person lets a first model through although there is no champion."""

    by: str
    why: str = ""

    def __post_init__(self) -> None:
        if not self.by:
            raise ValueError("an approval needs a name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """The last audit of the challenger's feature set, and how long ago it was."""

    record: AuditRecord
    age_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """One thing against a challenger. `code` is stable; the text has the numbers."""

    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """Nothing speaks against it."""

    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """All that speaks against it. `insufficient`: nothing but missing evidence does."""

    reasons: tuple[Objection, ...]
    measures: tuple[Measure, ...]

    @property
    def insufficient(self) -> bool:
        return all(r.code == "insufficient" for r in self.reasons)


Verdict: TypeAlias = Accept | Refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What the rules look at."""

    candidate: Report
    champion: Report | None
    popularity: Report
    policy: GatePolicy
    approval: Approval | None
    audit: Audited | None
    gain: Interval | None  # over the champion, NDCG@k a user
    lead: Interval | None  # over popularity


def judge(
    candidate: Report,
    champion: Report | None,
    popularity: Report,
    policy: GatePolicy,
    *,
    approval: Approval | None = None,
    audit: Audited | None = None,
    seed: int = 0,
) -> Verdict:
    """
    Accept or refuse a challenger.

    Args:
        champion: the report of what serves now, on the same holdout; None if nothing serves.
        approval: who lets a first model through; without a champion and this, it is refused.
        audit: of features as served against the log; None: there was none.
        seed: of the bootstrap; the same reports and seed give the same verdict.
    """
    random = np.random.default_rng(seed)
    gain = compared(candidate, champion, policy, random) if champion else None
    lead = compared(candidate, popularity, policy, random)
    case = _Case(
        candidate=candidate,
        champion=champion,
        popularity=popularity,
        policy=policy,
        approval=approval,
        audit=audit,
        gain=gain,
        lead=lead,
    )
    reasons = tuple(Objection(code=code, text=text) for code, rule in _RULES for text in rule(case))
    measures = _measures(case)
    return Refuse(reasons=reasons, measures=measures) if reasons else Accept(measures=measures)


def compared(
    candidate: Report, other: Report, policy: GatePolicy, random: np.random.Generator
) -> Interval | None:
    """Gain in NDCG@k a user with its interval; None where the two did not see the same users."""
    if candidate.holdout.digest != other.holdout.digest or not len(candidate.overall):
        return None
    return bootstrap_mean(
        candidate.overall.ndcg - other.overall.ndcg,
        random,
        rounds=policy.rounds,
        confidence=policy.confidence,
    )


def _evidence(case: _Case) -> Iterator[str]:
    """What is missing before anything can be judged."""
    holdout, policy = case.candidate.holdout, case.policy
    if holdout.users < policy.least_users:
        yield f"{holdout.users} of at least {policy.least_users} users in the holdout"
    if holdout.requests < policy.least_requests:
        yield f"{holdout.requests} of at least {policy.least_requests} requests in the holdout"
    if case.candidate.integrity is None:
        yield "the exported model was not compared with the trained one"
    if case.candidate.cost is None or (case.champion and case.champion.cost is None):
        yield "latency and size were not measured"
    if case.lead is None:
        yield "popularity was not evaluated on the same holdout"
    if case.champion is not None and case.gain is None:
        yield "the champion was not evaluated on the same holdout"
    if case.candidate.probabilities and case.candidate.calibration is None:
        yield "scores are probabilities, but their calibration was not measured"
    yield from _unaudited(case)


def _unaudited(case: _Case) -> Iterator[str]:
    """Where it is asked for: a first model's examples were not served by anything."""
    longest_ms, audit = case.policy.audit_age_ms, case.audit
    if longest_ms is None or case.champion is None:
        return
    if audit is None:
        yield "features as served were not compared with the log; run `millstream audit`"
    elif audit.record.outcome == "INSUFFICIENT":
        yield f"the audit of features as served: {'; '.join(audit.record.reasons)}"
    elif audit.age_ms > longest_ms:
        age, most = (ms / 3_600_000 for ms in (audit.age_ms, longest_ms))
        yield f"the last audit is {age:.1f} h old, at most {most:g} allowed; run `millstream audit`"


def _audit(case: _Case) -> Iterator[str]:
    """Skew between what was served and what the log gives; only a later audit takes it back."""
    if case.audit is not None and case.audit.record.outcome == "SKEWED":
        yield from case.audit.record.reasons


def _integrity(case: _Case) -> Iterator[str]:
    found = case.candidate.integrity
    if not case.candidate.finite:
        yield "scores on the holdout are not all finite"
    if found is None:
        return
    if not found.finite:
        yield "weights or the training loss are not all finite"
    if not found.parity <= case.policy.parity:
        yield (
            f"exported and trained scores differ by {found.parity:.2g}, "
            f"at most {case.policy.parity:.2g} is allowed"
        )
    if found.problem:
        yield found.problem


def _champion(case: _Case) -> Iterator[str]:
    if case.gain is not None and case.gain.low < -case.policy.margin:
        yield (
            f"NDCG@{case.candidate.k} against the champion {_text(case.gain)}: "
            f"the lower bound is below -{case.policy.margin:g}"
        )


def _baseline(case: _Case) -> Iterator[str]:
    if case.lead is not None and not case.lead.low > 0:
        yield (
            f"NDCG@{case.candidate.k} against popularity {_text(case.lead)}: "
            "the lower bound is not above 0"
        )


def _bootstrap(case: _Case) -> Iterator[str]:
    if case.champion is not None:
        return
    if case.approval is None:
        yield "there is no champion; a first model needs a person's approval"
    rate = case.candidate.overall.mean_hit_rate
    if not rate >= case.policy.least_hit_rate:
        yield f"hit rate {rate:.4f} of a first model is below {case.policy.least_hit_rate:g}"


def _slices(case: _Case) -> Iterator[str]:
    """Slices that are significantly worse than the margin allows, Holm over all that are judged."""
    if case.champion is None or case.gain is None:
        return
    limit = -case.policy.slice_margins * case.policy.margin
    theirs = {s.name: s.scores for s in case.champion.slices}
    found = []
    for ours in case.candidate.slices:
        other = theirs.get(ours.name)
        if other is None or not np.array_equal(other.users, ours.scores.users):
            yield f"{ours.name}: the champion has no such slice"
        elif len(other) >= case.policy.slice_users:
            found.append((_p_worse(ours.scores, other, limit), ours.name, ours.scores, other))
    for place, (p, name, mine, other) in enumerate(sorted(found, key=lambda one: one[:2])):
        if p > case.policy.slice_alpha / (len(found) - place):
            break
        change = mine.mean_ndcg - other.mean_ndcg
        yield f"{name}: NDCG changed by {change:+.4f}, {limit:g} is the limit (p={p:.2g})"


def _p_worse(mine: UserScores, theirs: UserScores, limit: float) -> float:
    """One-sided p-value of "the mean difference is not below `limit`" (normal, paired by user)."""
    difference = mine.ndcg - theirs.ndcg
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else 0
    if error == 0:
        return 0.0 if float(difference.mean()) < limit else 1.0
    z = (float(difference.mean()) - limit) / error
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _calibration(case: _Case) -> Iterator[str]:
    found = case.candidate.calibration
    if not case.candidate.probabilities or found is None:
        return
    if not abs(found - 1) <= case.policy.calibration:
        yield f"observed / expected is {found:.3f}, within {case.policy.calibration:g} of 1 asked"


def _coverage(case: _Case) -> Iterator[str]:
    # Without a champion the floor is popularity's: more of the catalogue than one list for all.
    other = case.champion or case.popularity
    limit = case.policy.coverage_ratio * other.coverage
    if not case.candidate.coverage >= limit:
        yield f"{case.candidate.coverage:.4f} of the catalogue is shown, at least {limit:.4f} asked"


def _cost(case: _Case) -> Iterator[str]:
    ours = case.candidate.cost
    theirs = case.champion.cost if case.champion else None
    if ours is None or theirs is None:
        return
    slow = case.policy.latency_ratio * theirs.p99_ms + case.policy.latency_slack_ms
    if not ours.p99_ms <= slow:
        yield f"p99 {ours.p99_ms:.2f} ms at batch {ours.batch}, at most {slow:.2f} allowed"
    fat = case.policy.size_ratio * theirs.size_bytes
    if not ours.size_bytes <= fat:
        yield f"{ours.size_bytes} bytes on disk, at most {fat:.0f} allowed"


_RULES: Sequence[tuple[str, Callable[[_Case], Iterator[str]]]] = (
    ("insufficient", _evidence),
    ("audit", _audit),
    ("integrity", _integrity),
    ("champion", _champion),
    ("popularity", _baseline),
    ("bootstrap", _bootstrap),
    ("slice", _slices),
    ("calibration", _calibration),
    ("coverage", _coverage),
    ("cost", _cost),
)


def _text(found: Interval) -> str:
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _measures(case: _Case) -> tuple[Measure, ...]:
    """Every number that led to the verdict."""
    found: dict[str, float] = {
        "users": case.candidate.holdout.users,
        "requests": case.candidate.holdout.requests,
        "hit_rate": case.candidate.overall.mean_hit_rate,
        "ndcg": case.candidate.overall.mean_ndcg,
        "coverage": case.candidate.coverage,
        "popularity_hit_rate": case.popularity.overall.mean_hit_rate,
        "popularity_ndcg": case.popularity.overall.mean_ndcg,
    }
    if case.champion is not None:
        found["champion_hit_rate"] = case.champion.overall.mean_hit_rate
        found["champion_ndcg"] = case.champion.overall.mean_ndcg
    for name, interval in (("gain", case.gain), ("lead", case.lead)):
        if interval is not None:
            found |= {
                name: interval.mean,
                f"{name}_low": interval.low,
                f"{name}_high": interval.high,
            }
    if case.candidate.cost is not None:
        found["p99_ms"] = case.candidate.cost.p99_ms
        found["size_bytes"] = case.candidate.cost.size_bytes
    if case.candidate.integrity is not None:
        found["parity"] = case.candidate.integrity.parity
    if case.audit is not None:
        found["audited_answers"] = case.audit.record.answers
        found["audit_age_s"] = case.audit.age_ms / 1000
    return tuple(Measure(name=name, value=float(value)) for name, value in found.items())
