"""A made-up shop's events: zipf users and items, a realistic mix, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.events import Attribute, EventType, Item, UserEvent

# Shares as a video or retail log has them: most of what is logged is what was shown.
MIX = {
    EventType.IMPRESSION: 0.62,
    EventType.VIEW: 0.18,
    EventType.CLICK: 0.11,
    EventType.LIKE: 0.03,
    EventType.DISLIKE: 0.005,
    EventType.SHARE: 0.005,
    EventType.CART: 0.02,
    EventType.PURCHASE: 0.01,
    EventType.RATING: 0.01,
    EventType.PROFILE: 0.01,
}
REPEATED = 0.01  # share of events that a producer sends again
SURFACES = ("home", "search", "detail")
DEVICES = ("android", "ios", "web")
COUNTRIES = ("de", "fr", "in", "us")
_LISTED = (EventType.IMPRESSION, EventType.CLICK)  # carry the list they belong to
_VALUED = (EventType.RATING, EventType.PURCHASE, EventType.CART)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """Who and what there is."""

    users: int = 20_000
    items: int = 5_000
    span_ms: int = 3 * 86_400_000
    seed: int = 11

    def user(self, at: int) -> str:
        """Id of a user, the most active first."""
        return f"user-{at:05}"

    def item(self, at: int) -> str:
        """Id of an item, the most popular first."""
        return f"item-{at:05}"

    def catalogue(self, count: int) -> list[Item]:
        """The most popular items, described."""
        chance = np.random.default_rng(self.seed)
        groups = chance.integers(0, 40, (count, 2)).tolist()
        return [
            Item(
                item_id=self.item(at),
                title=f"Item number {at}",
                categories=tuple({f"category-{g}" for g in groups[at]}),
                creator=f"creator-{at % 300}",
                published_at=1_600_000_000_000 + at * 3_600_000,
                price=float(5 + at % 90),
            )
            for at in range(count)
        ]

    def events(self, count: int, end_ms: int, *, live: bool = False) -> Iterator[UserEvent]:
        """
        `count` events in the order of their times, of which the last is at `end_ms`.

        `live`: all of them at `end_ms`, to be stamped when they are sent.
        """
        chance = np.random.default_rng(self.seed)
        kinds = chance.choice([int(k) for k in MIX], count, p=_shares(np.array([*MIX.values()])))
        users = chance.choice(self.users, count, p=_zipf(self.users)).tolist()
        items = chance.choice(self.items, count, p=_zipf(self.items)).tolist()
        again = (chance.random(count) < REPEATED).tolist()
        ids = chance.bytes(16 * count).hex()
        pick = chance.integers(0, 12, count).tolist()
        step = 0.0 if live else self.span_ms / count
        event: UserEvent | None = None
        for at, kind in enumerate(map(EventType, kinds.tolist())):
            if again[at] and event is not None:
                yield event
                continue
            listed, place = kind in _LISTED, pick[at]
            event = UserEvent(
                event_id=ids[32 * at : 32 * at + 32],
                user_id=self.user(users[at]),
                item_id=None if kind is EventType.PROFILE else self.item(items[at]),
                event_type=kind,
                event_time=end_ms - int((count - at) * step),
                value=float(1 + place % 5) if kind in _VALUED else None,
                request_id=ids[32 * (at - at % 12) : 32 * (at - at % 12) + 16] if listed else None,
                position=place if listed else None,
                surface=SURFACES[place % 3],
                device=DEVICES[users[at] % 3],
                country=COUNTRIES[users[at] % 4],
                profile=_profile(place) if kind is EventType.PROFILE else (),
            )
            yield event


def _profile(place: int) -> tuple[Attribute, ...]:
    return (
        Attribute(name="age", value=f"{10 * (1 + place % 6)}"),
        Attribute(name="gender", value="fm"[place % 2]),
    )


def _zipf(n: int) -> NDArray[np.float64]:
    return _shares(1.0 / np.arange(1, n + 1))


def _shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return weights / weights.sum()
