"""Topics copied into others with another number of partitions."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from ingest import topic_copy
from ingest.clock import ManualClock
from ingest.log import Outgoing, TopicPartition
from ingest.memory import (
    Crash,
    MemoryGroups,
    MemoryLog,
    MemorySource,
    MemoryTransactionalProducer,
)
from ingest.origin import ORIGIN_HEADER
from ingest.placement import partition_of
from ingest.repartition import Repartition
from ingest.topic_copy import CopyParts
from ingest.topics import Topics, check_partitions, ensure_topics, topic_specs
from schemas.errors import Misconfigured, PositionMoved, Refused

OLD, NEW = Topics("t-"), Topics("t-g2-")
BEFORE, AFTER = 3, 5
RECORDS = 200
Found = tuple[bytes | None, bytes | None, int, tuple[tuple[str, bytes], ...]]


class Rows:
    """Rows that have passed some offsets, and remember what was folded again."""

    def __init__(self, passed: Mapping[int, int] | None = None) -> None:
        self._passed = passed or {}
        self.rebuilt: list[tuple[str, int]] = []

    def passed(self, prefix: str) -> Mapping[int, int]:
        return self._passed

    def rebuild(self, prefix: str, former: int) -> None:
        self.rebuilt.append((prefix, former))


class Dying(MemoryTransactionalProducer):
    """Dies at a send, as if killed: its transaction stays open."""

    def __init__(self, log: MemoryLog, transactional_id: str, after: int) -> None:
        super().__init__(log, transactional_id)
        self._left = after

    def send(self, record: Outgoing) -> None:
        if self._left == 0:
            raise Crash
        self._left -= 1
        super().send(record)


class Stage:
    """Topics of the old prefix, with users' events on them."""

    def __init__(self, seed: int = 1) -> None:
        self.log = MemoryLog(ManualClock())
        ensure_topics(self.log, topic_specs(OLD.prefix, BEFORE, replay=True))
        chance = random.Random(seed)
        for at in range(RECORDS):
            self.put(OLD.user_events, b"user-%d" % chance.randrange(30), at)

    def put(self, topic: str, key: bytes | None, at: int, partition: int | None = None) -> None:
        value = None if at % 17 == 0 else b"%d" % at
        headers = (("trace", b"x"),) if at % 5 == 0 else ()
        self.log.append(
            Outgoing(
                topic=topic,
                key=key,
                value=value,
                timestamp_ms=1_000 + at,
                partition=partition,
                headers=headers,
            )
        )

    def job(self, to: int = AFTER, dies_after: int | None = None) -> Repartition:
        def open_producer(name: str) -> MemoryTransactionalProducer:
            if dies_after is None:
                return MemoryTransactionalProducer(self.log, name)
            return Dying(self.log, name, dies_after)

        parts = CopyParts(
            log=self.log,
            admin=self.log,
            groups=MemoryGroups(self.log),
            open_source=lambda: MemorySource(self.log),
            open_producer=open_producer,
            clock=ManualClock(),
            timeout_s=1,
        )
        return Repartition(parts, OLD.prefix, to)

    def records(self, topic: str) -> dict[int, list[Found]]:
        """What a reader sees, by partition and in order."""
        found: dict[int, list[Found]] = {}
        source = MemorySource(self.log)
        for partition, (start, _) in self.log.bounds(topic).items():
            source.assign({TopicPartition(topic, partition): start})
            found[partition] = []
            while (batch := source.poll(1_000, 0)) is not None:
                found[partition] += [
                    (key, value, int(stamp), batch.headers.get(i, ()))
                    for i, (key, value, stamp) in enumerate(
                        zip(batch.keys, batch.values, batch.timestamps_ms, strict=True)
                    )
                ]
        return found


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_copy, "TRANSACTION_RECORDS", 7)
    monkeypatch.setattr(topic_copy, "BATCH_RECORDS", 11)


def flat(found: Mapping[int, list[Found]]) -> list[Found]:
    return [record for records in found.values() for record in records]


def test_every_record_is_copied_once_to_the_place_of_its_key_with_where_it_was() -> None:
    stage = Stage()
    topics = {t.name: t for t in stage.job().copy(Rows())}
    events = topics[OLD.user_events]
    assert (events.records, events.total, events.behind) == (RECORDS, RECORDS, 0)
    before, after = stage.records(OLD.user_events), stage.records(NEW.user_events)
    origins = {}
    for partition, records in before.items():
        for offset, record in enumerate(records):
            origins[b"t-user-events/%d/%d" % (partition, offset)] = record
    for partition, records in after.items():
        for key, value, stamp, headers in records:
            assert key is not None
            assert partition_of(key, AFTER) == partition
            name, origin = headers[-1]
            assert name == ORIGIN_HEADER
            assert origins.pop(origin) == (key, value, stamp, headers[:-1])
    assert origins == {}


def test_the_order_of_a_key_is_kept_and_time_does_not_jump_back() -> None:
    stage = Stage()
    stage.job().copy(Rows())
    before, after = stage.records(OLD.user_events), stage.records(NEW.user_events)
    for records in after.values():
        assert sorted(records, key=lambda r: r[2]) == records
    for key in {record[0] for record in flat(before)}:
        was, now = ([r[2] for r in flat(found) if r[0] == key] for found in (before, after))
        assert was == now


@pytest.mark.parametrize("dies_after", [0, 1, 6, 7, 8, 30, 100, 213])
def test_a_copy_that_was_killed_goes_on_and_doubles_nothing(dies_after: int) -> None:
    whole, killed = Stage(), Stage()
    whole.job().copy(Rows())
    with pytest.raises(Crash):
        killed.job(dies_after=dies_after).copy(Rows())
    killed.job().copy(Rows())
    assert killed.records(NEW.user_events) == whole.records(NEW.user_events)


def test_what_comes_meanwhile_is_copied_by_the_next_pass() -> None:
    stage = Stage()
    stage.job().copy(Rows())
    for at in range(RECORDS, RECORDS + 40):
        stage.put(OLD.user_events, b"user-1", at)
    (events, *_) = stage.job().copy(Rows())
    assert (events.name, events.records, events.total) == (OLD.user_events, 40, RECORDS + 40)
    assert len(flat(stage.records(NEW.user_events))) == RECORDS + 40
    assert all(topic.records == 0 for topic in stage.job().copy(Rows()))


def test_of_a_misplaced_event_that_was_sent_on_only_the_copy_is_taken() -> None:
    stage = Stage()
    key = next(b"user-%d" % n for n in range(30) if partition_of(b"user-%d" % n, BEFORE) == 0)
    (_, passed) = stage.log.bounds(OLD.user_events)[1]
    stage.put(OLD.user_events, key, 501, partition=1)  # misplaced, and passed
    stage.put(OLD.user_events, key, 502, partition=1)  # misplaced, not passed yet
    sent_on = ((ORIGIN_HEADER, b"t-user-events/1/%d" % passed),)
    stage.log.append(
        Outgoing(topic=OLD.user_events, key=key, value=b"501", timestamp_ms=1_501, headers=sent_on)
    )
    stage.job().copy(Rows({1: passed + 1}))
    at = partition_of(key, AFTER)
    copied = [r for r in stage.records(NEW.user_events)[at] if r[2] > 1_500]
    assert [(r[2], r[3]) for r in copied] == [
        (1_501, sent_on),
        (1_502, ((ORIGIN_HEADER, b"t-user-events/1/%d" % (passed + 1)),)),
    ]


def test_a_record_without_a_key_comes_to_one_place_at_every_try() -> None:
    stage = Stage()
    stage.put(OLD.user_events, None, 902, partition=2)
    stage.job(to=2).copy(Rows())
    assert [r[1] for r in stage.records(NEW.user_events)[0] if r[0] is None] == [b"902"]


def test_all_topics_but_item_features_are_copied_with_their_settings() -> None:
    stage = Stage()
    stage.put(OLD.item_updates, b"item", 3)
    stage.put(OLD.item_features, b"item\0000", 3)
    stage.put(OLD.release_log, b"model", 3)
    stage.job().copy(Rows())
    assert len(flat(stage.records(NEW.item_updates))) == 1
    assert len(flat(stage.records(NEW.release_log))) == 1
    assert flat(stage.records(NEW.item_features)) == []
    there = stage.log.topics([*OLD.names(), *NEW.names()])
    for old, new in zip(OLD.names(), NEW.names(), strict=True):
        for setting in ("cleanup.policy", "retention.ms", "segment.ms"):
            assert there[new].settings[setting] == there[old].settings[setting]
    assert {there[n].partitions for n in (NEW.user_events, NEW.requests)} == {AFTER}
    assert there[NEW.release_log].partitions == 1


def test_a_switch_rebuilds_and_from_then_on_the_old_prefix_is_refused() -> None:
    stage, rows = Stage(), Rows()
    assert check_partitions(stage.log, OLD) == BEFORE
    stage.job().switch(rows)
    assert rows.rebuilt == [(NEW.prefix, BEFORE)]
    assert check_partitions(stage.log, NEW) == AFTER
    with pytest.raises(Misconfigured, match="MILLSTREAM_TOPIC_PREFIX=t-g2-"):
        check_partitions(stage.log, OLD)
    with pytest.raises(Misconfigured, match="MILLSTREAM_TOPIC_PREFIX=t-g2-"):
        stage.job().copy(rows)


def test_nothing_is_switched_while_records_come() -> None:
    stage = Stage()

    class Producing(Rows):
        def rebuild(self, prefix: str, former: int) -> None:
            stage.put(OLD.requests, b"user-1", 900)

    with pytest.raises(Refused, match=r"t-recommendation-requests \(1\).*Stop what produces"):
        stage.job().switch(Producing())
    assert check_partitions(stage.log, OLD) == BEFORE


def test_nothing_is_switched_when_a_record_is_there_twice() -> None:
    stage = Stage()
    stage.job().copy(Rows())
    stage.log.append(Outgoing(topic=NEW.user_events, key=b"user-1", value=b"again"))
    with pytest.raises(Refused, match=r"holds 201 records, and 200 were copied"):
        stage.job().switch(Rows())


def test_requests_that_wait_are_answered_before_a_switch_and_never_again_after_it() -> None:
    stage = Stage()
    for at in range(40):
        stage.put(OLD.requests, b"user-%d" % at, at)
    groups = MemoryGroups(stage.log)
    ends = {p: end for p, (_, end) in stage.log.bounds(OLD.requests).items()}
    groups.move("t-serve", OLD.requests, ends | {0: ends[0] - 2})
    with pytest.raises(Refused, match="2 requests are not answered"):
        stage.job().switch(Rows())
    groups.move("t-serve", OLD.requests, ends)
    stage.job().switch(Rows())
    assert groups.offsets("t-g2-serve", NEW.requests) == {
        p: end for p, (_, end) in stage.log.bounds(NEW.requests).items()
    }


def test_a_copy_that_has_begun_is_not_mixed_with_another() -> None:
    stage = Stage()
    stage.job(to=5).copy(Rows())
    with pytest.raises(Misconfigured, match="go on with --to 5"):
        stage.job(to=6).copy(Rows())
    stage.log.delete_topics([OLD.user_events])
    stage.log.create_topic(OLD.user_events, BEFORE)
    with pytest.raises(Misconfigured, match="tells of another topic t-user-events"):
        stage.job(to=5).copy(Rows())


def test_a_second_copy_fences_the_first() -> None:
    stage = Stage()
    opened = []

    class Slow(Rows):
        def passed(self, prefix: str) -> Mapping[int, int]:
            if not opened:
                opened.append(True)
                stage.job().copy(Rows())
            return {}

    with pytest.raises(PositionMoved):
        stage.job().copy(Slow())
    assert len(flat(stage.records(NEW.user_events))) == RECORDS
