"""
A data set as catalogue items and user events in event-time order.

It is held as columns; events are made some thousand rows at a time.

A row of a data set gives one event or several. A user's static attributes are sent as a PROFILE
event just before the user's first row. An event's id is a hash of its whole row and its type, so a
repeated row gives repeated ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
import xxhash

from schemas.errors import Misconfigured
from schemas.events import Attribute, EventType, Item, UserEvent

CHUNK_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """Events of consecutive rows. `repeated[i]`: event i has been sent before, by an equal row."""

    events: list[UserEvent]
    repeated: list[bool]
    rows: int
    repeated_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A data set, sorted by event time."""

    name: str
    licence: str
    items: tuple[Item, ...]
    first_ms: int  # event time of the first row
    last_ms: int  # event time of the last row
    # With columns `user_id`, `time_ms`, `again` (an equal row came before), `first` (of the user),
    # and what `events_of` wants.
    rows: pl.DataFrame
    events_of: Callable[[Mapping[str, Any]], list[UserEvent]]
    profile_of: Callable[[str], tuple[Attribute, ...]]

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(
        self, start: int = 0, stop: int | None = None, *, shift_ms: int = 0
    ) -> Iterator[Chunk]:
        """The events of rows `start` to `stop`, later by `shift_ms`, some thousand rows a time."""
        end = len(self) if stop is None else min(stop, len(self))
        for at in range(start, end, CHUNK_ROWS):
            part = self.rows[at : min(at + CHUNK_ROWS, end)]
            part = part.with_columns(pl.col("time_ms") + shift_ms)  # event ids do not hold it
            events: list[UserEvent] = []
            repeated: list[bool] = []
            for row in part.iter_rows(named=True):
                made = self.events_of(row)
                if row["first"]:
                    made = [*self._profile(row["user_id"], made[0].event_time), *made]
                events += made
                repeated += [row["again"]] * len(made)
            yield Chunk(events, repeated, len(part), int(part["again"].sum()))

    def _profile(self, user_id: str, event_time: int) -> list[UserEvent]:
        attributes = self.profile_of(user_id)
        if not attributes:
            return []
        text = "|".join((self.name, user_id, *(f"{a.name}={a.value}" for a in attributes)))
        return [
            UserEvent(
                event_id=hash_id(text),
                user_id=user_id,
                event_type=EventType.PROFILE,
                event_time=event_time,
                profile=attributes,
            )
        ]


def hash_id(text: str) -> str:
    """A stable id of a text.

    >>> hash_id("a row")
    'b845c16bfad97f86'
    """
    return xxhash.xxh3_64_hexdigest(text.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A data set as an adapter read it: rows in any order, `row_id` telling which are equal."""

    name: str
    licence: str
    items: tuple[Item, ...]
    rows: pl.DataFrame  # with columns `row_id`, `user_id`, `time_ms`
    events_of: Callable[[Mapping[str, Any]], list[UserEvent]]
    profiles: Mapping[str, Mapping[str, str | None]]  # static attributes by user id

    def dataset(self) -> Dataset:
        """
        Sorted by time (rows of one millisecond keep their order), repeats and first rows marked.

        Raises:
            Misconfigured: there are no rows.
        """
        rows = self.rows.sort("time_ms", maintain_order=True).with_columns(
            again=~pl.col("row_id").is_first_distinct(), first=pl.col("user_id").is_first_distinct()
        )
        if not len(rows):
            raise Misconfigured(f"data set {self.name} has no rows")
        return Dataset(
            name=self.name,
            licence=self.licence,
            items=self.items,
            first_ms=rows["time_ms"][0],
            last_ms=rows["time_ms"][-1],
            rows=rows,
            events_of=self.events_of,
            profile_of=lambda user_id: attributes(self.profiles.get(user_id, {})),
        )


def attributes(values: Mapping[str, str | None]) -> tuple[Attribute, ...]:
    """
    Static attributes; those without a value are left out.

    >>> [a.name for a in attributes({"age": "20s", "job": None, "town": ""})]
    ['age']
    """
    return tuple(Attribute(name=n, value=v) for n, v in values.items() if v not in (None, ""))
