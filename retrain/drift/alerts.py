"""From a window's verdict to the alerts that people and the retraining get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from retrain.drift.monitor import Phase, WindowVerdict
from schemas.events import DriftAlert, Measure

WARN: Final = "WARN"
ACT: Final = "ACT"
CLEAR: Final = "CLEAR"
DATA_QUALITY: Final = "DATA_QUALITY"
LABELS_UNTRUSTED: Final = "LABELS_UNTRUSTED"

CHANGED_AT_MS: Final = "changed_at_ms"  # the measure that says when the change began


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Whose verdicts these are."""

    model_name: str
    surface: str
    profile: str
    fingerprint: str


def alerts_of(
    before: WindowVerdict | None, verdict: WindowVerdict, origin: Origin, detected_at: int
) -> tuple[DriftAlert, ...]:
    """
    Alerts for what changed with this window; none while a state lasts (the latch).

    An alert's id depends on the log alone: a monitor that reads it again raises the same ids.
    """
    severities = [*_drift(before, verdict), *_quality(before, verdict)]
    return tuple(
        _alert(severity, message, verdict, origin, detected_at) for severity, message in severities
    )


def _drift(before: WindowVerdict | None, verdict: WindowVerdict) -> list[tuple[str, str]]:
    was = before.phase if before is not None else Phase.WARMING
    if verdict.phase == was:
        return []
    seen = (
        f"mostly {verdict.subject}; clicked lists "
        f"{verdict.click_rate:.3f}, in the reference {verdict.reference_click_rate:.3f}"
    )
    match verdict.phase:
        case Phase.WARNED:
            return [(WARN, f"drift suspected: evidence {verdict.warning:.0f}, {seen}")]
        case Phase.ALARMED:
            return [(ACT, f"drift: evidence {verdict.evidence:.0f}, {seen}")]
        case _ if was in (Phase.WARNED, Phase.ALARMED):
            return [(CLEAR, f"no drift against version {verdict.version}'s reference")]
        case _:
            return []


def _quality(before: WindowVerdict | None, verdict: WindowVerdict) -> list[tuple[str, str]]:
    old = {f.name for f in before.faults} if before is not None else set()
    found = [
        (
            LABELS_UNTRUSTED if f.breaks_labels else DATA_QUALITY,
            f"{f.name}: {f.seen:.3f} of the answers, {f.expected:.3f} in the reference",
        )
        for f in verdict.faults
        if f.name not in old
    ]
    if old and not verdict.faults:
        found.append((CLEAR, f"the data is in order again: {', '.join(sorted(old))}"))
    return found


def _alert(
    severity: str, message: str, verdict: WindowVerdict, origin: Origin, detected_at: int
) -> DriftAlert:
    quality = severity in (DATA_QUALITY, LABELS_UNTRUSTED)
    comparison = verdict.comparison
    measures = [
        Measure(name="evidence", value=verdict.evidence),
        Measure(name="warning", value=verdict.warning),
        Measure(name=CHANGED_AT_MS, value=float(verdict.since_ms)),
        Measure(name="answers", value=float(verdict.size)),
        Measure(name="click_rate", value=verdict.click_rate),
        Measure(name="reference_click_rate", value=verdict.reference_click_rate),
    ]
    measures += [Measure(name=f"share_{f.name}", value=f.seen) for f in verdict.faults]
    if comparison is not None:
        measures.append(Measure(name="largest_distance", value=float(comparison.distance.max())))
        measures.append(Measure(name="smallest_p", value=float(comparison.p.min())))
    what = message.split(":", maxsplit=1)[0] if quality else verdict.subject
    return DriftAlert(
        alert_id=f"{origin.model_name}/{origin.surface or '*'}/{verdict.version}"
        f"/{severity}/{what}/{verdict.start_ms}",
        model_name=origin.model_name,
        severity=severity,
        stream="quality" if quality else "features and labels",
        subject=what,
        window_start=verdict.start_ms,
        window_end=verdict.end_ms,
        detected_at=detected_at,
        profile=origin.profile,
        fingerprint=origin.fingerprint,
        model_version=verdict.version,
        surface=origin.surface,
        measures=tuple(measures),
        message=message,
    )
