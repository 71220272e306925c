"""
When to train: a pure decision from what was seen to train, hold or wait.

Drift alone is a reason to look; training needs data that was gathered after the change, a feed that
can be trusted, and a budget. A data incident holds training instead of causing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from schemas.events import Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerPolicy:
    """Cooldown, budget and least data. Times in ms."""

    cooldown_ms: int = 6 * 3_600_000  # after a training, at least
    backoff: float = 2.0  # the cooldown's factor after each rejected challenger
    budget_window_ms: int = 7 * 24 * 3_600_000
    budget: int = 4  # drift-triggered trainings in the budget's window
    least_lists: int = 200_000  # matured lists after the change
    least_positives: int = 5_000  # positive events after the change, from lists or without
    lookback_ms: int = 28 * 24 * 3_600_000  # history that a training also sees


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """The ACT alarm that stands, and when the change behind it began at the latest."""

    alert_ids: tuple[str, ...]
    changed_at_ms: int
    version: int = 0  # the stable model whose answers it is about


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything the decision looks at."""

    now_ms: int
    alarm: Alarm | None = None
    operator: str = ""  # who asked for a training, if somebody did
    incident: str = ""  # a data fault that stands: labels untrusted, features missing, ...
    lists_since_change: int = 0
    positives_since_change: int = 0
    trained_at_ms: tuple[int, ...] = ()  # starts of drift-triggered trainings, ascending
    rejected_in_row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train on [from_ms, until_ms). `key` is the same for the same reason: single flight."""

    reason: str
    key: str
    from_ms: int
    until_ms: int
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """A data incident: page somebody, train nothing, keep serving."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now."""

    reason: str


Decision: TypeAlias = Train | Hold | Wait


def decide(seen: Seen, policy: TriggerPolicy) -> Decision:
    """
    Train, hold or wait.

    >>> decide(Seen(now_ms=0), TriggerPolicy())
    Wait(reason='no alarm')
    >>> decide(Seen(now_ms=0, incident="labels untrusted"), TriggerPolicy())
    Hold(reason='labels untrusted')
    """
    if seen.incident:
        return Hold(seen.incident)
    if seen.operator:
        return _train("OPERATOR", f"operator:{seen.operator}:{seen.now_ms}", seen, policy)
    if seen.alarm is None:
        return Wait("no alarm")
    missing = _missing(seen, policy)
    if missing:
        return Wait(missing)
    # Another attempt after a rejected challenger is another training.
    key = f"drift:{','.join(seen.alarm.alert_ids)}#{seen.rejected_in_row}"
    return _train("DRIFT", key, seen, policy)


def _missing(seen: Seen, policy: TriggerPolicy) -> str:
    """What still speaks against a training that drift asks for; empty if nothing."""
    recent = [t for t in seen.trained_at_ms if t > seen.now_ms - policy.budget_window_ms]
    if len(recent) >= policy.budget:
        return f"budget used: {len(recent)} of {policy.budget} trainings"
    cooldown = policy.cooldown_ms * policy.backoff**seen.rejected_in_row
    if recent and seen.now_ms < recent[-1] + cooldown:
        return f"cooling down for {round((recent[-1] + cooldown - seen.now_ms) / 1000)} s"
    if seen.lists_since_change < policy.least_lists:
        return f"{seen.lists_since_change} of {policy.least_lists} lists since the change"
    if seen.positives_since_change < policy.least_positives:
        return (
            f"{seen.positives_since_change} of {policy.least_positives} positives since the change"
        )
    return ""


def _train(reason: str, key: str, seen: Seen, policy: TriggerPolicy) -> Train:
    changed = seen.alarm.changed_at_ms if seen.alarm else seen.now_ms
    return Train(
        reason=reason,
        key=key,
        from_ms=min(changed, seen.now_ms) - policy.lookback_ms,
        until_ms=seen.now_ms,
        measures=(
            Measure(name="changed_at_ms", value=float(changed)),
            Measure(name="lists_since_change", value=float(seen.lists_since_change)),
            Measure(name="positives_since_change", value=float(seen.positives_since_change)),
        ),
    )
