"""The demo's script: what happens when, and what must have come of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """Durations in seconds of wall clock; rates a second."""

    partitions: int = 4
    history: float = 0.8  # share of MovieLens' events that bootstraps features, archive and model
    replay_s: float = 20.0  # for the rest, in event-time order
    # Many shoppers who each do little: what they are like hardly changes while they are watched,
    # so the one change is the scripted one.
    shoppers: int = 1_000
    sessions_per_hour: float = 40.0  # of one shopper: about 35 requests a second in all
    click: float = 0.25  # chance to click a perfect item in the first place
    catalogue: int = 480  # items of the shop
    flip_at_s: float = 44.0  # after the shoppers' arrival: the reference is frozen by then
    after_release_s: float = 8.0  # traffic on the new model before the end
    limit_s: float = 360.0  # of the whole run
    alert_windows: int = 8  # an ACT alert must come at most so many windows after the flip

    def __post_init__(self) -> None:
        if not 0 < self.history < 1:
            raise ValueError(f"history must be a share between 0 and 1, got {self.history}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """Something that must hold, and what was seen."""

    name: str
    ok: bool
    detail: str
