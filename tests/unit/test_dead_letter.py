"""Dead letters: complete, flushed, limited, read once."""

from __future__ import annotations

import pytest

from ingest.batches import part
from ingest.clock import ManualClock
from ingest.dead_letter import (
    DeadLetterPolicy,
    DeadLetters,
    original,
    read_dead_letters,
    without_repeats,
)
from ingest.log import Outgoing, RecordBatch, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.metrics import MemoryMetrics
from schemas.codec import Codec
from schemas.errors import Misconfigured, Reason, Rejected
from schemas.events import DeadLetter, Header
from schemas.registry import MemoryRegistry

TP = TopicPartition("t", 0)
BAD = Rejected(Reason.UNDECODABLE, "it does not parse")


class Desk:
    """A log with `n` records on t[0], and letters about them."""

    def __init__(self, n: int, policy: DeadLetterPolicy, max_record_bytes: int = 10_000) -> None:
        self.log = MemoryLog(max_record_bytes=max_record_bytes)
        self.log.create_topic("t", 1)
        self.log.create_topic("dead", 2)
        for i in range(n):
            self.log.append(
                Outgoing(
                    topic="t",
                    key=b"k",
                    value=b"\xff%d" % i,
                    timestamp_ms=100 + i,
                    headers=(("h", b"x"),) if i == 1 else (),
                )
            )
        self.clock = ManualClock()
        self.metrics = MemoryMetrics()
        self.codec = Codec(MemoryRegistry(), DeadLetter, "dead")
        self.letters = DeadLetters(
            MemoryProducer(self.log), self.codec, "dead", self.clock, policy, metrics=self.metrics
        )

    def batch(self, start: int = 0, n: int = 10_000) -> RecordBatch:
        source = MemorySource(self.log)
        source.assign({TP: start})
        batch = source.poll(n, 0)
        assert batch is not None
        return batch

    def stored(self) -> list[DeadLetter]:
        return list(
            read_dead_letters(MemorySource(self.log), self.log, self.codec, "dead", patience_s=0)
        )


def test_a_letter_holds_reason_origin_bytes_and_headers() -> None:
    desk = Desk(3, DeadLetterPolicy())
    desk.letters.add(desk.batch(), 1, BAD)
    desk.letters.flush()
    assert desk.stored() == [
        DeadLetter(
            reason="undecodable",
            detail="it does not parse",
            topic="t",
            partition=0,
            offset=1,
            timestamp=101,
            key=b"k",
            value=b"\xff1",
            headers=(Header(name="h", value=b"x"),),
        )
    ]
    assert desk.metrics.value("dead_letters.records", topic="t", reason="undecodable") == 1


def test_the_original_can_be_produced_again_as_it_was() -> None:
    desk = Desk(3, DeadLetterPolicy())
    desk.letters.add(desk.batch(), 1, BAD)
    desk.letters.flush()
    assert original(desk.stored()[0]) == Outgoing(
        topic="t", key=b"k", value=b"\xff1", timestamp_ms=101, headers=(("h", b"x"),)
    )


def test_nothing_is_on_the_log_before_flush_and_nothing_twice_after_two() -> None:
    desk = Desk(3, DeadLetterPolicy())
    desk.letters.add(desk.batch(), 0, BAD)
    assert desk.stored() == []
    desk.letters.flush()
    desk.letters.flush()
    assert sum(end for _, end in desk.log.bounds("dead").values()) == 1


def test_a_full_buffer_is_sent_at_once() -> None:
    desk = Desk(5, DeadLetterPolicy(max_buffered=2))
    batch = desk.batch()
    for i in range(3):
        desk.letters.add(batch, i, BAD)
    assert len(desk.stored()) == 2


def test_too_large_a_share_stops_the_consumer_and_says_why() -> None:
    desk = Desk(20, DeadLetterPolicy(max_share=0.2, min_refused=5))
    batch = desk.batch()
    for i in range(5):
        desk.letters.add(batch, i, BAD if i else Rejected(Reason.NULL_KEY, "no key"))
    with pytest.raises(
        Misconfigured,
        match=r"5 of the last 20 records .*undecodable 4, null-key 1.* t\[0\] offset 4: it does",
    ):
        desk.letters.flush()
    assert desk.stored() == []
    with pytest.raises(Misconfigured):
        desk.letters.flush()  # it does not wear off


def test_a_few_bad_records_never_stop_a_consumer_whatever_their_share() -> None:
    desk = Desk(4, DeadLetterPolicy(max_share=0.2, min_refused=5))
    batch = desk.batch()
    for i in range(4):
        desk.letters.add(batch, i, BAD)
    desk.letters.flush()
    assert len(desk.stored()) == 4


def test_batches_without_a_bad_record_count_in_the_share() -> None:
    desk = Desk(400, DeadLetterPolicy(max_share=0.2, min_refused=5))
    for start in range(0, 400, 40):  # one record in 40; batches of 2
        desk.letters.add(desk.batch(start, 2), 0, BAD)
    desk.letters.flush()
    assert len(desk.stored()) == 10


def test_refusals_older_than_the_window_are_forgotten() -> None:
    desk = Desk(100, DeadLetterPolicy(max_share=0.2, min_refused=5, window_s=10))
    for start in range(0, 60, 10):
        batch = desk.batch(start, 4)
        desk.letters.add(batch, 0, BAD)
        desk.letters.add(batch, 1, BAD)
        desk.letters.flush()
        desk.clock.advance(6)
    assert len(desk.stored()) == 12


def test_the_parts_of_a_bisected_batch_count_as_the_whole() -> None:
    desk = Desk(40, DeadLetterPolicy(max_share=0.5, min_refused=2))
    batch = desk.batch()
    for i in (0, 39):
        desk.letters.add(part(batch, i, i + 1), 0, BAD)
    desk.letters.flush()
    assert [d.offset for d in desk.stored()] == [0, 39]


def test_a_value_too_large_for_a_letter_is_left_out_and_said_so() -> None:
    desk = Desk(0, DeadLetterPolicy(), max_record_bytes=400)
    desk.log.append(Outgoing(topic="t", key=b"k", value=bytes(390)))
    desk.letters.add(desk.batch(), 0, Rejected(Reason.TOO_LARGE, "390 bytes"))
    desk.letters.flush()
    (stored,) = desk.stored()
    assert stored.value is None
    assert stored.detail == "390 bytes (the value of 390 bytes is too large to be kept)"


def test_an_unreadable_letter_does_not_hide_the_others() -> None:
    desk = Desk(2, DeadLetterPolicy())
    desk.log.append(Outgoing(topic="dead", key=b"k", value=b"nonsense"))
    desk.letters.add(desk.batch(), 1, BAD)
    desk.letters.flush()
    assert [d.offset for d in desk.stored()] == [1]


def test_repeats_are_dropped_within_bounded_memory() -> None:
    desk = Desk(5, DeadLetterPolicy())
    batch = desk.batch()
    for i in (0, 1, 0, 2, 1, 0):
        desk.letters.add(batch, i, BAD)
    desk.letters.flush()
    assert [d.offset for d in desk.stored()] == [0, 1, 2]
    one, two = desk.stored()[:2]
    # With a memory of one, only the repeat that follows at once is known.
    assert [d.offset for d in without_repeats([one, one, two, one], remember=1)] == [0, 1, 0]
