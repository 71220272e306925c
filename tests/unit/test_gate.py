"""The gate tells everything that speaks against a challenger; missing evidence is no pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features.audit_record import AuditRecord, Outcome
from retrain import gate
from retrain.gate import DEMO_GATE, Accept, Approval, Audited, GatePolicy, Refuse, Verdict
from retrain.report import Cost, HoldoutFacts, Integrity, Report, SliceScores, UserScores

USERS = 3_000
HOLDOUT = HoldoutFacts(digest="d", from_ms=1, until_ms=2, requests=12_000, users=USERS)


def scores(level: float, users: int = USERS) -> UserScores:
    noise = np.random.default_rng(7).normal(0, 0.05, users)
    value = np.clip(level + noise, 0, 1)
    return UserScores(
        users=np.arange(1, users + 1, dtype=np.uint64),
        requests=np.full(users, 4),
        hit_rate=value,
        ndcg=value,
        mrr=value,
    )


def report(level: float, **changed: object) -> Report:
    usual = Report(
        model="m",
        version=0,
        fingerprint="f",
        k=10,
        holdout=HOLDOUT,
        overall=scores(level),
        slices=(SliceScores(name="tail", scores=scores(level)),),
        coverage=0.5,
        finite=True,
        cost=Cost(batch=32, p50_ms=4, p99_ms=9, size_bytes=1_000_000),
        integrity=Integrity(finite=True, parity=1e-6),
    )
    return replace(usual, **changed)


def codes(verdict: object) -> set[str]:
    assert isinstance(verdict, Refuse), verdict
    return {reason.code for reason in verdict.reasons}


def audited(outcome: Outcome, *reasons: str, age_ms: int = 0) -> Audited:
    record = AuditRecord(
        fingerprint="f",
        at_ms=0,
        outcome=outcome,
        reasons=reasons,
        users=1,
        answers=500,
        items=5_000,
    )
    return Audited(record=record, age_ms=age_ms)


PASSED = audited("PASS")


def judge(*reports: object, audit: Audited | None = PASSED, **given: object) -> Verdict:
    """The gate's judgement, with an audit that passed unless a test says otherwise."""
    return gate.judge(*reports, audit=audit, **given)


CHAMPION = report(0.30, version=3)
POPULAR = report(0.10, cost=None, integrity=None)


def test_a_better_challenger_is_accepted_with_its_numbers() -> None:
    verdict = judge(report(0.32), CHAMPION, POPULAR, GatePolicy())
    assert isinstance(verdict, Accept)
    found = {m.name: m.value for m in verdict.measures}
    assert found["gain_low"] > 0.015
    assert found["lead_low"] > 0.2


def test_an_equal_challenger_is_not_inferior() -> None:
    assert isinstance(judge(report(0.30), CHAMPION, POPULAR, GatePolicy()), Accept)


def test_a_worse_challenger_is_refused() -> None:
    verdict = judge(report(0.29), CHAMPION, POPULAR, GatePolicy())
    assert codes(verdict) == {"champion", "slice"}
    assert "-0.0100" in str(verdict.reasons[0])


def test_what_does_not_beat_popularity_is_refused() -> None:
    verdict = judge(report(0.10), report(0.10), POPULAR, GatePolicy())
    assert codes(verdict) == {"popularity"}


def test_a_bad_slice_refuses_a_model_that_is_better_overall() -> None:
    bad = SliceScores(name="tail", scores=scores(0.25))
    verdict = judge(report(0.35, slices=(bad,)), CHAMPION, POPULAR, GatePolicy())
    assert codes(verdict) == {"slice"}


def test_a_small_slice_is_not_judged() -> None:
    bad = SliceScores(name="tail", scores=scores(0.20, users=40))
    champion = replace(CHAMPION, slices=(SliceScores(name="tail", scores=scores(0.3, users=40)),))
    assert isinstance(judge(report(0.35, slices=(bad,)), champion, POPULAR, GatePolicy()), Accept)


@pytest.mark.parametrize(
    "changed",
    [
        {"integrity": None},
        {"cost": None},
        {"probabilities": True},
        {"holdout": replace(HOLDOUT, users=1_999)},
        {"holdout": replace(HOLDOUT, requests=9_999)},
    ],
    ids=str,
)
def test_missing_evidence_is_insufficient_and_not_a_pass(changed: dict) -> None:
    verdict = judge(report(0.5, **changed), CHAMPION, POPULAR, GatePolicy())
    assert codes(verdict) == {"insufficient"}
    assert isinstance(verdict, Refuse)
    assert verdict.insufficient


def test_reports_on_different_holdouts_are_not_compared() -> None:
    other = replace(CHAMPION, holdout=replace(HOLDOUT, digest="other"))
    assert codes(judge(report(0.5), other, POPULAR, GatePolicy())) == {"insufficient"}


@pytest.mark.parametrize(
    "changed",
    [
        {"finite": False},
        {"integrity": Integrity(finite=False, parity=0)},
        {"integrity": Integrity(finite=True, parity=2e-5)},
        {"integrity": Integrity(finite=True, parity=float("nan"))},
        {"integrity": Integrity(finite=True, parity=0, problem="rank: input is missing")},
    ],
    ids=str,
)
def test_a_model_that_is_not_whole_is_refused(changed: dict) -> None:
    assert codes(judge(report(0.5, **changed), CHAMPION, POPULAR, GatePolicy())) == {"integrity"}


@pytest.mark.parametrize(
    "changed",
    [
        {"cost": Cost(batch=32, p50_ms=4, p99_ms=12, size_bytes=1_000_000)},
        {"cost": Cost(batch=32, p50_ms=4, p99_ms=9, size_bytes=1_300_000)},
    ],
    ids=["slow", "fat"],
)
def test_a_slow_or_fat_model_is_refused(changed: dict) -> None:
    assert codes(judge(report(0.5, **changed), CHAMPION, POPULAR, GatePolicy())) == {"cost"}


def test_a_narrow_model_is_refused() -> None:
    verdict = judge(report(0.5, coverage=0.44), CHAMPION, POPULAR, GatePolicy())
    assert codes(verdict) == {"coverage"}


def test_miscalibrated_probabilities_are_refused_where_scores_are_probabilities() -> None:
    off = {"calibration": 1.04}
    assert isinstance(judge(report(0.5, **off), CHAMPION, POPULAR, GatePolicy()), Accept)
    verdict = judge(report(0.5, probabilities=True, **off), CHAMPION, POPULAR, GatePolicy())
    assert codes(verdict) == {"calibration"}


def test_a_first_model_needs_a_person() -> None:
    assert codes(judge(report(0.5), None, POPULAR, GatePolicy())) == {"bootstrap"}
    approved = judge(report(0.5), None, POPULAR, GatePolicy(), approval=Approval(by="Ada"))
    assert isinstance(approved, Accept)


def test_a_person_cannot_approve_a_first_model_below_the_floor() -> None:
    low, none = report(0.011), report(0.0, cost=None)
    low = replace(low, overall=replace(low.overall, hit_rate=np.full(USERS, 0.01)))
    verdict = judge(low, None, none, GatePolicy(), approval=Approval(by="Ada"))
    assert "bootstrap" in codes(verdict)


def test_all_reasons_are_told_not_the_first() -> None:
    bad = report(
        0.05,
        finite=False,
        coverage=0.0,
        cost=Cost(batch=32, p50_ms=90, p99_ms=99, size_bytes=9_000_000),
    )
    expected = {"integrity", "champion", "popularity", "slice", "coverage", "cost"}
    assert codes(judge(bad, CHAMPION, POPULAR, GatePolicy())) == expected


def test_the_demo_relaxes_numbers_not_rules() -> None:
    assert codes(judge(report(0.5), None, POPULAR, DEMO_GATE)) == {"bootstrap"}
    assert "champion" in codes(judge(report(0.2), CHAMPION, POPULAR, DEMO_GATE))


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        (None, "run `millstream audit`"),
        (audited("INSUFFICIENT", "answers: 3 compared, at least 200 asked"), "answers: 3"),
        (audited("PASS", age_ms=25 * 3_600_000), "25.0 h old"),
    ],
    ids=["none", "insufficient", "old"],
)
def test_without_a_fresh_audit_there_is_too_little_evidence(
    audit: Audited | None, said: str
) -> None:
    verdict = judge(report(0.32), CHAMPION, POPULAR, GatePolicy(), audit=audit)
    assert codes(verdict) == {"insufficient"}
    assert said in str(verdict.reasons[0])
    off = replace(GatePolicy(), audit_age_ms=None)
    assert isinstance(judge(report(0.32), CHAMPION, POPULAR, off, audit=audit), Accept)


def test_a_first_model_needs_no_audit_of_what_nobody_served() -> None:
    ada = Approval(by="Ada")
    verdict = judge(report(0.5), None, POPULAR, GatePolicy(), approval=ada, audit=None)
    assert isinstance(verdict, Accept)


@pytest.mark.parametrize("policy", [GatePolicy(), DEMO_GATE], ids=["production", "demo"])
@pytest.mark.parametrize("champion", [CHAMPION, None], ids=["challenger", "first"])
def test_skew_refuses_under_every_policy_however_old(
    policy: GatePolicy, champion: Report | None
) -> None:
    skewed = audited("SKEWED", "row: 3 of 500 answers, in user_recency (3)", age_ms=10**10)
    ada = Approval(by="Ada")
    verdict = judge(report(0.5), champion, POPULAR, policy, approval=ada, audit=skewed)
    assert "audit" in codes(verdict)
    assert "audit: row: 3 of 500 answers" in "\n".join(map(str, verdict.reasons))


def test_the_audit_is_among_the_numbers_of_an_accepted_challenger() -> None:
    verdict = judge(report(0.32), CHAMPION, POPULAR, GatePolicy())
    assert {m.name: m.value for m in verdict.measures}["audited_answers"] == 500
