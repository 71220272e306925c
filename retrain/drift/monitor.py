"""
The monitor: a pure fold from answers and events to windows, and from windows to alerts.

Inputs that move are a reason to look, not to act: a recommender changes what its users see and do,
and most of that harms nobody. So features and labels together can raise a WARN, and only what users
then do (the label) an ACT, which wakes people and trains models.

A window holds the answers whose event time lies in it. It is decided once, when every partition
has passed its end by the maturity of its labels and the lateness; what comes later is counted as
late. Nothing here reads a clock, so a replay of the same log raises the same alerts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from features.declare import Drift
from retrain.drift.counts import Binning, Counts, Stream, choose_binning, count
from retrain.drift.detector import (
    Baseline,
    Comparison,
    Dated,
    DetectorPolicy,
    accumulate,
    baseline,
    cap,
    compare,
    e_values,
)
from retrain.drift.quality import Fault, QualityCounts, QualityPolicy, faults

Column = NDArray[np.float64] | NDArray[np.int64]


class Phase(StrEnum):
    """Where the monitor stands."""

    WARMING = "WARMING"  # the reference is not frozen yet
    WATCHING = "WATCHING"
    WARNED = "WARNED"
    ALARMED = "ALARMED"  # latched until rebaselined


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorPolicy:
    """Windows and minimums. Times in ms of event time."""

    window_ms: int = 3_600_000
    maturity_ms: int = 3_600_000  # age at which a list's labels are counted
    lateness_ms: int = 300_000
    settle_windows: int = 24  # the first ones under a new model: they count for nothing
    reference_windows: int = 28 * 24
    detector: DetectorPolicy = field(default_factory=DetectorPolicy)
    quality: QualityPolicy = field(default_factory=QualityPolicy)
    sample_share: float = 1.0  # of users, by hash: bounds what open windows hold
    sample_rows: int = 20_000  # kept while WARMING to choose bin edges
    clear_windows: int = 6  # quiet windows that end a warning

    def __post_init__(self) -> None:
        if self.reference_windows < 3:
            raise ValueError(f"reference_windows must be at least 3, got {self.reference_windows}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """
    Matured answers of one window, [n] each. Order does not matter.

    `clicked` and `joined` are what followed within the maturity: a positive event, an impression.
    """

    columns: tuple[Column, ...]  # [n] values of each stream
    half: NDArray[np.int64]
    version: int  # the stable model that gave most of the answers
    clicked: NDArray[np.bool_]
    joined: NDArray[np.bool_]
    quality: QualityCounts

    def __len__(self) -> int:
        return len(self.half)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowVerdict:
    """What one window said; `phase` is the monitor's state after it."""

    start_ms: int
    end_ms: int
    size: int
    version: int
    since_ms: int  # when the change that the subject's evidence speaks of most likely began
    phase: Phase
    evidence: float  # of the label's e-detector: an alarm at `DetectorPolicy.act`
    warning: float  # of the e-detector over all streams: a warning at `DetectorPolicy.warn`
    subject: str  # the stream with the most evidence; of an alarm the label
    comparison: Comparison | None
    faults: tuple[Fault, ...]
    labels_trusted: bool
    click_rate: float
    reference_click_rate: float


LABEL_STREAM = Stream(name="label_click", kind=Drift.CATEGORICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Frozen: what ordinary windows look like."""

    base: Baseline
    quality: QualityCounts
    click_rate: float
    windows: int


class Monitor:
    """
    Folds windows, in order, into verdicts.

    Another stable version starts it WARMING anew: what is ordinary under one model is not under
    another, and a new model settles the alarm. Bounded: the first windows are kept in full until
    `sample_rows` answers are there to choose bins from; then only counts are kept.
    """

    def __init__(self, streams: Sequence[Stream], policy: MonitorPolicy) -> None:
        self.streams = (*streams, LABEL_STREAM)
        self.policy = policy
        self._rebaseline(version=0)

    def _rebaseline(self, version: int) -> None:
        self.phase = Phase.WARMING
        self.reference: Reference | None = None
        self._version = version
        self._settling = self.policy.settle_windows
        self._raw: list[Observations] = []  # until bins are chosen
        self._binnings: tuple[Binning, ...] = ()
        self._counts: list[Counts] = []  # of the reference's windows
        self._quality: list[QualityCounts] = []
        self._pending: Counts | None = None  # a window too small to test, merged forward
        self._warn = np.zeros(len(self.streams))  # evidence of each stream
        self._act = 0.0  # evidence of the label alone
        self._quiet = 0
        self._dated = Dated.of(len(self.streams))
        self._pending_ms: int | None = None  # start of the first window merged forward

    @property
    def windows_to_go(self) -> int:
        """Windows until the reference freezes; 0 once it has."""
        if self.reference is not None:
            return 0
        seen = len(self._raw) + len(self._counts)
        return self._settling + self.policy.reference_windows - seen

    def window(self, start_ms: int, seen: Observations) -> WindowVerdict:
        """Decide one window. Call once a window, in order; empty windows included."""
        if seen.version not in (0, self._version):
            self._rebaseline(seen.version)
        if self.reference is None:
            if len(seen):
                self._warm(seen)
            return self._verdict(start_ms, seen, None, ())
        found = faults(seen.quality, self.reference.quality, self.policy.quality)
        if found or len(seen) == 0:
            # A broken feed is an incident, not drift: the detectors do not move on it.
            return self._verdict(start_ms, seen, None, found)
        counts = _counted(seen, self._binnings)
        merged = counts if self._pending is None else counts + self._pending
        if self._pending_ms is None:
            self._pending_ms = start_ms
        comparison = compare(merged, self.reference.base)
        if float(comparison.effective.max()) < self.policy.detector.least_effective:
            self._pending = merged
        else:
            self._decide(comparison, self.reference.base.stable, self._pending_ms)
            self._pending = self._pending_ms = None
        return self._verdict(start_ms, seen, comparison, found)

    def _warm(self, seen: Observations) -> None:
        if self._settling:
            self._settling -= 1
            return
        if self._binnings:
            self._counts.append(_counted(seen, self._binnings))
        else:
            self._raw.append(seen)
        self._quality.append(seen.quality)
        enough = sum(map(len, self._raw)) >= self.policy.sample_rows
        if not self._binnings and (enough or self.windows_to_go <= 0):
            self._binnings = _binnings(self.streams, self._raw, self.policy.sample_rows)
            self._counts = [_counted(w, self._binnings) for w in self._raw]
            self._raw = []
        if self.windows_to_go <= 0:
            self._freeze()

    def _freeze(self) -> None:
        windows = np.stack(self._counts)
        clicks = windows[:, -1].sum(axis=(0, 1))
        self.reference = Reference(
            base=baseline(windows, self.policy.detector),
            quality=QualityCounts.total(self._quality),
            click_rate=float(clicks[1] / max(1, clicks.sum())),
            windows=len(windows),
        )
        self._counts, self._quality = [], []
        self.phase = Phase.WATCHING

    def _decide(self, comparison: Comparison, stable: NDArray[np.bool_], start_ms: int) -> None:
        rule, k = self.policy.detector, max(1, int(stable.sum()))
        p = np.where(stable, comparison.p, 1.0)
        warn = e_values(p, cap(k, rule.warn, rule.warn_windows))
        self._warn = np.where(stable, accumulate(self._warn, warn), 0.0)
        self._dated = self._dated.after(np.where(stable, warn, 0.0), start_ms)
        harm = e_values(p[-1:], cap(1, rule.act, rule.act_windows))
        self._act = float(accumulate(np.array([self._act]), harm)[0]) if stable[-1] else 0.0
        self._quiet = self._quiet + 1 if float(warn[stable].max(initial=0.0)) < 1 else 0
        if self.phase == Phase.ALARMED:
            return
        if self._act >= rule.act:
            self.phase = Phase.ALARMED
        elif self._warning >= rule.warn:
            self.phase = Phase.WARNED
        elif self.phase == Phase.WARNED and self._quiet >= self.policy.clear_windows:
            self.phase = Phase.WATCHING

    @property
    def _weighted(self) -> NDArray[np.float64]:
        """Evidence of each stream by its weight: features share one half, labels have the other."""
        assert self.reference is not None
        weights = self.reference.base.stable.astype(np.float64)
        weights[:-1] /= 2 * max(1.0, weights[:-1].sum())
        weights[-1] /= 2
        return weights * self._warn

    @property
    def _warning(self) -> float:
        """The e-detector over all streams."""
        return 0.0 if self.reference is None else float(self._weighted.sum())

    def _verdict(
        self,
        start_ms: int,
        seen: Observations,
        comparison: Comparison | None,
        found: tuple[Fault, ...],
    ) -> WindowVerdict:
        leading = len(self.streams) - 1  # what an alarm is about
        if self.phase != Phase.ALARMED and self.reference is not None:
            leading = int(np.argmax(self._weighted))
        return WindowVerdict(
            start_ms=start_ms,
            end_ms=start_ms + self.policy.window_ms,
            size=len(seen),
            version=self._version,
            since_ms=int(self._dated.began_ms[leading]),
            phase=self.phase,
            evidence=self._act,
            warning=self._warning,
            subject=self.streams[leading].name if self._warning else "",
            comparison=comparison,
            faults=found,
            labels_trusted=not any(f.breaks_labels for f in found),
            click_rate=float(seen.clicked.mean()) if len(seen) else 0.0,
            reference_click_rate=0.0 if self.reference is None else self.reference.click_rate,
        )


def _counted(seen: Observations, binnings: tuple[Binning, ...]) -> Counts:
    return count(binnings, (*seen.columns, seen.clicked.astype(np.int64)), seen.half)


def _binnings(
    streams: Sequence[Stream], raw: Sequence[Observations], rows: int
) -> tuple[Binning, ...]:
    """Bins of every stream from about `rows` of the answers seen; the label's are 0 and 1."""
    step = max(1, -(-sum(map(len, raw)) // rows))
    chosen = [
        choose_binning(stream.kind, np.concatenate([w.columns[k] for w in raw])[::step])
        for k, stream in enumerate(streams[:-1])
    ]
    return (*chosen, Binning(Drift.CATEGORICAL, top=(0, 1)))
