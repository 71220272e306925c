"""
Cohorts: answers and what followed them become the observations of a window.

An answer belongs to the window of its event time. Its label is whether the user did something
positive with it within the maturity. Lateness is judged against the record's own partition of its
own topic, so it does not depend on how partitions are interleaved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from features.hashing import salted
from ingest.log import TopicPartition
from retrain.drift.counts import halves
from retrain.drift.monitor import Column, MonitorPolicy, Observations
from retrain.drift.quality import QualityCounts

SAMPLE_SALT = "drift-sample"

_NO_TIMES = np.zeros(0, np.int64)
_NO_USERS = np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """n answers of one partition, in log order. `columns` hold [n] values of each stream."""

    request_ids: Sequence[str]
    event_time_ms: NDArray[np.int64]
    users: NDArray[np.uint64]  # hashes
    version: NDArray[np.int64]  # of the stable model that answered
    columns: tuple[Column, ...]
    fallback: NDArray[np.bool_]
    without_row: NDArray[np.bool_]
    stale: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reactions:
    """n user events that name a request, of one partition, in log order."""

    request_ids: Sequence[str]
    event_time_ms: NDArray[np.int64]
    positive: NDArray[np.bool_]
    impression: NDArray[np.bool_]


@dataclass(slots=True)
class _Window:
    answers: list[Answers] = field(default_factory=list)


class Cohorts:
    """
    Open windows of all partitions. Bounded by the windows within maturity and lateness; lower
    `sample_share` (of users) where traffic makes that too much.
    """

    def __init__(self, policy: MonitorPolicy, sources: Sequence[TopicPartition]) -> None:
        self._policy = policy
        self._time: dict[TopicPartition, int] = dict.fromkeys(sources, -1)
        self._idle: set[TopicPartition] = set()
        self._open: dict[int, _Window] = defaultdict(_Window)
        self._clicked: dict[str, int] = {}  # request id -> earliest positive event's time
        self._joined: dict[str, int] = {}
        self._next: int | None = None  # start of the first window not decided yet
        self.late = 0

    def answers(self, source: TopicPartition, batch: Answers) -> None:
        """Add answers read from `source`."""
        kept = self._punctual(source, batch.event_time_ms)
        share = np.uint64(round(self._policy.sample_share * 10_000))
        kept &= salted(batch.users, SAMPLE_SALT) % np.uint64(10_000) < share
        starts = batch.event_time_ms - batch.event_time_ms % self._policy.window_ms
        for start in np.unique(starts[kept]).tolist():
            if self._next is not None and start < self._next:
                self.late += int(np.sum(kept & (starts == start)))
                continue
            self._open[start].answers.append(
                _taken(batch, np.flatnonzero(kept & (starts == start)))
            )

    def reactions(self, source: TopicPartition, batch: Reactions) -> None:
        """Add events read from `source`."""
        kept = self._punctual(source, batch.event_time_ms)
        for earliest, which in (
            (self._clicked, batch.positive),
            (self._joined, batch.impression),
        ):
            for i in np.flatnonzero(kept & which).tolist():
                name, at = batch.request_ids[i], int(batch.event_time_ms[i])
                earliest[name] = min(at, earliest.get(name, at))

    def idle(self, sources: set[TopicPartition]) -> None:
        """Say which sources have nothing more to read and have been quiet: none waits for them."""
        self._idle = sources

    def ripe(self) -> Iterator[tuple[int, Observations]]:
        """Windows that are over for every source, in order: (start, observations)."""
        horizon = self._horizon()
        if self._next is None and self._open:
            self._next = min(self._open)
        while self._next is not None and self._next + self._policy.window_ms <= horizon:
            start, self._next = self._next, self._next + self._policy.window_ms
            yield start, self._observed(self._open.pop(start, _Window()).answers)
            self._forget(start)

    def _horizon(self) -> int:
        """Event time up to which windows are over: labels matured, stragglers in."""
        busy = [at for source, at in self._time.items() if source not in self._idle]
        newest = max(self._time.values())
        slowest = min(busy, default=newest)
        return slowest - self._policy.maturity_ms - self._policy.lateness_ms

    def _punctual(self, source: TopicPartition, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which records are not late; moves the source's time on."""
        if len(times) == 0:
            return np.zeros(0, np.bool_)
        before = np.maximum.accumulate(np.concatenate([[self._time[source]], times]))
        self._time[source] = int(before[-1])
        kept: NDArray[np.bool_] = times >= before[:-1] - self._policy.lateness_ms
        self.late += int(np.sum(~kept))
        return kept

    def _observed(self, parts: Sequence[Answers]) -> Observations:
        ids = [name for part in parts for name in part.request_ids]
        times = np.concatenate([_NO_TIMES, *(part.event_time_ms for part in parts)])
        users = np.concatenate([_NO_USERS, *(part.users for part in parts)])
        columns = tuple(
            np.concatenate(list(of_stream))
            for of_stream in zip(*(part.columns for part in parts), strict=True)
        )
        joined = self._within(self._joined, ids, times)
        versions = np.concatenate([_NO_TIMES, *(part.version for part in parts)])
        broken = [~np.isfinite(c) for c in columns if c.dtype.kind == "f"]
        return Observations(
            columns=columns,
            half=halves(users),
            version=int(np.bincount(versions).argmax()) if len(versions) else 0,
            clicked=self._within(self._clicked, ids, times),
            joined=joined,
            quality=QualityCounts(
                answers=len(ids),
                fallbacks=sum(int(part.fallback.sum()) for part in parts),
                without_row=sum(int(part.without_row.sum()) for part in parts),
                stale=sum(int(part.stale.sum()) for part in parts),
                non_finite=int(np.any(broken, axis=0).sum()) if broken else 0,
                joined=int(joined.sum()),
            ),
        )

    def _within(
        self, earliest: dict[str, int], ids: Sequence[str], times: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        limit = self._policy.maturity_ms
        pairs = zip(ids, times.tolist(), strict=True)
        found = (i in earliest and 0 <= earliest[i] - t <= limit for i, t in pairs)
        return np.fromiter(found, np.bool_, len(ids))

    def _forget(self, start: int) -> None:
        """Reactions before the window just decided can belong to no later answer."""
        for earliest in (self._clicked, self._joined):
            for name in [n for n, at in earliest.items() if at < start]:
                del earliest[name]


def _taken(batch: Answers, index: NDArray[np.int64]) -> Answers:
    return Answers(
        request_ids=[batch.request_ids[i] for i in index.tolist()],
        event_time_ms=batch.event_time_ms[index],
        users=batch.users[index],
        version=batch.version[index],
        columns=tuple(column[index] for column in batch.columns),
        fallback=batch.fallback[index],
        without_row=batch.without_row[index],
        stale=batch.stale[index],
    )
