"""Shadow and canary steps: faults roll back at once, silence never promotes."""

import numpy as np
import pytest

from retrain.canary import (
    ArmCounts,
    Bake,
    GoOn,
    RollBack,
    RolloutPolicy,
    StepEvidence,
    Stop,
    evidence_above,
    judge_step,
)

POLICY = RolloutPolicy(step_answers=100, least_step_ms=1_000, longest_step_ms=10_000)


def evidence(
    answers: int = 0, faults: int = 0, slow: int = 0, elapsed_ms: int = 2_000
) -> StepEvidence:
    return StepEvidence(
        challenger=ArmCounts(answers=answers, faults=faults, slow=slow),
        champion=ArmCounts(answers=10_000, faults=10, slow=100),
        elapsed_ms=elapsed_ms,
    )


def test_a_sound_canary_goes_on() -> None:
    assert isinstance(judge_step(evidence(answers=100), 100, POLICY), GoOn)


def test_faults_roll_back_before_the_step_is_full() -> None:
    verdict = judge_step(evidence(answers=10, faults=5), 100, POLICY)
    assert isinstance(verdict, RollBack)
    assert verdict.reasons == ("faults: 0.500 of 10 answers, limit 0.006",)


def test_all_reasons_are_told() -> None:
    verdict = judge_step(evidence(answers=40, faults=20, slow=30), 100, POLICY)
    assert isinstance(verdict, RollBack)
    assert len(verdict.reasons) == 2


def test_no_traffic_is_not_a_pass() -> None:
    assert judge_step(evidence(), 100, POLICY) == Bake("0 of 100 answers")
    assert isinstance(judge_step(evidence(elapsed_ms=10_001), 100, POLICY), Stop)


def test_a_full_step_still_bakes_its_least_time() -> None:
    assert isinstance(judge_step(evidence(answers=500, elapsed_ms=999), 100, POLICY), Bake)


def test_looking_all_the_time_raises_few_false_alarms() -> None:
    rng = np.random.default_rng(0)
    limit, alarms = 0.02, 0
    for _ in range(200):
        counts = np.cumsum(rng.random(1_000) < limit)
        alarms += any(
            evidence_above(int(counts[n]), n + 1, limit) >= 100 for n in range(0, 1_000, 5)
        )
    assert alarms <= 6, "alpha is 1 %"


def test_shares_must_grow() -> None:
    with pytest.raises(ValueError, match="shares must grow"):
        RolloutPolicy(shares=(500, 100))
