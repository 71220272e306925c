"""
The world of simulated shoppers: a catalogue, and who likes what in it. The ground truth for tests.

A segment of shoppers prefers a few categories out of one half of them; each shopper adds noise of
their own. A flip moves every preference into the other half: what was liked is liked no more, and
what nobody chose before is chosen now, so that a model (or a list of popular items) from before
the flip is wrong for everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.events import Attribute, Item

_NAMES: Final = (
    "garden", "kitchen", "books", "games", "shoes", "tools", "music", "toys", "sport", "travel",
    "beauty", "office",
)  # fmt: skip
_DAY_MS: Final = 86_400_000
LIKED: Final = 0.9  # taste for a preferred category, before noise and quality
DISLIKED: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldPolicy:
    """How large the world is."""

    shoppers: int = 100
    items: int = 300
    categories: int = 12
    segments: int = 3
    liked_categories: int = 2  # by segment
    noise: float = 0.2  # of a shopper's own taste, as standard deviation of its logarithm
    seed: int = 1

    def __post_init__(self) -> None:
        if self.shoppers < 1 or self.segments < 1:
            raise ValueError(f"shoppers and segments must be at least 1, got {self}")
        if not 2 <= self.categories <= self.items:
            raise ValueError(f"expected 2 <= categories <= items, got {self}")


class World:
    """Shoppers, items and tastes. Everything follows from the policy's seed."""

    def __init__(
        self, policy: WorldPolicy, start_ms: int, items: Sequence[Item] | None = None
    ) -> None:
        self.policy = policy
        self.users = [f"shopper-{policy.seed}-{i:05d}" for i in range(policy.shoppers)]
        self.segments = np.arange(policy.shoppers) % policy.segments  # [shoppers]
        self._number = {user: i for i, user in enumerate(self.users)}
        self._generation = 0
        self._own = items is None
        self.items: list[Item] = []
        made = self._made(start_ms) if items is None else list(items)
        self._categories = sorted({_category(item) for item in made})
        if len(self._categories) < 2:
            raise ValueError("the items given need two categories or more")
        rng = self._rng(1)
        self._affinity = self._preferences() * rng.lognormal(
            0.0, policy.noise, (policy.shoppers, len(self._categories))
        )
        self._adopt(made)

    def number(self, user_id: str) -> int:
        """A shopper's number."""
        return self._number[user_id]

    def taste(self, user_id: str, item_id: str) -> float:
        """How much a shopper likes an item now, 0 to 1; 0 for what is not in the catalogue."""
        return self.tastes_of([item_id], self.number(user_id))[0]

    def tastes_of(self, item_ids: Sequence[str], shopper: int) -> list[float]:
        """`taste` of each item."""
        places = [self._index.get(item_id) for item_id in item_ids]
        tastes = self.tastes(shopper)
        return [0.0 if at is None else float(tastes[at]) for at in places]

    def tastes(self, shopper: int) -> NDArray[np.float64]:
        """Taste for every item of the catalogue, [items] float64 in 0..1."""
        liked = np.clip(self._affinity[shopper][self._category_of], 0.0, 1.0)
        return np.asarray(liked * self._quality, np.float64)

    def best_items(self, user_id: str, k: int) -> list[str]:
        """The k items that a shopper likes most, best first."""
        order = np.argsort(-self.tastes(self.number(user_id)), kind="stable")[:k]
        return [self.items[i].item_id for i in order]

    def profile(self, shopper: int) -> tuple[Attribute, ...]:
        """What a shop would know about a shopper. It does not tell the segment."""
        rng = self._rng(2, shopper)
        return (
            Attribute(name="age", value=f"{int(rng.integers(2, 7)) * 10}s"),
            Attribute(name="gender", value=str(rng.choice(["F", "M"]))),
        )

    def flip(self) -> None:
        """Every preference moves into the other half of the categories."""
        self._affinity = np.roll(self._affinity, len(self._categories) // 2, axis=1)

    def renew(self, now_ms: int) -> list[Item]:
        """A new catalogue. Returns the old items, no longer available, and the new ones."""
        if not self._own:
            raise ValueError("a catalogue that was given cannot be renewed")
        old = [_unavailable(item) for item in self.items]
        self._generation += 1
        self._adopt(self._made(now_ms))
        return [*old, *self.items]

    def _adopt(self, items: list[Item]) -> None:
        self.items = items
        self._index = {item.item_id: i for i, item in enumerate(items)}
        known = {name: i for i, name in enumerate(self._categories)}
        self._category_of = np.array([known[_category(item)] for item in items])
        self._quality = self._rng(3, self._generation).uniform(0.5, 1.0, len(items))

    def _preferences(self) -> NDArray[np.float64]:
        """[shoppers, categories]: a segment's preferred ones are in the first half."""
        count, half = len(self._categories), len(self._categories) // 2
        table = np.full((self.policy.segments, count), DISLIKED)
        for segment in range(self.policy.segments):
            first = segment * max(1, half // self.policy.segments)
            for j in range(min(self.policy.liked_categories, half)):
                table[segment, (first + j) % half] = LIKED
        return table[self.segments]

    def _made(self, now_ms: int) -> list[Item]:
        rng = self._rng(4, self._generation)
        names = [
            _NAMES[i] if i < len(_NAMES) else f"category-{i}" for i in range(self.policy.categories)
        ]
        order = rng.permutation(np.arange(self.policy.items) % self.policy.categories)
        return [
            Item(
                item_id=f"shop-{self.policy.seed}-{self._generation}-{i:05d}",
                title=f"{names[c].capitalize()} no. {self._generation}{i:05d}",
                categories=(names[c],),
                creator=f"maker-{int(rng.integers(20))}",
                published_at=now_ms - int(rng.integers(0, 300)) * _DAY_MS,
                price=round(float(rng.lognormal(3.0, 0.7)), 2),
            )
            for i, c in enumerate(order.tolist())
        ]

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.policy.seed, *purpose))


def _category(item: Item) -> str:
    return item.categories[0] if item.categories else ""


def _unavailable(item: Item) -> Item:
    return Item(
        item_id=item.item_id,
        title=item.title,
        categories=item.categories,
        creator=item.creator,
        published_at=item.published_at,
        price=item.price,
        available=False,
    )
