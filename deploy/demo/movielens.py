"""
MovieLens as live traffic: before a user's next rating a request is sent, then the rating itself.

The request says which event it must reflect (`after_offset`) and leaves out what the user has
rated. What the user rates next is the truth that model and popularity are scored against.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from deploy.demo.score import Popularity, Scores, gain
from ingest.clock import Clock
from ingest.datasets import Dataset
from ingest.log import Delivered, Outgoing, Producer
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.events import (
    EventType,
    Offset,
    Recommendation,
    RecommendationRequest,
    UserEvent,
)
from schemas.registry import Registry

PREFIX = "movielens-"
TICK_S = 0.1
FLUSH_S = 10.0
PATIENCE_S = 2.0  # a user without an answer goes on after this
BEFORE_MS = 1_000  # a request comes this long before what the user did next


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose outcome is known to the demo."""

    user_id: str
    wanted: str
    popularity_gain: float
    sent_s: float


class MovieLensTraffic:
    """
    Sends one part of the data set within a given time. `answered` may come from a thread.

    A user acts only after having seen the answer (or after PATIENCE_S): otherwise the row that the
    answer is made from would hold what the answer should foretell.
    """

    def __init__(
        self,
        dataset: Dataset,
        shift_ms: int,
        producer: Producer,
        registry: Registry,
        topics: Topics,
        clock: Clock,
    ) -> None:
        self._dataset, self._shift_ms = dataset, shift_ms
        self._producer, self._topics, self._clock = producer, topics, clock
        self._events = Codec(registry, UserEvent, topics.user_events)
        self._requests = Codec(registry, RecommendationRequest, topics.requests)
        self._popular = Popularity()
        self._seen: dict[str, set[str]] = defaultdict(set)
        self._newest: dict[str, Offset] = {}
        self._due: dict[str, list[UserEvent]] = {}  # by user, what they will do next
        self._looking: dict[str, str] = {}  # user -> request that they wait for
        self._asked: dict[str, Asked] = {}  # by request id
        self._lock = Lock()
        self.scores = Scores()
        self.latencies_s: list[float] = []
        self.events = 0
        self.requests = 0

    def learn_history(self, rows: int) -> None:
        """Take in what is on the log already: the first rows of the data set."""
        for event in self._events_of(0, rows):
            self._remember(event)

    def run(
        self, first_row: int, duration_s: float, on_sent: Callable[[Delivered, float], None]
    ) -> Iterator[int]:
        """
        Send everything from `first_row` on, evenly within `duration_s`; yields after every tick.

        Args:
            on_sent: given where a tick's last event landed and when (monotonic s) it was sent.

        Yields:
            Rows sent so far.
        """
        rows = len(self._dataset) - first_row
        start_s, done = self._clock.monotonic_s(), 0
        while done < rows or self._due:
            passed = self._clock.monotonic_s() - start_s + TICK_S
            due = min(rows, round(rows * passed / duration_s))
            for event in self._events_of(first_row + done, first_row + due):
                self._due.setdefault(event.user_id, []).append(event)
            done = due
            self._turn(on_sent)
            yield done
            self._clock.sleep(start_s + passed - self._clock.monotonic_s())

    def answered(self, answer: Recommendation, at_s: float) -> None:
        """Score an answer; others than ours are ignored."""
        with self._lock:
            asked = self._asked.pop(answer.request_id, None)
        if asked is None:
            return
        self.latencies_s.append(at_s - asked.sent_s)
        ranked = [item.item_id for item in answer.items]
        own = gain(ranked, asked.wanted)
        self.scores.add(answer.model_version, asked.user_id, own, asked.popularity_gain)

    @property
    def waiting(self) -> int:
        """Requests without an answer yet."""
        return len(self._asked)

    def _turn(self, on_sent: Callable[[Delivered, float], None]) -> None:
        """Users with something to do ask first; those who have their answer do it."""
        last: list[Delivered] = []
        sent_s = self._clock.monotonic_s()
        for user in list(self._due):
            request = self._looking.get(user)
            if request is None:
                self._ask(self._due[user])
            elif self._may_act(request, sent_s):
                for event in self._due.pop(user):
                    self._produce(event, last)
                    self._remember(event)
                    self.events += 1
                del self._looking[user]
        self._producer.flush(FLUSH_S)
        if last:
            on_sent(last[-1], sent_s)

    def _may_act(self, request: str, now_s: float) -> bool:
        with self._lock:
            asked = self._asked.get(request)
        return asked is None or now_s - asked.sent_s > PATIENCE_S

    def _ask(self, due: Sequence[UserEvent]) -> None:
        """Ask for what the user does next; static attributes are no doing."""
        event = next((e for e in due if e.event_type == EventType.RATING), due[0])
        user, wanted = event.user_id, event.item_id or ""
        request = RecommendationRequest(
            request_id=f"{PREFIX}{event.event_id}",
            user_id=user,
            event_time=event.event_time - BEFORE_MS,
            exclude=tuple(sorted(self._seen[user])),
            after_offset=self._newest.get(user),
            surface=event.surface,
        )
        popular = gain(self._popular.best(self._seen[user]), wanted)
        with self._lock:
            self._asked[request.request_id] = Asked(
                user, wanted, popular, self._clock.monotonic_s()
            )
        self._looking[user] = request.request_id
        self._producer.send(
            Outgoing(
                topic=self._topics.requests,
                key=user.encode(),
                value=self._requests.encode(request),
            )
        )
        self.requests += 1

    def _produce(self, event: UserEvent, last: list[Delivered]) -> None:
        user = event.user_id

        def on_delivered(place: Delivered) -> None:
            self._newest[user] = Offset(partition=place.partition, offset=place.offset)
            last.append(place)

        self._producer.send(
            Outgoing(
                topic=self._topics.user_events,
                key=user.encode(),
                value=self._events.encode(event),
                timestamp_ms=event.event_time,
            ),
            on_delivered,
        )

    def _remember(self, event: UserEvent) -> None:
        if event.item_id is not None:
            self._seen[event.user_id].add(event.item_id)
            self._popular.add([event.item_id])

    def _events_of(self, start: int, stop: int) -> Iterator[UserEvent]:
        for chunk in self._dataset.chunks(start, stop, shift_ms=self._shift_ms):
            yield from chunk.events
