"""
Replay: a data set as live traffic, in event-time order, shifted so that it ends at a given time.

One constant is added to every time of the data set, the items' publication included. A record's
Kafka timestamp is its shifted event time. Speed 100 sends 100 seconds of the data set each second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from ingest.clock import Clock
from ingest.datasets import Dataset
from ingest.log import Delivered, Outgoing, Producer
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.errors import Rejected
from schemas.events import Item, UserEvent
from schemas.images import ImageLimits, check_image
from schemas.registry import Registry

# A paced replay reports, and hands over what it has sent, this often.
PULSE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan:
    """What part of a data set is sent, how fast, and where on the time line it ends."""

    end_ms: int  # what the event time of the data set's last row becomes
    speed: float | None = None  # seconds of the data set per second; None: as fast as possible
    from_fraction: float = 0.0  # of the rows
    until_fraction: float = 1.0
    limit: int | None = None  # rows
    items: bool = True  # send the catalogue first

    def __post_init__(self) -> None:
        if not 0 <= self.from_fraction <= self.until_fraction <= 1:
            raise ValueError(
                f"expected 0 <= from <= until <= 1, got {self.from_fraction}..{self.until_fraction}"
            )
        if self.speed is not None and self.speed <= 0:
            raise ValueError(f"speed must be positive, got {self.speed}")
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")

    def rows(self, count: int) -> tuple[int, int]:
        """First row and the row after the last, of `count`.

        >>> ReplayPlan(end_ms=0, from_fraction=0.5, limit=10).rows(100)
        (50, 60)
        """
        start, stop = round(count * self.from_fraction), round(count * self.until_fraction)
        return start, stop if self.limit is None else min(stop, start + self.limit)


@dataclass(slots=True, kw_only=True)
class Sent:
    """What a replay has put on the log so far."""

    rows: int = 0
    items: int = 0
    events: Counter[str] = field(default_factory=Counter)  # by event type
    distinct: Counter[str] = field(default_factory=Counter)  # the same, repeated rows left out
    repeated_rows: int = 0
    last_offsets: dict[int, int] = field(default_factory=dict)  # partition -> offset of user-events
    seconds: float = 0.0

    def delivered(self, record: Delivered) -> None:
        """Note where a user-event landed."""
        known = self.last_offsets.get(record.partition, -1)
        self.last_offsets[record.partition] = max(known, record.offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """What the features job made of a stretch of user-events."""

    accepted: Mapping[str, int]  # by event type
    duplicates: int
    late: int
    rejected: int

    def lost(self, sent: Sent) -> int:
        """
        Events that were sent and that nothing became of. Never more than 0, or something is wrong.

        >>> folded = Folded(accepted={"CLICK": 2}, duplicates=1, late=0, rejected=0)
        >>> folded.lost(Sent(events=Counter(CLICK=3)))
        0
        """
        known = sum(self.accepted.values()) + self.duplicates + self.late + self.rejected
        return max(0, sent.events.total() - known)


class FoldWatch(Protocol):
    """The features job, as a replay sees it. `features.fold_watch` provides one."""

    def begin(self) -> None:
        """
        Remember the job's counts, once it has folded what is on the log already.

        Raises:
            Misconfigured: no features job is at work.
        """

    def wait(self, last_offsets: Mapping[int, int], timeout_s: float) -> Folded:
        """Return what was folded since `begin`, once every partition's position is past its offset.

        Raises:
            Misconfigured: no features job is at work.
            Retryable: it was not within the time.
        """


class Replay:
    """Sends one data set. One thread at a time."""

    def __init__(
        self, dataset: Dataset, producer: Producer, registry: Registry, topics: Topics, clock: Clock
    ) -> None:
        self._dataset = dataset
        self._producer = producer
        self._topics = topics
        self._clock = clock
        self._pulse_s = clock.monotonic_s()
        self._items = Codec(registry, Item, topics.item_updates)
        self._events = Codec(registry, UserEvent, topics.user_events)

    def run(self, plan: ReplayPlan, on_progress: Callable[[Sent], None] | None = None) -> Sent:
        """
        Send what the plan asks for and wait until all of it is on the log.

        Raises:
            BrokerUnavailable: something was not delivered.
            Rejected: an item's image is none or too large; nothing was sent.
        """
        shift_ms = plan.end_ms - self._dataset.last_ms
        started_s = self._clock.monotonic_s()
        sent = Sent()
        if plan.items:
            self._send_items(shift_ms, sent)
        for event, repeated in self._paced(plan, shift_ms, sent, on_progress):
            self._send_event(event, sent)
            sent.events[event.event_type.name] += 1
            if not repeated:
                sent.distinct[event.event_type.name] += 1
        self._producer.flush(60.0)
        sent.seconds = self._clock.monotonic_s() - started_s
        if on_progress is not None:
            on_progress(sent)
        return sent

    def _send_items(self, shift_ms: int, sent: Sent) -> None:
        _check_images(self._dataset.items)
        for item in self._dataset.items:
            published = None if item.published_at is None else item.published_at + shift_ms
            self._producer.send(
                Outgoing(
                    topic=self._topics.item_updates,
                    key=item.item_id.encode(),
                    value=self._items.encode(replace(item, published_at=published)),
                    timestamp_ms=self._dataset.first_ms + shift_ms,
                )
            )
            sent.items += 1

    def _send_event(self, event: UserEvent, sent: Sent) -> None:
        self._producer.send(
            Outgoing(
                topic=self._topics.user_events,
                key=event.user_id.encode(),
                value=self._events.encode(event),
                timestamp_ms=event.event_time,
            ),
            sent.delivered,
        )

    def _paced(
        self,
        plan: ReplayPlan,
        shift_ms: int,
        sent: Sent,
        on_progress: Callable[[Sent], None] | None,
    ) -> Iterator[tuple[UserEvent, bool]]:
        """Shifted events, each at its time."""
        start, stop = plan.rows(len(self._dataset))
        began_s = self._clock.monotonic_s()
        first_ms: int | None = None
        for chunk in self._dataset.chunks(start, stop, shift_ms=shift_ms):
            for event, repeated in zip(chunk.events, chunk.repeated, strict=True):
                first_ms = event.event_time if first_ms is None else first_ms
                if plan.speed is not None:
                    ahead_s = (event.event_time - first_ms) / 1000 / plan.speed
                    self._sleep_until(began_s + ahead_s, sent, on_progress)
                yield event, repeated
            sent.rows += chunk.rows
            sent.repeated_rows += chunk.repeated_rows
            if on_progress is not None:
                on_progress(sent)

    def _sleep_until(
        self, due_s: float, sent: Sent, on_progress: Callable[[Sent], None] | None
    ) -> None:
        while (left_s := due_s - self._clock.monotonic_s()) > 0:
            self._clock.sleep(min(left_s, PULSE_S))
            if self._clock.monotonic_s() - self._pulse_s >= PULSE_S:
                self._pulse_s = self._clock.monotonic_s()
                self._producer.flush(60.0)  # serves delivery reports; nothing waits in a pause
                if on_progress is not None:
                    on_progress(sent)


def _check_images(items: Iterable[Item]) -> None:
    """Whoever reads the catalogue may decode them."""
    limits = ImageLimits()
    for item in items:
        if item.image is not None:
            try:
                check_image(item.image, None, limits)
            except Rejected as rejected:
                detail = f"item {item.item_id!r}: {rejected.detail}"
                raise Rejected(rejected.reason, detail) from rejected
