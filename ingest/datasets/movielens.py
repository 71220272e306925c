"""MovieLens as csv: `ratings.csv` and `movies.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from ingest.datasets.dataset import Dataset, Raw, hash_id
from ingest.datasets.files import read_csv
from schemas.events import EventType, Item, UserEvent

LICENCE: Final = (
    "MovieLens by GroupLens: research use, no commercial use without permission; "
    "cite Harper and Konstan 2015 (grouplens.org/datasets/movielens)"
)
_HELP: Final = "a MovieLens csv data set from grouplens.org/datasets/movielens"


def read_movielens(folder: Path) -> Dataset:
    """A MovieLens data set as csv, plain or gzipped. It says nothing of its users."""
    ratings = read_csv(folder, "ratings.csv", _HELP)
    films = read_csv(folder, "movies.csv", _HELP)
    key = "movieId" if "movieId" in films.columns else films.columns[0]
    ratings = ratings.select(
        user_id="userId", item_id=ratings.columns[1], value=pl.col("rating").cast(pl.Float64),
        time_ms=pl.col("timestamp").cast(pl.Int64) * 1000,
    )  # fmt: skip
    items = tuple(
        Item(
            item_id=row[key],
            title=row["title"],
            categories=tuple(g for g in row["genres"].split("|") if g != "(no genres listed)"),
            published_at=year_ms(row["title"].rstrip()[-5:-1]),
        )
        for row in films.iter_rows(named=True)
    )
    return of_ratings("movielens", ratings, items, {})


def of_ratings(
    name: str,
    ratings: pl.DataFrame,
    items: tuple[Item, ...],
    profiles: Mapping[str, Mapping[str, str | None]],
) -> Dataset:
    """A data set of ratings, with columns `user_id`, `item_id`, `value`, `time_ms`."""

    def events_of(row: Mapping[str, Any]) -> list[UserEvent]:
        return [
            UserEvent(
                event_id=hash_id(f"{name}|{row['row_id']}|RATING"),
                user_id=row["user_id"],
                item_id=row["item_id"],
                event_type=EventType.RATING,
                event_time=row["time_ms"],
                value=row["value"],
                surface=name,
            )
        ]

    columns = ("user_id", "item_id", "value", "time_ms")
    rows = ratings.with_columns(row_id=pl.concat_str(columns, separator=","))
    return Raw(
        name=name,
        licence=LICENCE,
        items=items,
        rows=rows,
        events_of=events_of,
        profiles=profiles,
    ).dataset()


def year_ms(text: str | None) -> int | None:
    """1 January of a year, UTC.

    >>> year_ms("1970"), year_ms("?")
    (0, None)
    """
    if text is None or not (text.isdecimal() and len(text) == 4):
        return None
    # Days since 1970 of 1 January: 365 a year and the leap days between.
    year = int(text) - 1
    days = (year - 1969) * 365 + (year // 4 - 492) - (year // 100 - 19) + (year // 400 - 4)
    return days * 86_400_000
