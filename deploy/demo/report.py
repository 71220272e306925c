"""The report of a run: counts, latencies, scores, alerts, releases, and what had to hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from deploy.demo.observe import Answered, Seen, quantiles
from deploy.demo.plan import DemoPlan, Invariant
from deploy.demo.run import Course, Demo
from deploy.demo.score import Score
from retrain.drift.alerts import ACT

if TYPE_CHECKING:
    from deploy.demo.audit import Audit


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that a report is made of."""

    plan: DemoPlan
    course: Course
    seen: Seen
    audit: Audit
    windows: list[dict[str, Any]]
    latencies_s: list[float]
    movielens: dict[int, Score]


def findings(demo: Demo, audit: Audit) -> Findings:
    """What a finished run and its audit found."""
    assert demo.traffic is not None
    scores = demo.traffic.scores
    found = {version: scores.score(version) for version in scores.versions()}
    return Findings(
        plan=demo.plan,
        course=demo.course,
        seen=demo.seen,
        audit=audit,
        windows=demo.windows.windows,
        latencies_s=demo.traffic.latencies_s,
        movielens={version: score for version, score in found.items() if score is not None},
    )


def report(found: Findings) -> dict[str, Any]:
    """The report as JSON values; `ok` says whether every invariant held."""
    checks = list(invariants(found))
    audit, seen, course = found.audit, found.seen, found.course
    return {
        "ok": all(check.ok for check in checks),
        "invariants": [asdict(check) for check in checks],
        "topics": audit.records,
        "lost": audit.unanswered + audit.unfolded,
        "doubled": audit.answered_twice + audit.folded_twice,
        "folded": audit.folded,
        "duplicates": audit.duplicates,
        "late": audit.late,
        "dead_letters": audit.dead_letters,
        "freshness_s": quantiles(seen.freshness_s),
        "latency_s": quantiles(found.latencies_s),
        "serving_latency_s": quantiles([a.total_us / 1e6 for a in seen.answers if a.surface]),
        "movielens": {str(v): asdict(s) for v, s in found.movielens.items()},
        "after_change": {str(v): asdict(s) for v, s in audit.after_change.items()},
        "after_change_difference": asdict(audit.difference) if audit.difference else None,
        "answers_by": [
            {"surface": surface, "version": version, "arm": arm, "answers": count}
            for (surface, version, arm), count in sorted(seen.shares.items())
        ],
        "alerts": [
            {
                "severity": alert.severity,
                "subject": alert.subject,
                "message": alert.message,
                "seconds_after_change": (alert.window_end - course.flip_at_ms) / 1000,
            }
            for alert in seen.alerts
        ],
        "releases": [
            {
                "at_s": (link.at - course.started_ms) / 1000,
                "from": link.from_state,
                "to": link.to_state,
                "version": link.version,
                "reason": link.reason,
            }
            for link in seen.transitions
        ],
        "swap_stall_s": _swap_stall_s(seen.answers),
        "phases_s": course.phases_s,
        "seconds": (course.ended_ms - course.started_ms) / 1000,
    }


def invariants(found: Findings) -> Iterator[Invariant]:
    """What must hold after every run."""
    audit = found.audit
    yield Invariant(
        name="every request answered exactly once",
        ok=audit.unanswered == 0 and audit.answered_twice == 0 and audit.requests > 0,
        detail=f"{audit.requests} requests, {audit.unanswered} without an answer, "
        f"{audit.answered_twice} answered more than once",
    )
    yield Invariant(
        name="every event folded exactly once",
        ok=audit.unfolded == 0 and audit.folded_twice == 0 and audit.folded > 0,
        detail=f"{audit.events} distinct events = {audit.folded} folded + {audit.late} late + "
        f"{audit.rejected} rejected; {audit.duplicates} duplicates recognised",
    )
    yield Invariant(
        name="rows rebuilt from the log equal the live rows",
        ok=audit.rows_equal > 0 and audit.rows_unequal == 0,
        detail=f"{audit.rows_equal} rows equal byte for byte, {audit.rows_unequal} not",
    )
    yield from _drift(found)
    yield from _models(found)


def _drift(found: Findings) -> Iterator[Invariant]:
    flip = found.course.flip_at_ms
    acts = [alert for alert in found.seen.alerts if alert.severity == ACT]
    frozen = [w for w in found.windows if w["windows_to_go"] == 0]
    first = frozen[0]["end"] if frozen else 0
    early = [alert for alert in acts if alert.window_end <= flip]
    yield Invariant(
        name="no ACT alert between freeze and change",
        ok=0 < first < flip and not early,
        detail=f"reference frozen {(flip - first) / 1000:.1f} s before the change, "
        f"{len(early)} ACT alerts before it",
    )
    window_ms = frozen[0]["end"] - frozen[0]["window"] if frozen else 1
    after = [
        math.ceil((alert.window_end - flip) / window_ms) for alert in acts if alert not in early
    ]
    yield Invariant(
        name="an ACT alert soon after the change",
        ok=bool(after) and after[0] <= found.plan.alert_windows,
        detail=f"after {after[0] if after else 'no'} windows of {window_ms / 1000:g} s, "
        f"at most {found.plan.alert_windows} expected",
    )


def _models(found: Findings) -> Iterator[Invariant]:
    stable = found.seen.releases[-1][1].stable if found.seen.releases else 0
    yield Invariant(
        name="the retrained model serves at the end",
        ok=stable > 1,
        detail=f"version {stable} is stable",
    )
    difference = found.audit.difference
    yield Invariant(
        name="the retrained model beats the old one after the change",
        ok=difference is not None and difference.low > 0,
        detail="not measured"
        if difference is None
        else f"NDCG@10 a user {difference.mean:+.4f} [{difference.low:+.4f}, "
        f"{difference.high:+.4f}], {difference.users} users",
    )
    first = found.movielens.get(1)
    yield Invariant(
        name="the model beats popularity on MovieLens traffic",
        ok=first is not None and first.difference > 0,
        detail="not measured"
        if first is None
        else f"NDCG@10 a user {first.difference:+.4f} [{first.low:+.4f}, {first.high:+.4f}], "
        f"hit rate {first.hit_rate:.3f} against {first.popularity_hit_rate:.3f}, "
        f"{first.requests} requests of {first.users} users",
    )


def _swap_stall_s(answers: list[Answered]) -> dict[str, float]:
    """The longest time without any answer around the first answer of each new version."""
    first: dict[int, float] = {}
    for answer in answers:
        first.setdefault(answer.version, answer.at_s)
    stalls = {}
    for version, at_s in list(first.items())[1:]:
        near = [a.at_s for a in answers if abs(a.at_s - at_s) <= 2.0]
        gaps = [b - a for a, b in pairwise(near)]
        stalls[str(version)] = max(gaps, default=0.0)
    return stalls
