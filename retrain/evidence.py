"""
What the controller counts: lists and clicks by time, and the answers of a release's arms.

Both are folds of the log, so a restarted controller comes to the same numbers.
"""

from __future__ import annotations

from collections import Counter, deque

import numpy as np
import polars as pl
from numpy.typing import NDArray

from retrain.canary import ArmCounts
from schemas.events import Arm, EventType, Status

CANARY = list(Arm).index(Arm.CANARY)
STABLE = list(Arm).index(Arm.STABLE)
FALLBACK = list(Status).index(Status.FALLBACK)
OK = list(Status).index(Status.OK)

ANSWER_COLUMNS = (
    "event_time",
    "status",
    "model_version",
    "arm",
    "latency_us",
    "shadow",
    "surface",
)
EVENT_COLUMNS = ("event_time", "event_type", "surface")

LATENCIES = 2_000  # of the champion, kept to know its p99


class Progress:
    """Lists and positives by event time; bounded by `keep_ms` of one-second cells."""

    def __init__(self, keep_ms: int = 7 * 24 * 3_600_000) -> None:
        self._keep_s = keep_ms // 1000
        self._lists: Counter[int] = Counter()
        self._positives: Counter[int] = Counter()

    def lists(self, event_time_ms: NDArray[np.int64]) -> None:
        """Count answers."""
        self._lists.update((event_time_ms // 1000).tolist())
        self._trim(self._lists)

    def positives(self, event_time_ms: NDArray[np.int64]) -> None:
        """Count positive reactions."""
        self._positives.update((event_time_ms // 1000).tolist())
        self._trim(self._positives)

    def since(self, event_time_ms: int) -> tuple[int, int]:
        """Lists and positives at or after a time."""
        start = event_time_ms // 1000
        lists = sum(n for at, n in self._lists.items() if at >= start)
        return lists, sum(n for at, n in self._positives.items() if at >= start)

    def _trim(self, cells: Counter[int]) -> None:
        if len(cells) > 2 * self._keep_s:
            oldest = max(cells) - self._keep_s
            for at in [at for at in cells if at < oldest]:
                del cells[at]


class Arms:
    """Answers of champion and challenger since a step of the release began."""

    def __init__(self, slow_factor: float) -> None:
        self._slow_factor = slow_factor
        self._latency_us: deque[int] = deque(maxlen=LATENCIES)
        self._slow_us = np.inf
        self.begin(version=0, since_ms=0)

    def begin(self, version: int, since_ms: int) -> None:
        """A new step: count answers with a record timestamp from `since_ms` on, from zero."""
        self._version, self._since_ms = version, since_ms
        self.challenger, self.champion = ArmCounts(), ArmCounts()
        if self._latency_us:
            p99 = np.percentile(np.fromiter(self._latency_us, np.int64), 99)
            self._slow_us = self._slow_factor * float(p99)

    def answers(self, frame: pl.DataFrame, timestamps_ms: NDArray[np.int64]) -> None:
        """Count decoded answers (ANSWER_COLUMNS) with the timestamps of their records, [n]."""
        status, arm = frame["status"].to_numpy(), frame["arm"].to_numpy()
        version = frame["model_version"].to_numpy()
        score_us = frame["latency_us"].struct.field("score").to_numpy()
        now = timestamps_ms >= self._since_ms
        stable = arm == STABLE
        self._latency_us.extend(score_us[stable & (status == OK)].tolist())
        self.champion = self._counted(self.champion, now & stable, status, score_us)
        canary = now & (arm == CANARY) & (version == self._version)
        self.challenger = self._counted(self.challenger, canary, status, score_us)
        self._shadow(frame.filter(pl.Series(now)))

    def _counted(
        self,
        before: ArmCounts,
        which: NDArray[np.bool_],
        status: NDArray[np.int32],
        score_us: NDArray[np.int64],
    ) -> ArmCounts:
        return ArmCounts(
            answers=before.answers + int(which.sum()),
            faults=before.faults + int((which & (status == FALLBACK)).sum()),
            slow=before.slow + int((which & (score_us > self._slow_us)).sum()),
        )

    def _shadow(self, frame: pl.DataFrame) -> None:
        shadow = frame["shadow"].drop_nulls()
        if len(shadow) == 0:
            return
        seen = shadow.struct.unnest().filter(pl.col("version") == self._version)
        self.challenger = ArmCounts(
            answers=self.challenger.answers + len(seen),
            faults=self.challenger.faults + seen["error"].count(),
            slow=self.challenger.slow + int((seen["latency_us"] > self._slow_us).sum()),
        )


def positives_of(
    frame: pl.DataFrame, targets: tuple[EventType, ...], surface: str
) -> NDArray[np.int64]:
    """Event times of positive events on a surface (empty: on all), from decoded EVENT_COLUMNS."""
    wanted = pl.col("event_type").is_in([int(t) for t in targets])
    if surface:
        wanted &= pl.col("surface") == surface
    return frame.filter(wanted)["event_time"].to_numpy()
