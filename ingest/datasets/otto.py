"""OTTO: sessions of a shop with clicks, carts and orders of articles that are only numbers."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from ingest.datasets.dataset import Dataset, Raw, hash_id
from ingest.datasets.files import find
from schemas.errors import Misconfigured
from schemas.events import EventType, Item, UserEvent

LICENCE: Final = "OTTO sessions: CC BY 4.0 (github.com/otto-de/recsys-dataset)"
_HELP: Final = "OTTO's train.jsonl from github.com/otto-de/recsys-dataset"
_KINDS: Final = {
    "clicks": EventType.CLICK,
    "carts": EventType.CART,
    "orders": EventType.PURCHASE,
}
_EVENT: Final = pl.Struct({"aid": pl.Int64, "ts": pl.Int64, "type": pl.String})
_SCHEMA: Final = pl.Schema({"session": pl.Int64(), "events": pl.List(_EVENT)})


def read_otto(folder: Path) -> Dataset:
    """OTTO's sessions, plain or gzipped. A session is a user: the data set knows no others."""
    path = find(folder, "train.jsonl", _HELP)
    rows = _rows(path)
    unknown = set(rows["kind"].unique()) - _KINDS.keys()
    if unknown or rows.null_count().sum_horizontal().item():
        raise Misconfigured(
            f"{path} has events without session, aid, ts or a known type "
            f"({sorted(unknown, key=str)}): put {_HELP} there"
        )
    return Raw(
        name="otto",
        licence=LICENCE,
        items=tuple(
            Item(item_id=item, title=f"Article {item}")
            for item in rows["item_id"].unique(maintain_order=True)
        ),
        rows=rows,
        events_of=_events,
        profiles={},
    ).dataset()


def _rows(path: Path) -> pl.DataFrame:
    source = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path
    try:
        sessions = pl.read_ndjson(source, schema=_SCHEMA)
    except pl.exceptions.PolarsError as error:
        raise Misconfigured(f"{path} is not what OTTO publishes: {error}") from error
    events = sessions.filter(pl.col("events").list.len() > 0).explode("events").unnest("events")
    rows = events.select(
        user_id=pl.col("session").cast(pl.String), item_id=pl.col("aid").cast(pl.String),
        time_ms="ts", kind="type",
    )  # fmt: skip
    return rows.with_columns(row_id=pl.concat_str(pl.all(), separator=","))


def _events(row: Mapping[str, Any]) -> list[UserEvent]:
    kind = _KINDS[row["kind"]]
    return [
        UserEvent(
            event_id=hash_id(f"otto|{row['row_id']}|{kind.name}"),
            user_id=row["user_id"],
            item_id=row["item_id"],
            event_type=kind,
            event_time=row["time_ms"],
            surface="otto",
        )
    ]
