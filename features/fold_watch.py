"""What the features job makes of a stretch of user-events, seen from outside: by its positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from features.counts import Counts
from features.store import Position, RowReader
from ingest.clock import Clock, SystemClock
from ingest.log import Log
from ingest.replay import Folded
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.errors import Misconfigured, Retryable
from schemas.events import EventType

CHECK_EVERY_S = 0.05
# A job that runs moves several times a second, and outlasts a store's or broker's restart.
PATIENCE_S = 10.0
# What is on the log before a replay may be much; while positions move it is waited for.
BACKLOG_TIMEOUT_S = 3600.0


class PositionWatch:
    """
    `FoldWatch` on the store's positions, whose counts are as exact as the rows.

    What others produce between `begin` and the end of `wait` is counted too.
    """

    def __init__(
        self,
        store: RowReader,
        log: Log,
        topic: str,
        clock: Clock,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store = store
        self._log = log
        self._topic = topic
        self._clock = clock
        self._patience_s = patience_s
        self._before = Counts()

    def begin(self) -> None:
        """
        Remember the counts, once the job has folded what is on the log already.

        Raises:
            Misconfigured: no features job is at work.
        """
        ends = {p: end for p, (_, end) in self._log.bounds(self._topic).items()}
        self._before = _total(self._reached(ends, BACKLOG_TIMEOUT_S))

    def wait(self, last_offsets: Mapping[int, int], timeout_s: float) -> Folded:
        """
        Return what was folded since `begin`, once every partition's position is past its offset.

        Raises:
            Misconfigured: no features job is at work, or it did not get there in time.
        """
        ends = dict.fromkeys(range(self._log.partitions(self._topic)), 0)
        ends |= {partition: offset + 1 for partition, offset in last_offsets.items()}
        found = _total(self._reached(ends, timeout_s))
        return _folded(found, self._before)

    def _reached(self, ends: Mapping[int, int], timeout_s: float) -> list[Position]:
        """The positions, once each is at its end or past it."""
        start_s = moved_s = self._clock.monotonic_s()
        before: list[Position | None] = []
        log_id = (self._log.cluster_id(), self._log.topic_id(self._topic))
        while True:
            found = self._positions(list(ends), log_id)
            reached = [
                p for p, end in zip(found, ends.values(), strict=True) if p and p.next_offset >= end
            ]
            if len(reached) == len(ends):
                return reached
            now_s = self._clock.monotonic_s()
            if found != before:
                moved_s, before = now_s, found
            if now_s - moved_s >= self._patience_s:
                raise Misconfigured(self._missing(found, ends))
            if now_s - start_s >= timeout_s:
                left = _left(found, ends)
                raise Retryable(f"{left} events of {self._topic} not folded in {timeout_s:g} s")
            self._clock.sleep(CHECK_EVERY_S)

    def _positions(
        self, partitions: Sequence[int], log_id: tuple[str, str]
    ) -> list[Position | None]:
        """Where each partition of this log stands; positions of another log do not count."""
        found = self._store.positions(partitions)
        return [
            position if position and (position.cluster_id, position.topic_id) == log_id else None
            for position in (found[partition] for partition in partitions)
        ]

    def _missing(self, found: Sequence[Position | None], ends: Mapping[int, int]) -> str:
        return (
            f"no features job folds {self._topic}: {_left(found, ends)} events wait and no "
            f"position moved for {self._patience_s:g} s. Start one: `millstream features run`; "
            "or do not wait for it: `millstream replay --no-wait`"
        )


def _left(found: Sequence[Position | None], ends: Mapping[int, int]) -> int:
    pairs = zip(found, ends.values(), strict=True)
    return sum(max(0, end - (p.next_offset if p else 0)) for p, end in pairs)


def _total(positions: Sequence[Position]) -> Counts:
    return sum((Counts.of(p.counts) for p in positions), start=Counts())


def _folded(now: Counts, before: Counts) -> Folded:
    grown = {
        kind.name: after - earlier
        for kind, after, earlier in zip(EventType, now.types, before.types, strict=True)
    }
    return Folded(
        accepted={name: count for name, count in grown.items() if count},
        duplicates=now.duplicates - before.duplicates,
        late=now.late - before.late,
        rejected=now.dead - before.dead,
    )


def open_watch(settings: Settings) -> PositionWatch:
    """The features job of the stack that the settings name."""
    from features.catalog import CATALOG  # noqa: PLC0415 - clients are loaded when first needed
    from features.redis_store import RedisStore  # noqa: PLC0415
    from ingest.kafka import KafkaLog  # noqa: PLC0415

    return PositionWatch(
        RedisStore(settings.redis_url, CATALOG.fingerprint, timeout_s=settings.timeout_s),
        KafkaLog(settings.bootstrap_servers, settings.timeout_s),
        Topics(settings.topic_prefix).user_events,
        SystemClock(),
    )
