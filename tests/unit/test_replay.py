from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.clock import ManualClock
from ingest.datasets import Dataset
from ingest.datasets.movielens import read_movielens
from ingest.log import RecordBatch, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.replay import Replay, ReplayPlan, Sent
from ingest.topics import Topics
from schemas.codec import Decoder
from schemas.errors import Rejected
from schemas.events import Item, UserEvent
from schemas.registry import MemoryRegistry

TOPICS = Topics("t-")
END_MS = 1_700_000_000_000


@pytest.fixture
def films(tmp_path: Path) -> Dataset:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n7,Heat (1970),Action\n")
    ratings = "".join(f"{i % 5},7,3.0,{10 * i}\n" for i in range(100))
    (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{ratings}")
    return read_movielens(tmp_path)


class Stage:
    """A replay over a log in memory."""

    def __init__(self, dataset: Dataset) -> None:
        self.clock = ManualClock()
        self.log = MemoryLog()
        self.log.create_topic(TOPICS.user_events, 4)
        self.log.create_topic(TOPICS.item_updates, 4)
        self.registry = MemoryRegistry()
        producer = MemoryProducer(self.log)
        self.replay = Replay(dataset, producer, self.registry, TOPICS, self.clock)

    def batches(self, topic: str) -> Iterator[RecordBatch]:
        source = MemorySource(self.log)
        source.assign({TopicPartition(topic, p): 0 for p in range(4)})
        while (batch := source.poll(1000, 0)) is not None:
            yield batch

    def events(self) -> list[tuple[UserEvent, int, bytes | None]]:
        decoder = Decoder(self.registry, UserEvent)
        found = [
            (decoder.decode(value), int(stamp), key)
            for batch in self.batches(TOPICS.user_events)
            for value, stamp, key in zip(batch.values, batch.timestamps_ms, batch.keys, strict=True)
        ]
        return sorted(found, key=lambda one: one[0].event_time)


def test_the_data_set_is_shifted_by_one_constant_to_end_when_told(films: Dataset) -> None:
    stage = Stage(films)
    sent = stage.replay.run(ReplayPlan(end_ms=END_MS))
    events = stage.events()
    assert [e.event_time - END_MS for e, _, _ in events] == [
        10_000 * i - 990_000 for i in range(100)
    ]
    assert all(stamp == e.event_time for e, stamp, _ in events)
    assert all(key == e.user_id.encode() for e, _, key in events)
    assert sent.events == sent.distinct == {"RATING": 100}
    assert (sent.rows, sent.items) == (100, 1)


def test_items_are_sent_first_on_the_same_time_line(films: Dataset) -> None:
    stage = Stage(films)
    stage.replay.run(ReplayPlan(end_ms=END_MS))
    (batch,) = stage.batches(TOPICS.item_updates)
    item = Decoder(stage.registry, Item).decode(batch.values[0])
    assert item.published_at == END_MS - films.last_ms
    assert batch.keys[0] == b"7"


def test_two_parts_of_a_data_set_make_the_whole(films: Dataset) -> None:
    whole, parts = Stage(films), Stage(films)
    whole.replay.run(ReplayPlan(end_ms=END_MS))
    parts.replay.run(ReplayPlan(end_ms=END_MS, until_fraction=0.3))
    parts.replay.run(ReplayPlan(end_ms=END_MS, from_fraction=0.3, items=False))
    assert parts.events() == whole.events()


def test_a_limit_counts_rows(films: Dataset) -> None:
    stage = Stage(films)
    assert stage.replay.run(ReplayPlan(end_ms=END_MS, from_fraction=0.5, limit=7)).rows == 7
    assert len(stage.events()) == 7


def test_speed_decides_how_long_it_takes(films: Dataset) -> None:
    stage = Stage(films)
    seen: list[float] = []
    sent = stage.replay.run(
        ReplayPlan(end_ms=END_MS, speed=100), lambda s: seen.append(stage.clock.monotonic_s())
    )
    assert sent.seconds == pytest.approx(9.9)
    assert len(seen) > 20


def test_the_last_offset_of_each_partition_is_known(films: Dataset) -> None:
    stage = Stage(films)
    sent: Sent = stage.replay.run(ReplayPlan(end_ms=END_MS))
    bounds = stage.log.bounds(TOPICS.user_events)
    assert {p: last + 1 for p, last in sent.last_offsets.items()} == {
        p: end for p, (_, end) in bounds.items() if end
    }


@pytest.mark.parametrize(
    "wrong",
    [{"speed": 0.0}, {"limit": -1}, {"from_fraction": 0.6, "until_fraction": 0.5}],
)
def test_a_plan_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        ReplayPlan(end_ms=0, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (b"text", "item '7': no image"),
        (b"GIF89a" + b"\xff\xff\xff\xff\0\0\0;", "item '7': an image/gif of 65535 x 65535 pixels"),
    ],
)
def test_an_item_whose_image_must_not_be_decoded_is_not_sent(films, image, told):
    stage = Stage(replace(films, items=(replace(films.items[0], image=image),)))
    with pytest.raises(Rejected, match=told):
        stage.replay.run(ReplayPlan(end_ms=END_MS))
    assert list(stage.batches(TOPICS.item_updates)) == []
