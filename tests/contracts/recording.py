"""What a recording promises: the log over again, from any offset, in batches that meet."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import pytest

from features.recording import RecordedLog, RecordedSource, Recording
from ingest.log import RecordBatch, TopicPartition
from ingest.memory import MemoryLog, MemorySource
from schemas.errors import PositionForeign
from schemas.registry import MemoryRegistry
from tests.past import TOPIC, logged, story

Place = tuple[int, bytes | None, int]  # offset, key, timestamp


class RecordingContract:
    """Override `recording`: one of `log`, or of a log with the same user-events in this order."""

    @pytest.fixture
    def told(self) -> tuple[MemoryLog, MemoryRegistry]:
        return logged([(u, e, t) for u, e, t in story(120, users=9) if e is not None], partitions=2)

    @pytest.fixture
    def log(self, told: tuple[MemoryLog, MemoryRegistry]) -> MemoryLog:
        return told[0]

    @pytest.fixture
    def registry(self, told: tuple[MemoryLog, MemoryRegistry]) -> MemoryRegistry:
        return told[1]

    def test_it_holds_what_the_log_held(self, log: MemoryLog, recording: Recording) -> None:
        for p, (first, end) in recording.origin.bounds.items():
            assert (first, end) == log.bounds(TOPIC)[p]
            assert places(recording.batches(p, first, 1_000)) == of_log(log, p)

    def test_it_is_read_from_any_offset_in_batches_that_meet(
        self, log: MemoryLog, recording: Recording
    ) -> None:
        for p, (first, end) in recording.origin.bounds.items():
            for start in range(first, end, 7):
                batches = list(recording.batches(p, start, 5))
                assert places(batches) == [place for place in of_log(log, p) if place[0] >= start]
                assert max(map(len, batches)) <= 5
                assert [b.start_offset for b in batches] == [
                    start,
                    *[b.next_offset for b in batches[:-1]],
                ]
                assert batches[-1].next_offset == end

    def test_its_values_are_the_logs_events(
        self, log: MemoryLog, registry: MemoryRegistry, recording: Recording
    ) -> None:
        reader = recording.reader(registry)
        ids = [
            event_id
            for p, (first, _) in recording.origin.bounds.items()
            for batch in recording.batches(p, first, 50)
            for event_id in reader.read(batch.values).frame["event_id"].to_list()
        ]
        assert len(ids) == sum(len(of_log(log, p)) for p in recording.origin.bounds)

    def test_it_travels(self, recording: Recording) -> None:
        again = pickle.loads(pickle.dumps(recording))
        assert again.origin == recording.origin

    def test_a_source_of_it_ends_with_none_and_seeks(self, recording: Recording) -> None:
        source, log = RecordedSource(recording), RecordedLog(recording)
        topic = recording.origin.topic
        starts = {TopicPartition(topic, p): first for p, (first, _) in log.bounds(topic).items()}
        for _ in range(2):
            source.assign(starts)
            seen = list(iter(lambda: source.poll(9, 0.0), None))
            ends = {b.partition: b.next_offset for b in seen}
            assert ends == {p: end for p, (_, end) in log.bounds(topic).items()}
            assert source.poll(9, 0.0) is None

    def test_an_offset_that_is_not_recorded_is_foreign(self, recording: Recording) -> None:
        source = RecordedSource(recording)
        partition, (_, end) = next(iter(recording.origin.bounds.items()))
        source.assign({TopicPartition(recording.origin.topic, partition): end + 1})
        with pytest.raises(PositionForeign, match=f"to {end}"):
            source.poll(9, 0.0)


def places(batches: Iterable[RecordBatch]) -> list[Place]:
    return [
        (int(b.offsets[i]), b.keys[i], int(b.timestamps_ms[i]))
        for b in batches
        for i in range(len(b))
    ]


def of_log(log: MemoryLog, partition: int) -> list[Place]:
    source = MemorySource(log)
    source.assign({TopicPartition(TOPIC, partition): 0})
    return places(iter(lambda: source.poll(1_000, 0.0), None))  # type: ignore[arg-type]
