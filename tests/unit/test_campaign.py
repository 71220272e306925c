"""The challenger's life: every transition follows from facts, and the log alone restores it."""

from dataclasses import replace

import pytest

from inference.release import Why, appended, first, shadow, start_canary
from retrain.campaign import (
    Accepted,
    BeginShadow,
    BeginTraining,
    Facts,
    GiveShare,
    Move,
    Promote,
    Rejected,
    Rest,
    Situation,
    State,
    TakeOut,
    folded,
    plan,
)
from retrain.canary import ArmCounts, RolloutPolicy
from retrain.steps import Campaign, Standing, writes
from retrain.trigger import Alarm, Seen, TriggerPolicy
from schemas.errors import Refused
from schemas.events import EventType, Release

TRIGGER = TriggerPolicy(cooldown_ms=1_000, least_lists=10, least_positives=3)
ROLLOUT = RolloutPolicy(
    shadow_answers=50, step_answers=20, least_step_ms=0, longest_step_ms=60_000, shares=(100, 500)
)
CAMPAIGN = Campaign(
    model_name="m",
    profile="demo",
    surface="",
    targets=(EventType.CLICK,),
    trigger=TRIGGER,
    rollout=ROLLOUT,
)
WHY = Why(at_ms=1, reason="test")
ALARM = Seen(
    now_ms=100_000,
    alarm=Alarm(alert_ids=("a",), changed_at_ms=90_000),
    lists_since_change=10,
    positives_since_change=3,
)
GOOD = ArmCounts(answers=1_000)
BAD = ArmCounts(answers=30, faults=30)


def act(
    situation: Situation, facts: Facts, release: Release | None
) -> tuple[Situation, Release | None]:
    """One tick: plan, write, fold."""
    action = plan(situation, facts, TRIGGER, ROLLOUT)
    standing = Standing(
        situation=situation, release=release, alert_ids=("a",), now_ms=facts.seen.now_ms
    )
    written = writes(action, standing, CAMPAIGN)
    if written is None:
        return situation, release
    return folded(situation, appended(None, written.step)), written.release or release


def at(state: State, **changes: object) -> Situation:
    return replace(Situation(state=state, version=2), **changes)  # type: ignore[arg-type]


def test_the_whole_way_from_alarm_to_stable() -> None:
    situation, release = Situation(), first("m", 1, WHY)
    states, shares = [], []
    for outcome in (None, Accepted(version=2), None, None, None, None):
        facts = Facts(seen=ALARM, outcome=outcome, serving=release, challenger=GOOD)
        situation, release = act(situation, facts, release)
        states.append(situation.state)
        shares.append(release.canary_share if release else 0)
    assert states == [
        State.TRAINING,
        State.GATED,
        State.SHADOW,
        State.CANARY,
        State.CANARY,
        State.STABLE,
    ]
    assert shares == [0, 0, 0, 100, 500, 0]
    assert release is not None
    assert (release.stable, release.previous, release.canary, release.shadow) == (2, 1, 0, 0)


def test_an_alarm_is_trained_for_once() -> None:
    situation = at(State.IDLE, keys=frozenset({"drift:a#0"}))
    action = plan(situation, Facts(seen=ALARM), TRIGGER, ROLLOUT)
    assert action == Move(to=State.CONFIRMED, reason="this alarm has been trained for")


def test_a_rejected_challenger_leads_to_another_attempt_after_a_longer_cooldown() -> None:
    situation, _ = act(Situation(), Facts(seen=ALARM), None)
    situation, _ = act(situation, Facts(seen=ALARM, outcome=Rejected(reasons=("worse",))), None)
    assert (situation.state, situation.rejected_in_row) == (State.IDLE, 1)
    early = replace(ALARM, trained_at_ms=situation.trained_at_ms, rejected_in_row=1)
    assert isinstance(plan(situation, Facts(seen=early), TRIGGER, ROLLOUT), Move)
    late = replace(early, now_ms=early.now_ms + 2_000)
    again = plan(situation, Facts(seen=late), TRIGGER, ROLLOUT)
    assert isinstance(again, BeginTraining)
    assert again.decision.key == "drift:a#1"


@pytest.mark.parametrize("state", [State.SHADOW, State.CANARY])
def test_faults_take_a_challenger_out_and_leave_the_champion(state: State) -> None:
    base = first("m", 1, WHY)
    release = shadow(base, 2, WHY) if state == State.SHADOW else start_canary(base, 2, 100, WHY)
    facts = Facts(seen=ALARM, serving=release, challenger=BAD)
    action = plan(at(state), facts, TRIGGER, ROLLOUT)
    assert isinstance(action, TakeOut)
    assert action.faulty
    situation, after = act(at(state), facts, release)
    assert after is not None
    assert situation.state == State.IDLE
    assert (after.stable, after.canary, after.shadow) == (1, 0, 0)
    assert after.generation > release.generation


def test_a_canary_taken_out_by_hand_is_given_up() -> None:
    facts = Facts(seen=ALARM, serving=first("m", 1, WHY), challenger=GOOD)
    action = plan(at(State.CANARY), facts, TRIGGER, ROLLOUT)
    assert isinstance(action, Move)
    assert action.to == State.IDLE


def test_an_incident_holds_and_its_end_releases() -> None:
    broken = replace(ALARM, incident="labels untrusted")
    held, _ = act(Situation(), Facts(seen=broken), None)
    assert held.state == State.HOLD
    assert isinstance(plan(held, Facts(seen=broken), TRIGGER, ROLLOUT), Rest)
    calm = Seen(now_ms=0)
    assert plan(held, Facts(seen=calm), TRIGGER, ROLLOUT) == Move(to=State.IDLE, reason="no alarm")


def test_a_warning_is_a_suspicion_only() -> None:
    action = plan(Situation(), Facts(seen=Seen(now_ms=0), warned=True), TRIGGER, ROLLOUT)
    assert action == Move(to=State.SUSPECT, reason="no alarm")


def test_a_crash_after_the_gate_goes_on_with_the_shadow() -> None:
    assert plan(at(State.GATED), Facts(seen=ALARM), TRIGGER, ROLLOUT) == BeginShadow(version=2)


def test_without_a_first_release_a_step_is_refused_with_the_command() -> None:
    standing = Standing(situation=at(State.GATED), release=None, alert_ids=(), now_ms=1)
    with pytest.raises(Refused, match="millstream release promote 2"):
        writes(BeginShadow(version=2), standing, CAMPAIGN)


def test_the_share_grows_and_then_everybody() -> None:
    facts = Facts(seen=ALARM, challenger=GOOD)
    wider = plan(at(State.CANARY, share=100), facts, TRIGGER, ROLLOUT)
    assert isinstance(wider, GiveShare)
    assert wider.share == 500
    assert isinstance(plan(at(State.CANARY, share=500), facts, TRIGGER, ROLLOUT), Promote)
