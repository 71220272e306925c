"""
From a planned action to what is written for it: transition, release and training order.

Pure; the controller signs the release and writes all of it in one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from inference.release import Step, Why, promote, set_share, shadow, start_canary
from retrain.campaign import (
    Action,
    BeginShadow,
    BeginTraining,
    GiveShare,
    Move,
    Promote,
    Rest,
    Situation,
    State,
    TakeOut,
)
from retrain.canary import RolloutPolicy
from retrain.trigger import Train, TriggerPolicy
from schemas.errors import Refused
from schemas.events import EventType, Measure, Release, RetrainTrigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """Whose releases these are, and by which rules."""

    model_name: str
    profile: str
    surface: str  # whose answers are watched; empty: all
    targets: tuple[EventType, ...]
    trigger: TriggerPolicy
    rollout: RolloutPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What stands before the action."""

    situation: Situation
    release: Release | None
    alert_ids: tuple[str, ...]
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """What one action writes; the release is not signed yet."""

    step: Step
    release: Release | None = None
    trigger: RetrainTrigger | None = None


def writes(action: Action, standing: Standing, campaign: Campaign) -> Writes | None:
    """
    What to write for an action; None for `Rest`.

    Raises:
        Refused: a release step without a release to start from, or one that does not follow.
    """
    match action:
        case Rest():
            return None
        case Move():
            return _moved(action, standing, campaign)
        case BeginTraining(decision=decision):
            return Writes(
                step=_step(standing, campaign, State.TRAINING, 0, decision.key, decision.measures),
                trigger=_trigger(decision, standing, campaign),
            )
        case BeginShadow() | GiveShare() | Promote() | TakeOut():
            return _released(action, standing, campaign)
        case _:
            assert_never(action)


def _moved(move: Move, standing: Standing, campaign: Campaign) -> Writes:
    found = {m.name: m.value for m in move.measures}.get("version")
    version = standing.situation.version if found is None else int(found)
    return Writes(step=_step(standing, campaign, move.to, version, move.reason, move.measures))


def _released(
    action: BeginShadow | GiveShare | Promote | TakeOut, standing: Standing, campaign: Campaign
) -> Writes:
    version = action.version
    measures: tuple[Measure, ...] = ()
    if standing.release is None:
        raise Refused(
            f"{campaign.model_name} has no release to start from: approve a first version with "
            f"`millstream release promote {version}`"
        )
    now, old = standing.now_ms, standing.release
    match action:
        case BeginShadow():
            state, why = State.SHADOW, Why(at_ms=now, reason=f"version {version} in shadow")
            new = shadow(old, version, why)
        case GiveShare(share=share):
            why = Why(at_ms=now, reason=f"version {version} to {share / 100:g} % of users")
            state, new = State.CANARY, _shared(old, version, share, why)
            measures = (*action.measures, Measure(name="share", value=float(share)))
        case Promote():
            state, why = State.STABLE, Why(at_ms=now, reason=f"version {version} to everybody")
            new, measures = promote(old, version, why), action.measures
        case TakeOut():
            state, why = State.IDLE, Why(at_ms=now, reason=action.reason)
            new = shadow(replace(old, canary=0, canary_share=0, rollout_id=""), 0, why)
            measures = action.measures
    step = _step(standing, campaign, state, version, why.reason, measures)
    return Writes(step=replace(step, generation=new.generation), release=new)


def _shared(old: Release, version: int, share: int, why: Why) -> Release:
    if old.canary == version:
        return set_share(old, share, why)
    return start_canary(old, version, share, why)


def _step(
    standing: Standing,
    campaign: Campaign,
    to: State,
    version: int,
    reason: str,
    measures: tuple[Measure, ...],
) -> Step:
    return Step(
        model_name=campaign.model_name,
        from_state=standing.situation.state,
        to_state=to,
        version=version,
        generation=standing.release.generation if standing.release else 0,
        at=standing.now_ms,
        reason=reason,
        measures=measures,
    )


def _trigger(decision: Train, standing: Standing, campaign: Campaign) -> RetrainTrigger:
    return RetrainTrigger(
        trigger_id=f"{campaign.model_name}/{decision.key}",
        model_name=campaign.model_name,
        reason=decision.reason,
        idempotency_key=decision.key,
        issued_at=standing.now_ms,
        train_from=max(0, decision.from_ms),
        train_until=decision.until_ms,
        profile=campaign.profile,
        alert_ids=standing.alert_ids,
        measures=decision.measures,
    )
