"""
Simulated shoppers on a surface of their own: sessions, requests, impressions, clicks, and faults.

The core is pure: `step(now)` says what happens until now, `shown(recommendation, now)` what a
shopper does with a list. Everything follows from the seed and the times passed in; what is decided
about one request or one event is drawn from its own id, so the order of answers changes nothing.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import xxhash

from ingest.tastes import World, WorldPolicy
from schemas.events import (
    EventType,
    Item,
    Recommendation,
    RecommendationRequest,
    UserEvent,
)

SURFACE: Final = "shop-sim"
_DEVICES: Final = ("ios", "android", "web")
_COUNTRIES: Final = ("DE", "FR", "NL")
# Requests whose answer never came are forgotten, the oldest first.
_MAX_OPEN: Final = 100_000

Span = tuple[float, float]  # seconds after the start: from, until
Where = dict[str, str | int]  # the fields of an event that say where it happened


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What changes when, in seconds after the start. None: never."""

    flip_at_s: float | None = None  # tastes flip
    catalogue_at_s: float | None = None  # a new catalogue replaces the old one
    outage: Span | None = None  # tracking is down: no event of this surface is sent
    label_loss: Span | None = None  # what follows a list (clicks, carts, purchases) is not sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Shares of events that go wrong, each 0 to 1."""

    duplicate: float = 0.01
    late: float = 0.01
    late_s: float = 30.0  # how much later a late event is sent
    malformed: float = 0.001  # bytes that are no event, sent after an event with its key


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorPolicy:
    """How shoppers behave. Times are seconds of the clock; `day_s` is how long a day lasts."""

    world: WorldPolicy = field(default_factory=WorldPolicy)
    surface: str = SURFACE
    k: int = 10
    sessions_per_hour: float = 6.0  # of one shopper, on average over a day
    pages_per_session: float = 5.0
    dwell_s: float = 10.0  # between two pages
    day_s: float = 86_400.0
    rhythm: float = 0.6  # 0: no daily rhythm; 1: nothing at the quietest time
    click: float = 0.7  # chance to click a perfect item in the first place
    position_decay: float = 0.5  # chance to look at place p: (1 + p) ** -position_decay
    click_delay_s: float = 1.0
    organic: float = 0.5  # chance that a page also brings a click found without a list
    cart: float = 0.2  # of clicks
    purchase: float = 0.5  # of carts
    faults: Faults = field(default_factory=Faults)
    script: Script = field(default_factory=Script)

    def __post_init__(self) -> None:
        for name in ("sessions_per_hour", "pages_per_session", "dwell_s", "day_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")


@dataclass(slots=True)
class Actions:
    """What is to be produced."""

    requests: list[RecommendationRequest] = field(default_factory=list)
    events: list[UserEvent] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    malformed: list[tuple[str, bytes]] = field(default_factory=list)  # user id, bytes

    def __bool__(self) -> bool:
        return bool(self.requests or self.events or self.items or self.malformed)


@dataclass(slots=True)
class Tally:
    """The truth about what was sent: what a test counts against."""

    requests: int = 0
    answered: int = 0
    events: Counter[str] = field(default_factory=Counter)  # sent, each event once, by type
    duplicates: int = 0
    late: int = 0
    malformed: int = 0
    withheld: Counter[str] = field(default_factory=Counter)  # by outage or label loss, by type


class Simulator:
    """Shoppers from `start_ms` on. Not thread-safe."""

    def __init__(
        self, policy: SimulatorPolicy, start_ms: int, items: Sequence[Item] | None = None
    ) -> None:
        self.policy = policy
        self.world = World(policy.world, start_ms, items)
        self.tally = Tally()
        self._start_ms = start_ms
        self._run = xxhash.xxh3_64_hexdigest(f"{policy.world.seed}|{start_ms}".encode())[:8]
        self._rng = np.random.default_rng((policy.world.seed, 5))
        self._due: list[tuple[int, int, Callable[[int], None]]] = []
        self._numbered = 0
        self._out = Actions()
        self._open: dict[str, int] = {}  # request id -> shopper
        self._greeted: set[int] = set()
        self._out.items += self.world.items
        self._plan(policy.script)

    # --- what drives it

    def step(self, now_ms: int) -> Actions:
        """Everything that happens up to `now_ms` and has not been told yet."""
        while self._due and self._due[0][0] <= now_ms:
            at_ms, _, act = heapq.heappop(self._due)
            act(at_ms)
        told, self._out = self._out, Actions()
        return told

    def shown(self, recommendation: Recommendation, now_ms: int) -> list[UserEvent]:
        """
        A shopper sees the list: the impressions, now. Clicks follow from `step` when they are due.

        An answer to no open request (another's, or a repeat) gives nothing.
        """
        shopper = self._open.pop(recommendation.request_id, None)
        if shopper is None:
            return []
        self.tally.answered += 1
        request_id = recommendation.request_id
        rng = np.random.default_rng((self.policy.world.seed, _hash(request_id)))
        taste = self.world.tastes_of([item.item_id for item in recommendation.items], shopper)
        for place, item in enumerate(recommendation.items):
            where: Where = {"request_id": request_id, "position": place, "item_id": item.item_id}
            self._emit(self._event(shopper, EventType.IMPRESSION, now_ms, **where), now_ms)
            looks = (1 + place) ** -self.policy.position_decay
            chance, delay = rng.random(), rng.exponential(self.policy.click_delay_s)
            if chance < self.policy.click * looks * taste[place]:
                self._click(shopper, now_ms + max(50, round(delay * 1000)), where)
        told, self._out.events = self._out.events, []
        return told

    # --- sessions

    def _plan(self, script: Script) -> None:
        if script.flip_at_s is not None:
            self._at(self._start_ms + round(script.flip_at_s * 1000), lambda _: self.world.flip())
        if script.catalogue_at_s is not None:
            self._at(self._start_ms + round(script.catalogue_at_s * 1000), self._renew)
        for shopper in range(self.policy.world.shoppers):
            self._next_session(shopper, self._start_ms)

    def _renew(self, at_ms: int) -> None:
        self._out.items += self.world.renew(at_ms)

    def _next_session(self, shopper: int, after_ms: int) -> None:
        """Thinning: draw at the peak's rate, keep in proportion to the time of day."""
        peak = (1 + self.policy.rhythm) * self.policy.sessions_per_hour / 3600
        at_s = after_ms / 1000
        while True:
            at_s += self._rng.exponential(1 / peak)
            if self._rng.random() * (1 + self.policy.rhythm) <= self.intensity(at_s):
                break
        pages = int(self._rng.geometric(1 / max(1.0, self.policy.pages_per_session)))
        self._at(round(at_s * 1000), lambda at_ms: self._page(shopper, pages, at_ms))

    def intensity(self, at_s: float) -> float:
        """Traffic relative to the day's mean; the peak is at 20 h of the (scaled) day."""
        turn = at_s / self.policy.day_s - 20 / 24
        return 1 + self.policy.rhythm * math.cos(2 * math.pi * turn)

    def _page(self, shopper: int, left: int, at_ms: int) -> None:
        """A shopper opens a page: asks for a list, and may find something without it."""
        if shopper not in self._greeted:
            self._greeted.add(shopper)
            profile = self._event(shopper, EventType.PROFILE, at_ms)
            self._emit(profile, at_ms)
        self._ask(shopper, at_ms)
        if self._rng.random() < self.policy.organic:
            wishes = self.world.tastes(shopper) ** 2
            found = int(self._rng.choice(len(wishes), p=wishes / wishes.sum()))
            later = at_ms + round(self._rng.uniform(0.3, 0.9) * self.policy.dwell_s * 1000)
            self._click(shopper, later, {"item_id": self.world.items[found].item_id})
        if left > 1:
            dwell = max(0.1, self._rng.exponential(self.policy.dwell_s))
            after = at_ms + round(dwell * 1000)
            self._at(after, lambda then_ms: self._page(shopper, left - 1, then_ms))
        else:
            self._next_session(shopper, at_ms)

    def _ask(self, shopper: int, at_ms: int) -> None:
        self.tally.requests += 1
        request_id = f"sim-{self._run}-{self.tally.requests}"
        self._open[request_id] = shopper
        if len(self._open) > _MAX_OPEN:
            del self._open[next(iter(self._open))]
        self._out.requests.append(
            RecommendationRequest(
                request_id=request_id,
                user_id=self.world.users[shopper],
                event_time=at_ms,
                k=self.policy.k,
                surface=self.policy.surface,
                device=_DEVICES[shopper % len(_DEVICES)],
                country=_COUNTRIES[shopper % len(_COUNTRIES)],
            )
        )

    def _click(self, shopper: int, at_ms: int, where: Where) -> None:
        def act(now_ms: int) -> None:
            click = self._event(shopper, EventType.CLICK, now_ms, **where)
            self._emit(click, now_ms)
            if _share(click.event_id, "cart") < self.policy.cart:
                self._emit(self._event(shopper, EventType.CART, now_ms, **where), now_ms)
                if _share(click.event_id, "purchase") < self.policy.purchase:
                    self._emit(self._event(shopper, EventType.PURCHASE, now_ms, **where), now_ms)

        self._at(at_ms, act)

    # --- events and what goes wrong with them

    def _event(self, shopper: int, kind: EventType, at_ms: int, **where: str | int) -> UserEvent:
        name = f"{shopper}|{kind}|{at_ms}|{sorted(where.items())}"
        profile = self.world.profile(shopper) if kind is EventType.PROFILE else ()
        return UserEvent(
            event_id=xxhash.xxh3_64_hexdigest(f"{self._run}|{name}".encode()),
            user_id=self.world.users[shopper],
            event_type=kind,
            event_time=at_ms,
            surface=self.policy.surface,
            device=_DEVICES[shopper % len(_DEVICES)],
            country=_COUNTRIES[shopper % len(_COUNTRIES)],
            profile=profile,
            **where,  # type: ignore[arg-type]
        )

    def _emit(self, event: UserEvent, now_ms: int) -> None:
        faults = self.policy.faults
        if self._withheld(event):
            self.tally.withheld[event.event_type.name] += 1
            return
        if _share(event.event_id, "late") < faults.late:
            self.tally.late += 1
            self._at(now_ms + round(faults.late_s * 1000), lambda _: self._send(event))
        else:
            self._send(event)

    def _send(self, event: UserEvent) -> None:
        faults = self.policy.faults
        self._out.events.append(event)
        self.tally.events[event.event_type.name] += 1
        if _share(event.event_id, "duplicate") < faults.duplicate:
            self._out.events.append(event)
            self.tally.duplicates += 1
        if _share(event.event_id, "malformed") < faults.malformed:
            self._out.malformed.append(
                (event.user_id, b"\xffnot an event " + event.event_id.encode())
            )
            self.tally.malformed += 1

    def _withheld(self, event: UserEvent) -> bool:
        script, at_s = self.policy.script, (event.event_time - self._start_ms) / 1000
        if _within(script.outage, at_s):
            return True
        follows = event.request_id is not None and event.event_type is not EventType.IMPRESSION
        return follows and _within(script.label_loss, at_s)

    def _at(self, at_ms: int, act: Callable[[int], None]) -> None:
        self._numbered += 1
        heapq.heappush(self._due, (at_ms, self._numbered, act))


def _within(span: Span | None, at_s: float) -> bool:
    return span is not None and span[0] <= at_s < span[1]


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _share(event_id: str, purpose: str) -> float:
    """A number in [0, 1) that belongs to this event and purpose."""
    return _hash(f"{event_id}|{purpose}") / 2.0**64
