"""What a training job is told, and what it tells back: both outlive the process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from retrain.gate import Approval
from schemas.events import Measure, RetrainTrigger

CHANGED_AT_MS = "changed_at_ms"  # measure of a trigger: when the change that it answers began


class Status(StrEnum):
    """How a job ended."""

    PUBLISHED = "PUBLISHED"  # the gate accepted; a signed version is in the registry
    REJECTED_DATA = "REJECTED_DATA"  # the snapshot is not fit to learn from
    FAILED = "FAILED"  # training diverged twice
    REFUSED = "REFUSED"  # the gate, or a check on the way, said no
    INSUFFICIENT = "INSUFFICIENT"  # too little evidence to say anything: not a pass


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    """One training. The same key is the same training."""

    key: str
    reason: str = "OPERATOR"
    train_from: int = 0  # event time, ms
    train_until: int = 0  # 0: now
    recent_from_ms: int | None = None  # examples from here on count more
    champion: int | None = None  # the version that serves; 0: none; None: the newest usable
    approval: Approval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The end of a job, with every number that led to it."""

    key: str
    status: Status
    version: int = 0
    reasons: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    snapshot: str = ""  # id of the data
    profile: str = ""

    def to_json(self) -> str:
        """Its stored form."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> JobResult:
        """Read the stored form."""
        found: dict[str, Any] = json.loads(text)
        return cls(
            key=found["key"],
            status=Status(found["status"]),
            version=found["version"],
            reasons=tuple(found["reasons"]),
            measures=tuple(Measure(**one) for one in found["measures"]),
            snapshot=found["snapshot"],
            profile=found["profile"],
        )


def order_of(trigger: RetrainTrigger, champion: int | None = None) -> JobOrder:
    """The order that a retrain trigger stands for."""
    changed = {m.name: m.value for m in trigger.measures}.get(CHANGED_AT_MS)
    return JobOrder(
        key=trigger.idempotency_key,
        reason=trigger.reason,
        train_from=trigger.train_from,
        train_until=trigger.train_until,
        recent_from_ms=None if changed is None else int(changed),
        champion=champion,
    )
