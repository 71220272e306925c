"""Run simulated shoppers against a live system: produce what they do, show them what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ingest.clock import Clock
from ingest.log import Log, Outgoing, Producer, Source, TopicPartition
from ingest.simulator import Actions, Simulator
from ingest.topics import Topics
from schemas.codec import Codec, Decoder
from schemas.errors import Rejected
from schemas.events import Item, Recommendation, RecommendationRequest, UserEvent
from schemas.registry import Registry

TICK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The system that the shoppers meet."""

    log: Log
    source: Source  # of this run alone
    producer: Producer
    registry: Registry
    topics: Topics
    clock: Clock


class Simulation:
    """One run. Made before the simulator's first request, so that no answer is missed."""

    def __init__(self, simulator: Simulator, live: Live) -> None:
        self._simulator = simulator
        self._live = live
        topics, registry = live.topics, live.registry
        self._events = Codec(registry, UserEvent, topics.user_events)
        self._items = Codec(registry, Item, topics.item_updates)
        self._requests = Codec(registry, RecommendationRequest, topics.requests)
        self._answers = Decoder(registry, Recommendation)
        ends = live.log.bounds(topics.recommendations)
        live.source.assign(
            {TopicPartition(topics.recommendations, p): end for p, (_, end) in ends.items()}
        )

    def run(
        self,
        duration_s: float,
        *,
        stopped: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Simulator], None] | None = None,
    ) -> None:
        """
        Let the shoppers act for `duration_s`, or until `stopped`.

        Raises:
            BrokerUnavailable: the broker was away for longer than the time-outs.
        """
        clock = self._live.clock
        deadline_s = clock.monotonic_s() + duration_s
        while clock.monotonic_s() < deadline_s and not stopped():
            self.turn()
            if on_progress is not None:
                on_progress(self._simulator)
        self._live.producer.flush(30.0)

    def turn(self, wait_s: float = TICK_S) -> None:
        """Produce what is due, then show what comes back within `wait_s`."""
        clock = self._live.clock
        self._produce(self._simulator.step(clock.now_ms()))
        batch = self._live.source.poll(1_000, wait_s)
        if batch is None:
            return
        now_ms = clock.now_ms()
        for value in batch.values:
            try:
                answer = self._answers.decode(value)
            except Rejected:
                continue  # not ours to judge; whoever reads recommendations in earnest reports it
            if answer.surface == self._simulator.policy.surface:
                self._send_events(self._simulator.shown(answer, now_ms))

    def _produce(self, actions: Actions) -> None:
        send, topics = self._live.producer.send, self._live.topics
        for item in actions.items:
            value = self._items.encode(item)
            send(Outgoing(topic=topics.item_updates, key=item.item_id.encode(), value=value))
        self._send_events(actions.events)
        for user_id, value in actions.malformed:
            send(Outgoing(topic=topics.user_events, key=user_id.encode(), value=value))
        for request in actions.requests:
            value = self._requests.encode(request)
            send(Outgoing(topic=topics.requests, key=request.user_id.encode(), value=value))

    def _send_events(self, events: Sequence[UserEvent]) -> None:
        for event in events:
            self._live.producer.send(
                Outgoing(
                    topic=self._live.topics.user_events,
                    key=event.user_id.encode(),
                    value=self._events.encode(event),
                )
            )
