"""A peer's row of a user, as plain JSON, and what an event does to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ITEMS = 50
HOUR_MS = 3_600_000
HOURS = 24
SHOWN = frozenset({"VIEW", "CLICK", "LIKE", "DISLIKE", "SHARE", "CART", "PURCHASE", "RATING"})


Row = dict[str, Any]  # JSON, as a peer's own state wants it: {"items": [...], "hours": {hour: {}}}


def empty() -> Row:
    """The row of a user that nothing is known of."""
    return {"items": [], "hours": {}}


def fold(row: Row, event: Mapping[str, Any]) -> None:
    """Take one event in."""
    kind, item = event["event_type"], event["item_id"]
    if item is not None and kind in SHOWN:
        row["items"].append(item)
        del row["items"][:-ITEMS]
    hour = str(event["event_time"] // HOUR_MS)
    hours = row["hours"]
    if hour not in hours:
        hours[hour] = {}
        for old in [h for h in hours if int(h) <= int(hour) - HOURS]:
            del hours[old]
    counts = hours[hour]
    counts[kind] = counts.get(kind, 0) + 1
