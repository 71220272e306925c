import gzip
from collections import Counter
from pathlib import Path

import pytest

from ingest.datasets import Dataset, kuairand, movielens, movielens_100k, open_dataset
from schemas.errors import Misconfigured
from schemas.events import EventType

WHEEL = Path(__file__).parents[2] / "out" / "data" / "recbole-1.2.1-py3-none-any.whl"


def shared(name: str) -> Path:
    for parent in Path(__file__).parents:
        if (parent / "shared" / "data" / name).is_dir():
            return parent / "shared" / "data" / name
    pytest.skip(f"real data is not here: put {name} into ../shared/data")


def counts(dataset: Dataset) -> tuple[Counter[str], Counter[str], int]:
    events: Counter[str] = Counter()
    distinct: Counter[str] = Counter()
    repeated = 0
    for chunk in dataset.chunks():
        events.update(e.event_type.name for e in chunk.events)
        distinct.update(
            e.event_type.name
            for e, again in zip(chunk.events, chunk.repeated, strict=True)
            if not again
        )
        repeated += chunk.repeated_rows
    return events, distinct, repeated


def write(folder: Path, name: str, text: str) -> None:
    with gzip.open(folder / f"{name}.gz", "wt") as file:
        file.write(text)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    write(tmp_path, "movies.csv", "movieId,title,genres\n7,Heat (1995),Action|Crime\n")
    write(
        tmp_path,
        "ratings.csv",
        "userId,movieId,rating,timestamp\n2,7,4.5,20\n1,7,3.0,10\n1,8,2.0,30\n",
    )
    return tmp_path


def test_ratings_come_in_event_time_order_with_their_films(films: Path) -> None:
    dataset = movielens(films)
    (chunk,) = dataset.chunks()
    assert [(e.user_id, e.item_id, e.event_time, e.value) for e in chunk.events] == [
        ("1", "7", 10_000, 3.0),
        ("2", "7", 20_000, 4.5),
        ("1", "8", 30_000, 2.0),
    ]
    assert {e.event_type for e in chunk.events} == {EventType.RATING}
    assert len({e.event_id for e in chunk.events}) == 3
    (film,) = dataset.items
    assert (film.title, film.categories) == ("Heat (1995)", ("Action", "Crime"))
    assert film.published_at == 788_918_400_000


def test_a_part_of_the_rows_can_be_asked_for(films: Path) -> None:
    dataset = movielens(films)
    assert [e.user_id for c in dataset.chunks(1, 2) for e in c.events] == ["2"]
    assert list(dataset.chunks(3, 9)) == []


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"ratings\.csv.*grouplens"):
        movielens(tmp_path)
    with pytest.raises(Misconfigured, match=r"log_standard.*kuairand\.com"):
        kuairand(tmp_path)
    with pytest.raises(Misconfigured, match="not a folder"):
        open_dataset("kuairand", tmp_path / "none", tmp_path)
    with pytest.raises(Misconfigured, match="one of movielens-100k, movielens, kuairand"):
        open_dataset("netflix", None, tmp_path)


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recbole-1.2.1-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(Misconfigured, match="SHA-256"):
        open_dataset("movielens-100k", None, tmp_path)


def test_kuairand_gives_the_counts_that_its_rows_say() -> None:
    dataset = kuairand(shared("kuairand"))
    events, distinct, repeated = counts(dataset)
    assert len(dataset) == events["IMPRESSION"] == 94_784
    assert repeated == 2_750
    profiles = distinct.pop("PROFILE")
    assert profiles == dataset.rows["user_id"].n_unique()
    assert distinct == {
        "IMPRESSION": 92_034, "CLICK": 41_118, "LIKE": 1_603, "SHARE": 76, "DISLIKE": 63,
        "VIEW": 28_946,
    }  # fmt: skip
    assert len(dataset.items) == 7_583


def test_a_repeated_row_repeats_its_event_ids() -> None:
    dataset = kuairand(shared("kuairand"))
    seen: set[str] = set()
    for chunk in dataset.chunks(0, 20_000):
        for event, again in zip(chunk.events, chunk.repeated, strict=True):
            assert (event.event_id in seen) is again
            seen.add(event.event_id)


def test_movielens_small_has_all_its_ratings() -> None:
    events, distinct, _ = counts(movielens(shared("movielens-small")))
    assert events == distinct == {"RATING": 100_836}


def test_movielens_100k_has_all_its_ratings_and_users() -> None:
    if not WHEEL.exists():
        pytest.skip(f"{WHEEL.name} is not in out/data: `millstream replay movielens-100k` gets it")
    dataset = movielens_100k(WHEEL)
    events, distinct, _ = counts(dataset)
    assert events == distinct == {"RATING": 100_000, "PROFILE": 943}
    assert len(dataset.items) == 1_682
