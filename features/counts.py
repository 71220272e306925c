"""What became of the records of user-events, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from schemas.events import EventType


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the records of a batch, or of many."""

    records: int = 0
    folded: int = 0
    duplicates: int = 0
    late: int = 0
    erased: int = 0
    dead: int = 0
    misplaced: int = 0  # sent on to their own partition
    types: tuple[int, ...] = (0,) * len(EventType)  # folded, by event type

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(self.types, other.types, strict=True)
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMS}
        return Counts(**sums, types=tuple(a + b for a, b in pairs))

    def named(self) -> tuple[tuple[str, int], ...]:
        """As a stored position carries them."""
        by_type = zip(EventType, self.types, strict=True)
        found = {f"folded.{kind.name}": count for kind, count in by_type if count}
        return tuple(sorted((found | {name: getattr(self, name) for name in _SUMS}).items()))

    @classmethod
    def of(cls, named: Sequence[tuple[str, int]]) -> Counts:
        """
        What `named` gave.

        >>> Counts.of(Counts(folded=2, types=(0, 2) + (0,) * 9).named()).types[1]
        2
        """
        known = dict(named)
        return cls(
            **{name: known.get(name, 0) for name in _SUMS},
            types=tuple(known.get(f"folded.{kind.name}", 0) for kind in EventType),
        )


_SUMS = tuple(f.name for f in fields(Counts) if f.name != "types")
