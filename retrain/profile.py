"""
Profiles: the numbers of a deployment under one name. Numbers differ, rules never.

`production` has constants for hourly windows of steady traffic; `demo` shortens
windows to seconds and lowers minimums, so that a laptop shows the whole loop in minutes. Alerts,
gate reports and releases carry the name, and a production registry refuses what `demo` let through.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from retrain.canary import RolloutPolicy
from retrain.drift.detector import DetectorPolicy
from retrain.drift.monitor import MonitorPolicy
from retrain.drift.quality import QualityPolicy
from retrain.trigger import TriggerPolicy
from schemas.errors import Misconfigured


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Windows, minimums and budgets of monitoring and release."""

    name: str
    monitor: MonitorPolicy = field(default_factory=MonitorPolicy)
    trigger: TriggerPolicy = field(default_factory=TriggerPolicy)
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)


PRODUCTION: Final = Profile(name="production")

DEMO: Final = Profile(
    name="demo",
    monitor=MonitorPolicy(
        window_ms=3_000,
        maturity_ms=4_000,
        lateness_ms=1_000,
        settle_windows=5,
        reference_windows=8,
        detector=DetectorPolicy(warn=100.0, act=1_000.0, least_effective=60.0),
        quality=QualityPolicy(least_answers=30),
        sample_rows=2_000,
        clear_windows=4,
    ),
    trigger=TriggerPolicy(
        cooldown_ms=60_000,
        budget_window_ms=3_600_000,
        least_lists=1_300,
        least_positives=900,
        lookback_ms=400 * 24 * 3_600_000,  # the replayed data set's whole span
    ),
    rollout=RolloutPolicy(
        shadow_answers=200,
        shares=(1_000, 2_500),
        step_answers=20,
        least_step_ms=4_000,
        longest_step_ms=60_000,
        fault_limit=0.02,
        # Two cores run everything: the tail of a latency says little there.
        slow_limit=0.3,
        slow_factor=5.0,
    ),
)

PROFILES: Final = {profile.name: profile for profile in (PRODUCTION, DEMO)}


def profile_of(name: str) -> Profile:
    """
    The profile of that name.

    >>> profile_of("production").trigger.budget
    4
    """
    if name not in PROFILES:
        raise Misconfigured(f"unknown profile {name!r}: one of {', '.join(sorted(PROFILES))}")
    return PROFILES[name]
