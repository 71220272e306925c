"""KuaiRand-Pure: impressions of short videos and what followed, all users and videos described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from ingest.datasets.dataset import Dataset, Raw, hash_id
from ingest.datasets.files import read_csv
from schemas.events import EventType, Item, UserEvent

LICENCE: Final = "KuaiRand-Pure: CC BY-SA 4.0; cite Gao et al., CIKM 2022 (kuairand.com)"
_HELP: Final = "KuaiRand-Pure's csv files from kuairand.com"
_FLAGS: Final = (
    ("is_click", EventType.CLICK),
    ("long_view", EventType.VIEW),
    ("is_like", EventType.LIKE),
    ("is_forward", EventType.SHARE),
    ("is_hate", EventType.DISLIKE),
)


def read_kuairand(folder: Path) -> Dataset:
    """KuaiRand-Pure's standard log: one row an impression, its flags are what followed."""
    log = read_csv(folder, "log_standard_0425_0430.csv", _HELP)
    users = read_csv(folder, "user_features_pure.csv", _HELP)
    videos = read_csv(folder, "video_features_basic_pure.csv", _HELP)
    rows = log.with_columns(
        row_id=pl.concat_str(pl.all(), separator=",", ignore_nulls=False)
    ).with_columns(
        item_id="video_id",
        time_ms=pl.col("time_ms").cast(pl.Int64),
        value=pl.col("play_time_ms").cast(pl.Float64) / 1000,
    )
    return Raw(
        name="kuairand",
        licence=LICENCE,
        items=_items(videos),
        rows=rows,
        events_of=_events,
        profiles={row.pop("user_id"): row for row in users.iter_rows(named=True)},
    ).dataset()


def _events(row: Mapping[str, Any]) -> list[UserEvent]:
    kinds = [EventType.IMPRESSION, *(kind for flag, kind in _FLAGS if row[flag] == "1")]
    return [
        UserEvent(
            event_id=hash_id(f"{row['row_id']}|{kind.name}"),
            user_id=row["user_id"],
            item_id=row["item_id"],
            event_type=kind,
            event_time=row["time_ms"],
            value=row["value"] if kind is EventType.VIEW else None,  # seconds played
            surface=f"kuairand-tab-{row['tab']}",
        )
        for kind in kinds
    ]


def _items(videos: pl.DataFrame) -> tuple[Item, ...]:
    dated = videos.with_columns(
        published=pl.col("upload_dt")
        .str.to_datetime("%Y-%m-%d", strict=False, time_unit="ms")
        .dt.epoch("ms")
    )
    return tuple(
        Item(
            item_id=row["video_id"],
            title=f"Video {row['video_id']}",
            categories=tuple(t for t in (row["tag"] or "").split(",") if t),
            creator=row["author_id"],
            published_at=row["published"],
        )
        for row in dated.iter_rows(named=True)
    )
