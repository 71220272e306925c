"""Events from the network to their topic: judged as the fold would judge them, then delivered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import polars as pl

from features.validate import Candidates, rejections
from inference.gather import Bounds, Gatherer, Work
from ingest.clock import Clock
from ingest.log import Delivered, Outgoing, Producer
from schemas.codec import Codec
from schemas.errors import BrokerUnavailable, MillstreamError, Rejected, Retryable
from schemas.events import UserEvent

Answer: TypeAlias = Delivered | MillstreamError

BOUNDS = Bounds(batch=512, waiting=4096)


class EventPublisher:
    """
    Produces events of many callers in batches; each caller hears where its own landed.

    An event whose delivery is in doubt is an error to its caller: sent again with the same
    `event_id`, it is folded once.
    """

    def __init__(
        self,
        producer: Producer,
        codec: Codec[UserEvent],
        clock: Clock,
        *,
        future_ms: int,
        timeout_s: float,
    ) -> None:
        """`future_ms`: how much later than now an event may be. The caller closes the producer."""
        self._producer = producer
        self._codec = codec
        self._clock = clock
        self._future_ms = future_ms
        self._timeout_s = timeout_s
        work: Work[UserEvent, list[Answer], Delivered] = Work(
            first=self._published, second=lambda made: made
        )
        self._gatherer = Gatherer("events", work, BOUNDS)

    async def publish(self, event: UserEvent) -> Delivered:
        """
        Where it landed.

        Raises:
            Rejected: it would not be folded; it says why.
            Retryable: the broker or the registry did not answer, or too many events wait.
        """
        return await self._gatherer.ask(event)

    def close(self) -> None:
        """Deliver what waits, take no more."""
        self._gatherer.close()

    def _published(self, events: Sequence[UserEvent]) -> list[Answer]:
        now_ms = self._clock.now_ms()
        answers: dict[int, Answer] = dict(rejections(_candidates(events, now_ms, self._future_ms)))
        for at in range(len(events)):
            if at not in answers:
                self._send(events[at], at, answers)
        trouble = "no word of its delivery"
        try:
            self._producer.flush(self._timeout_s)
        except (Retryable, Rejected) as error:  # of one or more: those without an answer
            trouble = str(error)
        return [answers.get(at) or BrokerUnavailable(trouble) for at in range(len(events))]

    def _send(self, event: UserEvent, at: int, answers: dict[int, Answer]) -> None:
        def delivered(place: Delivered) -> None:
            answers[at] = place

        try:
            value = self._codec.encode(event)
            record = Outgoing(topic=self._codec.topic, key=event.user_id.encode(), value=value)
            self._producer.send(record, delivered)
        except (Retryable, Rejected) as error:
            answers[at] = error


def _candidates(events: Sequence[UserEvent], now_ms: int, future_ms: int) -> Candidates:
    """What the fold looks at."""
    columns = {
        "user_id": pl.Series([e.user_id for e in events], dtype=pl.String),
        "event_id": pl.Series([e.event_id for e in events], dtype=pl.String),
        "item_id": pl.Series([e.item_id for e in events], dtype=pl.String),
        "event_time": pl.Series([e.event_time for e in events], dtype=pl.Int64),
        "value": pl.Series([e.value for e in events], dtype=pl.Float64),
    }
    frame = pl.DataFrame(columns)
    return Candidates(
        frame=frame,
        users=frame["user_id"],
        timestamps_ms=np.full(len(events), now_ms),
        future_ms=future_ms,
    )
