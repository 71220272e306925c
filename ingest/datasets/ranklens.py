"""
Ranklens: lists of 24 films as they were shown and the clicks on them, in Metarank's event format.

A ranking is a row and becomes one impression an item; a click is a row of its own. All of them
carry the ranking's id as request and the item's place in it as position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from ingest.datasets.dataset import Dataset, Raw, hash_id
from ingest.datasets.files import find, read_lines
from schemas.errors import Misconfigured
from schemas.events import EventType, Item, UserEvent

LICENCE: Final = "Ranklens by Metarank: CC BY-SA 4.0 (github.com/metarank/ranklens)"
_HELP: Final = "Ranklens' events.jsonl from github.com/metarank/ranklens"
_SCHEMA: Final = pl.Schema(
    {
        "row_id": pl.String(),
        "user_id": pl.String(),
        "time_ms": pl.Int64(),
        "kind": pl.String(),  # of the events that the row becomes
        "request_id": pl.String(),
        "positions": pl.List(pl.Int64),
        "items": pl.List(pl.String),
    }
)


def read_ranklens(folder: Path) -> Dataset:
    """Ranklens' events, plain or gzipped. It says nothing of its users."""
    path = find(folder, "events.jsonl", _HELP)
    found = _Found()
    for number, event in enumerate(read_lines(path), 1):
        try:
            found.take(event)
        except (KeyError, TypeError, ValueError) as error:
            raise Misconfigured(f"{path}, line {number}: {error!r}: put {_HELP} there") from error
    return Raw(
        name="ranklens",
        licence=LICENCE,
        items=tuple(found.items.values()),
        rows=pl.DataFrame(found.rows, schema=_SCHEMA, orient="row"),
        events_of=_events,
        profiles={},
    ).dataset()


class _Found:
    """What the lines said so far."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.rows: list[tuple[Any, ...]] = []
        self._shown: dict[str, list[str]] = {}  # ranking -> its items

    def take(self, event: Mapping[str, Any]) -> None:
        """One line."""
        match event["event"], event.get("type"):
            case "item", _:
                self.items[event["item"]] = _item(event["item"], event["fields"])
            case "ranking", _:
                shown = self._shown[event["id"]] = [item["id"] for item in event["items"]]
                places = list(range(len(shown)))
                self.rows.append((*_head(event), "IMPRESSION", event["id"], places, shown))
            case "interaction", "click":
                shown, item = self._shown.get(event["ranking"], []), event["item"]
                place = shown.index(item) if item in shown else None
                self.rows.append((*_head(event), "CLICK", event["ranking"], [place], [item]))
            case kind:
                raise ValueError(f"event {kind} is not known")


def _head(event: Mapping[str, Any]) -> tuple[Any, ...]:
    return event["id"], event["user"], int(event["timestamp"])


def _events(row: Mapping[str, Any]) -> list[UserEvent]:
    kind = EventType[row["kind"]]
    return [
        UserEvent(
            event_id=hash_id(f"ranklens|{row['row_id']}|{position}|{kind.name}"),
            user_id=row["user_id"],
            item_id=item,
            event_type=kind,
            event_time=row["time_ms"],
            request_id=row["request_id"],
            position=position,
            surface="ranklens",
        )
        for position, item in zip(row["positions"], row["items"], strict=True)
    ]


def _item(item_id: str, fields: Iterable[Mapping[str, Any]]) -> Item:
    values = {field["name"]: field["value"] for field in fields}
    released_s = values.get("release_date")
    return Item(
        item_id=item_id,
        title=values.get("title", f"Film {item_id}"),
        categories=(*values.get("genres", ()), *values.get("tags", ())),
        creator=values.get("director"),
        published_at=None if released_s is None else int(released_s * 1000),
    )
