"""
The life of a challenger as one state machine, decided purely.

IDLE -> SUSPECT -> CONFIRMED -> TRAINING -> GATED -> SHADOW -> CANARY -> STABLE, with HOLD for data
incidents. The release log holds every transition, so the situation is a fold of that log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from retrain.canary import (
    ArmCounts,
    Bake,
    GoOn,
    RollBack,
    RolloutPolicy,
    StepEvidence,
    Stop,
    judge_step,
)
from retrain.trigger import Hold, Seen, Train, TriggerPolicy, Wait, decide
from schemas.events import Measure, Release, ReleaseTransition


class State(StrEnum):
    """Where a model stands between two releases."""

    IDLE = "IDLE"
    SUSPECT = "SUSPECT"  # a warning stands
    CONFIRMED = "CONFIRMED"  # an ACT alarm stands; data is being gathered
    TRAINING = "TRAINING"
    GATED = "GATED"  # passed the gate, published, not yet asked
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    STABLE = "STABLE"  # the challenger serves everybody; as IDLE for what comes next
    HOLD = "HOLD"  # a data incident stands: nothing is trained


RESTING = (State.IDLE, State.SUSPECT, State.CONFIRMED, State.STABLE, State.HOLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A fold of the release log."""

    state: State = State.IDLE
    version: int = 0  # the challenger, from GATED on
    entered_at_ms: int = 0
    share: int = 0  # basis points, in CANARY
    trained_at_ms: tuple[int, ...] = ()
    rejected_in_row: int = 0
    keys: frozenset[str] = frozenset()  # idempotency keys of trainings begun
    key: str = ""  # of the training under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A training ended in a published, signed version."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A training ended without one: rejected data, a failed run, or the gate said no."""

    reasons: tuple[str, ...]


Outcome: TypeAlias = Accepted | Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the world looks like now."""

    seen: Seen
    warned: bool = False
    outcome: Outcome | None = None
    serving: Release | None = None
    challenger: ArmCounts = field(default_factory=ArmCounts)
    champion: ArmCounts = field(default_factory=ArmCounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """Nothing changes."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Go to another resting state; nothing is released."""

    to: State
    reason: str
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginTraining:
    """Start the job of this decision."""

    decision: Train


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginShadow:
    """Let the version answer unseen."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveShare:
    """Serve the version to this share (basis points) of the users."""

    version: int
    share: int
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Serve the version to everybody."""

    version: int
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOut:
    """End shadow or canary; `faulty` versions are quarantined and never tried again."""

    version: int
    reason: str
    faulty: bool
    measures: tuple[Measure, ...] = ()


Action: TypeAlias = Rest | Move | BeginTraining | BeginShadow | GiveShare | Promote | TakeOut


def plan(
    situation: Situation, facts: Facts, trigger: TriggerPolicy, rollout: RolloutPolicy
) -> Action:
    """
    The next action.

    >>> plan(Situation(), Facts(seen=Seen(now_ms=0)), TriggerPolicy(), RolloutPolicy())
    Rest(reason='no alarm')
    """
    match situation.state:
        case State.TRAINING:
            return _after_training(facts)
        case State.GATED:
            return BeginShadow(version=situation.version)
        case State.SHADOW | State.CANARY:
            return _after_step(situation, facts, rollout)
        case _:
            return _at_rest(situation, facts, trigger)


def folded(situation: Situation, link: ReleaseTransition) -> Situation:
    """The situation after one more transition of the release log."""
    measures = {m.name: m.value for m in link.measures}
    state = State(link.to_state)
    rejected = situation.rejected_in_row
    if state == State.STABLE:
        rejected = 0
    elif situation.state in (State.TRAINING, State.SHADOW, State.CANARY) and state == State.IDLE:
        rejected += 1
    begun = state == State.TRAINING
    return Situation(
        state=state,
        version=link.version,
        entered_at_ms=link.at,
        share=int(measures.get("share", 0)),
        trained_at_ms=(*situation.trained_at_ms, link.at) if begun else situation.trained_at_ms,
        rejected_in_row=rejected,
        keys=situation.keys | {link.reason} if begun else situation.keys,
        key=link.reason if begun else situation.key,
    )


def _at_rest(situation: Situation, facts: Facts, trigger: TriggerPolicy) -> Action:
    decision = decide(facts.seen, trigger)
    match decision:
        case Train(key=key) if key in situation.keys:
            return _moved(situation, State.CONFIRMED, "this alarm has been trained for")
        case Train():
            return BeginTraining(decision=decision)
        case Hold(reason):
            return _moved(situation, State.HOLD, reason)
        case Wait(reason) if facts.seen.alarm is not None:
            return _moved(situation, State.CONFIRMED, reason)
        case Wait(reason) if facts.warned:
            return _moved(situation, State.SUSPECT, reason)
        case Wait(reason) if situation.state in (State.IDLE, State.STABLE):
            return Rest(reason=reason)
        case Wait(reason):
            return _moved(situation, State.IDLE, reason)


def _moved(situation: Situation, to: State, reason: str) -> Action:
    return Rest(reason=reason) if situation.state == to else Move(to=to, reason=reason)


def _after_training(facts: Facts) -> Action:
    match facts.outcome:
        case None:
            return Rest(reason="training")
        case Accepted(version=version):
            return Move(
                to=State.GATED,
                reason=f"version {version} passed the gate",
                measures=(Measure(name="version", value=float(version)),),
            )
        case Rejected(reasons=reasons):
            return Move(to=State.IDLE, reason="; ".join(reasons))


def _after_step(situation: Situation, facts: Facts, rollout: RolloutPolicy) -> Action:
    shadow = situation.state == State.SHADOW
    if facts.serving is not None:
        in_place = facts.serving.shadow if shadow else facts.serving.canary
        if in_place != situation.version:
            return Move(to=State.IDLE, reason=f"taken out by hand: {facts.serving.reason}")
    evidence = StepEvidence(
        challenger=facts.challenger,
        champion=facts.champion,
        elapsed_ms=facts.seen.now_ms - situation.entered_at_ms,
    )
    least = rollout.shadow_answers if shadow else rollout.step_answers
    match judge_step(evidence, least, rollout):
        case Bake(reason):
            return Rest(reason=reason)
        case RollBack(reasons=reasons, measures=measures):
            return TakeOut(
                version=situation.version,
                reason="; ".join(reasons),
                faulty=True,
                measures=measures,
            )
        case Stop(reason):
            return TakeOut(version=situation.version, reason=reason, faulty=False)
        case GoOn(measures=measures):
            wider = [s for s in rollout.shares if s > situation.share]
            if wider:
                return GiveShare(version=situation.version, share=wider[0], measures=measures)
            return Promote(version=situation.version, measures=measures)
