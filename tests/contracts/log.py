"""
What the log promises: sources, groups, producers, transactions, and questions about the whole.

Run by every implementation: override `world` with one that makes its clients.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import pytest

from ingest.log import (
    Delivered,
    GroupSource,
    Log,
    Outgoing,
    Producer,
    RecordBatch,
    Source,
    TopicPartition,
    TransactionalProducer,
)
from ingest.placement import partition_of
from ingest.topics import Admin, Groups, TopicSpec, ensure_topics
from schemas.errors import (
    BrokerUnavailable,
    Misconfigured,
    PositionForeign,
    PositionMoved,
    Reason,
    Rejected,
)

DEADLINE_S = 30.0


class World(Protocol):
    """Makes clients of one log, and names that nobody else uses. Closes all at the end."""

    max_record_bytes: int

    def name(self) -> str: ...
    def topic(self, partitions: int) -> str: ...
    def source(self, *, read_committed: bool = True) -> Source: ...
    def group(self, name: str) -> GroupSource: ...
    def producer(self) -> Producer: ...
    def transactional(self, transactional_id: str) -> TransactionalProducer: ...
    def log(self) -> Log: ...
    def admin(self) -> Admin: ...
    def groups(self) -> Groups: ...


def until(done: Callable[[], bool], what: str) -> None:
    """Call `done` (which waits by itself) until it is true."""
    end = time.monotonic() + DEADLINE_S  # noqa: TID251 - a deadline on real brokers
    while not done():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"  # noqa: TID251


def read_to(
    source: Source | GroupSource, end: int, *, sizes: Sequence[int] = (100,)
) -> list[RecordBatch]:
    """Batches until one of them ends at `end` or later. For one partition."""
    batches: list[RecordBatch] = []
    turn = iter(range(10**9))

    def done() -> bool:
        batch = source.poll(sizes[next(turn) % len(sizes)], 0.2)
        if batch is not None:
            batches.append(batch)
        return bool(batches) and batches[-1].next_offset >= end

    until(done, f"read to {end}")
    return batches


def values(batches: Sequence[RecordBatch]) -> list[bytes | None]:
    return [v for b in batches for v in b.values]


def send(producer: Producer, topic: str, found: Sequence[bytes], partition: int = 0) -> None:
    for value in found:
        producer.send(Outgoing(topic=topic, key=b"k", value=value, partition=partition))
    producer.flush(DEADLINE_S)


class LogContract:
    """`Source`, `Producer` and `Log`."""

    @pytest.fixture
    def world(self) -> Iterator[World]:
        raise NotImplementedError("override with a world of the implementation")

    def test_batches_are_contiguous_and_in_offset_order(self, world: World) -> None:
        topic = world.topic(1)
        send(world.producer(), topic, [b"%d" % i for i in range(50)])
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        batches = read_to(source, 50, sizes=(7, 1, 13))
        assert values(batches) == [b"%d" % i for i in range(50)]
        assert batches[0].start_offset == 0
        for one, following in itertools.pairwise(batches):
            assert one.next_offset == following.start_offset
        assert np.concatenate([b.offsets for b in batches]).tolist() == list(range(50))

    def test_a_batch_holds_one_partition_and_no_more_than_asked(self, world: World) -> None:
        topic = world.topic(3)
        producer = world.producer()
        for i in range(60):
            producer.send(Outgoing(topic=topic, key=b"k", value=b"%d" % i, partition=i % 3))
        producer.flush(DEADLINE_S)
        source = world.source()
        source.assign({TopicPartition(topic, p): 0 for p in range(3)})
        found: dict[int, list[bytes | None]] = {0: [], 1: [], 2: []}
        at = dict.fromkeys(range(3), 0)

        def done() -> bool:
            batch = source.poll(8, 0.2)
            if batch is not None:
                assert len(batch) <= 8
                assert batch.start_offset == at[batch.partition]
                at[batch.partition] = batch.next_offset
                found[batch.partition] += batch.values
            return set(at.values()) == {20}

        until(done, "read three partitions")
        assert found == {p: [b"%d" % i for i in range(p, 60, 3)] for p in range(3)}

    def test_several_topics_are_read_by_one_source(self, world: World) -> None:
        one, other = world.topic(1), world.topic(1)
        producer = world.producer()
        send(producer, one, [b"a", b"b"])
        send(producer, other, [b"c"])
        source = world.source()
        source.assign({TopicPartition(one, 0): 0, TopicPartition(other, 0): 0})
        found: dict[str, list[bytes | None]] = {one: [], other: []}

        def done() -> bool:
            batch = source.poll(10, 0.2)
            if batch is not None:
                found[batch.topic] += batch.values
            return found == {one: [b"a", b"b"], other: [b"c"]}

        until(done, "read both topics")

    def test_assign_seeks(self, world: World) -> None:
        topic = world.topic(1)
        tp = TopicPartition(topic, 0)
        send(world.producer(), topic, [b"%d" % i for i in range(20)])
        source = world.source()
        source.assign({tp: 0})
        read_to(source, 5, sizes=(5,))
        for start in (12, 3, 19):
            source.assign({tp: start})
            batches = read_to(source, 20)
            assert batches[0].start_offset == start
            assert values(batches) == [b"%d" % i for i in range(start, 20)]

    def test_nothing_more_is_read_from_a_partition_that_is_no_longer_assigned(
        self, world: World
    ) -> None:
        topic = world.topic(2)
        producer = world.producer()
        send(producer, topic, [b"a"] * 30, partition=0)
        send(producer, topic, [b"b"] * 30, partition=1)
        source = world.source()
        source.assign({TopicPartition(topic, p): 0 for p in range(2)})
        until(lambda: source.poll(5, 0.2) is not None, "a first batch")
        source.assign({TopicPartition(topic, 1): 10})
        batches = read_to(source, 30)
        assert {b.partition for b in batches} == {1}
        assert values(batches) == [b"b"] * 20

    def test_null_keys_null_values_and_headers_survive(self, world: World) -> None:
        topic = world.topic(1)
        producer = world.producer()
        headers = (("origin", b"\x00\xff"), ("origin", b"again"), ("empty", b""))
        for key, value in ((None, b"v"), (b"k", None), (b"", b"")):
            producer.send(Outgoing(topic=topic, key=key, value=value, partition=0))
        producer.send(Outgoing(topic=topic, key=b"h", value=b"v", headers=headers, partition=0))
        producer.flush(DEADLINE_S)
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        batches = read_to(source, 4)
        assert [k for b in batches for k in b.keys] == [None, b"k", b"", b"h"]
        assert values(batches) == [b"v", None, b"", b"v"]
        found = {int(b.offsets[i]): h for b in batches for i, h in b.headers.items()}
        assert found == {3: headers}

    def test_timestamps_are_kept(self, world: World) -> None:
        topic = world.topic(1)
        producer = world.producer()
        times = [1_000, 1_600_000_000_000, 999]
        for at in times:
            producer.send(Outgoing(topic=topic, key=b"k", value=b"v", timestamp_ms=at, partition=0))
        producer.flush(DEADLINE_S)
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        batches = read_to(source, 3)
        assert [int(t) for b in batches for t in b.timestamps_ms] == times

    def test_keys_are_placed_by_murmur2(self, world: World) -> None:
        topic = world.topic(4)
        producer = world.producer()
        landed: list[Delivered] = []
        keys = [b"user-%d" % i for i in range(40)] + [b""]
        for key in keys:
            producer.send(Outgoing(topic=topic, key=key, value=key), landed.append)
        producer.flush(DEADLINE_S)
        ends = world.log().bounds(topic)
        expected = [sum(partition_of(k, 4) == p for k in keys) for p in range(4)]
        assert [ends[p][1] for p in range(4)] == expected

    def test_delivered_offsets_are_reported(self, world: World) -> None:
        topic = world.topic(2)
        producer = world.producer()
        landed: list[Delivered] = []
        for p in (1, 0, 1):
            producer.send(Outgoing(topic=topic, key=b"k", value=b"v", partition=p), landed.append)
        producer.flush(DEADLINE_S)
        assert sorted(landed) == [(topic, 0, 0), (topic, 1, 0), (topic, 1, 1)]

    def test_a_record_larger_than_the_limit_is_rejected_and_its_neighbours_arrive(
        self, world: World
    ) -> None:
        topic = world.topic(1)
        producer = world.producer()
        producer.send(Outgoing(topic=topic, key=b"k", value=b"before", partition=0))
        big = Outgoing(topic=topic, key=b"k", value=bytes(world.max_record_bytes + 1), partition=0)
        with pytest.raises(Rejected) as rejected:
            producer.send(big)
        assert rejected.value.reason == Reason.TOO_LARGE
        large = (("header", bytes(world.max_record_bytes + 1)),)
        with pytest.raises(Rejected):
            producer.send(Outgoing(topic=topic, key=b"k", value=b"v", partition=0, headers=large))
        producer.send(Outgoing(topic=topic, key=b"k", value=b"after", partition=0))
        producer.flush(DEADLINE_S)
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        assert values(read_to(source, 2)) == [b"before", b"after"]

    def test_an_idle_log_gives_none(self, world: World) -> None:
        topic = world.topic(1)
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        assert source.poll(10, 0.3) is None

    def test_a_record_produced_later_is_read(self, world: World) -> None:
        topic = world.topic(1)
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        assert source.poll(10, 0.2) is None
        send(world.producer(), topic, [b"late"])
        assert values(read_to(source, 1)) == [b"late"]

    def test_an_offset_past_the_end_is_foreign(self, world: World) -> None:
        topic = world.topic(1)
        send(world.producer(), topic, [b"a"])
        source = world.source()
        source.assign({TopicPartition(topic, 0): 50})
        with pytest.raises(PositionForeign, match="50"):
            until(lambda: source.poll(10, 0.2) is not None, "an error")

    def test_after_a_foreign_offset_a_good_one_is_read(self, world: World) -> None:
        topic = world.topic(1)
        tp = TopicPartition(topic, 0)
        send(world.producer(), topic, [b"a", b"b"])
        source = world.source()
        source.assign({tp: 50})
        with pytest.raises(PositionForeign):
            until(lambda: source.poll(10, 0.2) is not None, "an error")
        source.assign({tp: 1})
        assert values(read_to(source, 2)) == [b"b"]

    def test_a_missing_topic_is_unavailable_to_a_source(self, world: World) -> None:
        source = world.source()
        source.assign({TopicPartition(world.name(), 0): 0})
        with pytest.raises(BrokerUnavailable, match="not there"):
            until(lambda: source.poll(10, 0.2) is not None, "an error")

    def test_a_missing_topic_is_misconfigured_to_who_asks_about_it(self, world: World) -> None:
        log, missing = world.log(), world.name()
        for ask in (log.topic_id, log.partitions, log.bounds):
            with pytest.raises(Misconfigured, match=missing):
                ask(missing)

    def test_a_topic_created_again_has_another_identity(self, world: World) -> None:
        topic = world.topic(1)
        log, admin = world.log(), world.admin()
        before = log.topic_id(topic)
        assert log.topic_id(topic) == before
        admin.delete_topics([topic])
        admin.create_topics([TopicSpec(name=topic, partitions=1)])
        assert log.topic_id(topic) != before
        assert log.cluster_id() == world.log().cluster_id() != ""

    def test_bounds_tell_what_is_there(self, world: World) -> None:
        topic = world.topic(2)
        send(world.producer(), topic, [b"a", b"b"], partition=1)
        assert world.log().partitions(topic) == 2
        assert world.log().bounds(topic) == {0: (0, 0), 1: (0, 2)}

    def test_close_may_be_called_twice(self, world: World) -> None:
        source, producer = world.source(), world.producer()
        for client in (source, producer):
            client.close()
            client.close()


class TransactionContract:
    """`TransactionalProducer`, and what readers see of transactions."""

    @pytest.fixture
    def world(self) -> Iterator[World]:
        raise NotImplementedError("override with a world of the implementation")

    def test_the_position_moves_over_markers(self, world: World) -> None:
        topic = world.topic(1)
        producer = world.transactional(world.name())
        for value in (b"a", b"b"):
            producer.begin()
            producer.send(Outgoing(topic=topic, key=b"k", value=value, partition=0))
            producer.commit({}, None)
        _, end = world.log().bounds(topic)[0]
        assert end == 4  # two records, two markers
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        batches = read_to(source, end)
        assert values(batches) == [b"a", b"b"]
        assert batches[-1].next_offset == end
        source.assign({TopicPartition(topic, 0): end})
        assert source.poll(10, 0.3) is None

    def test_a_marker_that_comes_later_moves_a_reader_that_waits_at_the_end(
        self, world: World
    ) -> None:
        topic = world.topic(1)
        send(world.producer(), topic, [b"a"])
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        read_to(source, 1)
        producer = world.transactional(world.name())
        producer.begin()
        producer.send(Outgoing(topic=topic, key=b"k", value=b"gone", partition=0))
        until(
            lambda: _seen(world.source(read_committed=False), topic) == [b"a", b"gone"],
            "the record that will be aborted is on the log",
        )
        producer.abort()
        batches = read_to(source, 3)
        assert values(batches) == []
        assert (batches[0].start_offset, batches[-1].next_offset) == (1, 3)

    def test_aborted_records_are_never_seen(self, world: World) -> None:
        topic = world.topic(1)
        producer = world.transactional(world.name())
        for value in range(6):
            producer.begin()
            producer.send(Outgoing(topic=topic, key=b"k", value=b"%d" % value, partition=0))
            if value % 2:
                until(
                    lambda value=value: (
                        b"%d" % value in _seen(world.source(read_committed=False), topic)
                    ),
                    "the record that will be aborted is on the log",
                )
                producer.abort()
            else:
                producer.commit({}, None)
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        assert values(read_to(source, world.log().bounds(topic)[0][1])) == [b"0", b"2", b"4"]

    def test_an_open_transaction_hides_what_follows_it_until_it_ends(self, world: World) -> None:
        topic = world.topic(1)
        producer = world.transactional(world.name())
        producer.begin()
        producer.send(Outgoing(topic=topic, key=b"k", value=b"held", partition=0))
        until(
            lambda: _seen(world.source(read_committed=False), topic) == [b"held"],
            "the open transaction's record is on the log",
        )
        send(world.producer(), topic, [b"plain"])
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        assert source.poll(10, 0.3) is None
        assert world.log().bounds(topic)[0] == (0, 0)
        producer.commit({}, None)
        assert values(read_to(source, 3)) == [b"held", b"plain"]

    def test_records_and_offsets_appear_together(self, world: World) -> None:
        asked, answers, group = world.topic(1), world.topic(1), world.name()
        tp = TopicPartition(asked, 0)
        send(world.producer(), asked, [b"q0", b"q1", b"q2"])
        member = world.group(group)
        member.subscribe([asked], lambda _: None, lambda _: None)
        first = read_to(member, 1, sizes=(1,))[0]
        producer = world.transactional(world.name())
        producer.begin()
        producer.send(Outgoing(topic=answers, key=b"k", value=b"a0", partition=0))
        producer.commit({tp: first.next_offset}, member.group_metadata())
        # Aborted: neither the answer nor the offset.
        producer.begin()
        producer.send(Outgoing(topic=answers, key=b"k", value=b"a1", partition=0))
        producer.abort()
        member.close()
        resumed = world.group(group)
        resumed.subscribe([asked], lambda _: None, lambda _: None)
        assert values(read_to(resumed, 3)) == [b"q1", b"q2"]
        source = world.source()
        source.assign({TopicPartition(answers, 0): 0})
        assert values(read_to(source, world.log().bounds(answers)[0][1])) == [b"a0"]

    def test_a_newer_producer_fences_the_older(self, world: World) -> None:
        topic, name = world.topic(1), world.name()
        older = world.transactional(name)
        older.begin()
        older.send(Outgoing(topic=topic, key=b"k", value=b"zombie", partition=0))
        newer = world.transactional(name)
        with pytest.raises(PositionMoved):
            older.commit({}, None)
        newer.begin()
        newer.send(Outgoing(topic=topic, key=b"k", value=b"alive", partition=0))
        newer.commit({}, None)
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        assert values(read_to(source, world.log().bounds(topic)[0][1])) == [b"alive"]

    def test_a_member_of_an_older_generation_cannot_commit(self, world: World) -> None:
        asked, answers, group = world.topic(2), world.topic(1), world.name()
        send(world.producer(), asked, [b"q0"])
        one, other = world.group(group), world.group(group)
        held: dict[str, set[TopicPartition]] = {"one": set(), "other": set()}
        one.subscribe([asked], held["one"].update, held["one"].difference_update)
        until(lambda: _polled(one) and len(held["one"]) == 2, "one member holds all")
        stale = one.group_metadata()
        other.subscribe([asked], held["other"].update, held["other"].difference_update)
        until(
            lambda: _polled(one) and _polled(other) and len(held["other"]) == 1,
            "the other member holds its share",
        )
        producer = world.transactional(world.name())
        producer.begin()
        producer.send(Outgoing(topic=answers, key=b"k", value=b"stale", partition=0))
        with pytest.raises(PositionMoved):
            producer.commit({TopicPartition(asked, 0): 1}, stale)
        producer.begin()  # the failed transaction was aborted
        producer.send(Outgoing(topic=answers, key=b"k", value=b"fresh", partition=0))
        producer.commit({TopicPartition(asked, 0): 1}, one.group_metadata())
        source = world.source()
        source.assign({TopicPartition(answers, 0): 0})
        assert values(read_to(source, world.log().bounds(answers)[0][1])) == [b"fresh"]

    def test_a_record_larger_than_the_limit_leaves_the_transaction_open(self, world: World) -> None:
        topic = world.topic(1)
        producer = world.transactional(world.name())
        producer.begin()
        with pytest.raises(Rejected):
            producer.send(
                Outgoing(
                    topic=topic, key=b"k", value=bytes(world.max_record_bytes + 1), partition=0
                )
            )
        producer.send(Outgoing(topic=topic, key=b"k", value=b"small", partition=0))
        producer.commit({}, None)
        source = world.source()
        source.assign({TopicPartition(topic, 0): 0})
        assert values(read_to(source, 2)) == [b"small"]


class GroupContract:
    """`GroupSource`."""

    @pytest.fixture
    def world(self) -> Iterator[World]:
        raise NotImplementedError("override with a world of the implementation")

    def test_a_group_without_offsets_starts_at_the_logs_start(self, world: World) -> None:
        topic = world.topic(1)
        send(world.producer(), topic, [b"a", b"b"])
        member = world.group(world.name())
        assigned: list[TopicPartition] = []
        member.subscribe([topic], assigned.extend, lambda _: None)
        batches = read_to(member, 2)
        assert values(batches) == [b"a", b"b"]
        assert batches[0].start_offset == 0
        assert assigned == [TopicPartition(topic, 0)]

    def test_what_is_not_read_yet_is_known_without_asking(self, world: World) -> None:
        topic = world.topic(1)
        place = TopicPartition(topic, 0)
        send(world.producer(), topic, [b"a", b"b", b"c", b"d"])
        member = world.group(world.name())
        assert member.unread() == {}
        member.subscribe([topic], lambda _: None, lambda _: None)
        first: list[RecordBatch] = []

        def polled() -> bool:
            batch = member.poll(3, 0.1)
            first.extend([batch] if batch is not None else [])
            return bool(first)

        until(polled, "a batch comes")
        assert member.unread() == {place: 4 - first[0].next_offset}
        read_to(member, 4 - len(first[0]))
        assert member.unread() == {place: 0}

    def test_a_member_of_a_new_group_on_a_new_topic_is_assigned(self, world: World) -> None:
        for _ in range(5):
            topic, assigned = world.topic(4), list[TopicPartition]()
            member = world.group(world.name())
            member.subscribe([topic], assigned.extend, lambda _: None)
            until(lambda: _polled(member) and len(assigned) == 4, "it holds all")  # noqa: B023
            member.close()

    def test_every_record_goes_to_one_member_through_a_rebalance(self, world: World) -> None:
        topic, group = world.topic(4), world.name()
        producer = world.producer()
        held: list[set[TopicPartition]] = [set(), set()]
        members = [world.group(group), world.group(group)]
        seen: list[list[bytes | None]] = [[], []]

        def poll(i: int) -> bool:
            batch = members[i].poll(100, 0.1)
            if batch is not None:
                assert TopicPartition(batch.topic, batch.partition) in held[i]
                seen[i] += batch.values
            return True

        members[0].subscribe([topic], held[0].update, held[0].difference_update)
        until(lambda: poll(0) and len(held[0]) == 4, "the first member holds all")
        members[1].subscribe([topic], held[1].update, held[1].difference_update)
        until(lambda: poll(0) and poll(1) and len(held[1]) == 2, "they share")
        assert held[0] & held[1] == set()
        assert len(held[0]) == 2
        for p in range(4):
            send(producer, topic, [b"%d" % p], partition=p)
        until(lambda: poll(0) and poll(1) and len(seen[0] + seen[1]) == 4, "all are read")
        assert sorted(v for v in seen[0] + seen[1] if v is not None) == [b"0", b"1", b"2", b"3"]
        assert len(seen[0]) == 2

    def test_partitions_of_a_member_that_leaves_go_to_the_others(self, world: World) -> None:
        topic, group = world.topic(2), world.name()
        held: list[set[TopicPartition]] = [set(), set()]
        members = [world.group(group), world.group(group)]
        for member, mine in zip(members, held, strict=True):
            member.subscribe([topic], mine.update, mine.difference_update)
        until(lambda: all(map(_polled, members)) and [len(h) for h in held] == [1, 1], "they share")
        members[0].close()
        assert held[0] == set()  # told on leaving
        until(lambda: _polled(members[1]) and len(held[1]) == 2, "the other holds all")

    def test_offsets_are_stored_by_whoever_holds_the_partition(self, world: World) -> None:
        topic, group = world.topic(1), world.name()
        send(world.producer(), topic, [b"a", b"b", b"c"])
        member = world.group(group)
        member.subscribe([topic], lambda _: None, lambda _: None)
        assert values(read_to(member, 3)) == [b"a", b"b", b"c"]
        member.commit({TopicPartition(topic, 0): 2})
        member.close()
        assert world.groups().offsets(group, topic) == {0: 2}
        heir = world.group(group)
        heir.subscribe([topic], lambda _: None, lambda _: None)
        assert values(read_to(heir, 3)) == [b"c"]

    def test_a_member_that_asks_for_no_records_skips_none(self, world: World) -> None:
        topic, held = world.topic(2), set[TopicPartition]()
        member = world.group(world.name())
        member.subscribe([topic], held.update, held.difference_update)
        until(lambda: member.poll(0, 0.1) is None and len(held) == 2, "it takes part in the group")
        send(world.producer(), topic, [b"a", b"b", b"c"], partition=1)
        for _ in range(5):
            assert member.poll(0, 0.1) is None
        assert values(read_to(member, 3)) == [b"a", b"b", b"c"]
        send(world.producer(), topic, [b"d"], partition=1)
        assert member.poll(0, 0.3) is None
        assert values(read_to(member, 4)) == [b"d"]

    def test_close_may_be_called_twice(self, world: World) -> None:
        member = world.group(world.name())
        member.subscribe([world.topic(1)], lambda _: None, lambda _: None)
        member.close()
        member.close()


class GroupsContract:
    """`Groups`."""

    @pytest.fixture
    def world(self) -> Iterator[World]:
        raise NotImplementedError("override with a world of the implementation")

    def test_a_group_that_nobody_knows_has_no_offsets(self, world: World) -> None:
        assert world.groups().offsets(world.name(), world.topic(2)) == {}

    def test_a_member_goes_on_where_its_group_was_moved_to(self, world: World) -> None:
        topic, other, group = world.topic(2), world.topic(1), world.name()
        send(world.producer(), topic, [b"a", b"b", b"c"], partition=1)
        groups = world.groups()
        groups.move(group, topic, {1: 2})
        groups.move(group, other, {0: 0})
        assert groups.offsets(group, topic) == {1: 2}
        member = world.group(group)
        member.subscribe([topic], lambda _: None, lambda _: None)
        assert values(read_to(member, 3)) == [b"c"]


class AdminContract:
    """`Admin`."""

    @pytest.fixture
    def world(self) -> Iterator[World]:
        raise NotImplementedError("override with a world of the implementation")

    def test_created_topics_are_described_as_specified(self, world: World) -> None:
        admin, name = world.admin(), world.name()
        spec = TopicSpec(name=name, partitions=3, cleanup="compact", retention_ms=-1)
        assert ensure_topics(admin, [spec]) == [name]
        state = admin.topics([name, world.name()])
        assert list(state) == [name]
        assert state[name].partitions == 3
        assert state[name].topic_id == world.log().topic_id(name)
        assert state[name].settings["cleanup.policy"] == "compact"

    def test_ensuring_twice_keeps_the_topic(self, world: World) -> None:
        admin, spec = world.admin(), TopicSpec(name=world.name(), partitions=1)
        ensure_topics(admin, [spec])
        before = world.log().topic_id(spec.name)
        assert ensure_topics(admin, [spec]) == []
        assert world.log().topic_id(spec.name) == before

    def test_ensuring_gives_an_existing_topic_its_settings(self, world: World) -> None:
        admin, name = world.admin(), world.name()
        ensure_topics(admin, [TopicSpec(name=name, partitions=1, retention_ms=1000)])
        ensure_topics(admin, [TopicSpec(name=name, partitions=1, retention_ms=-1)])
        until(lambda: _retention(admin, name) == "-1", "the setting is there")

    def test_another_partition_count_is_refused_and_nothing_created(self, world: World) -> None:
        admin, name, other = world.admin(), world.name(), world.name()
        ensure_topics(admin, [TopicSpec(name=name, partitions=2)])
        specs = [TopicSpec(name=other, partitions=4), TopicSpec(name=name, partitions=4)]
        with pytest.raises(Misconfigured, match=r"has 2 partitions and not 4.*repartition"):
            ensure_topics(admin, specs)
        assert admin.topics([other]) == {}

    def test_a_new_topic_can_be_asked_about_at_once(self, world: World) -> None:
        admin, log = world.admin(), world.log()
        for _ in range(5):
            spec = TopicSpec(name=world.name(), partitions=4)
            admin.create_topics([spec])
            assert log.bounds(spec.name) == dict.fromkeys(range(4), (0, 0))
            assert log.partitions(spec.name) == 4

    def test_deleting_what_is_not_there_is_no_error(self, world: World) -> None:
        world.admin().delete_topics([world.name()])


def _polled(member: GroupSource) -> bool:
    member.poll(100, 0.1)
    return True


def _retention(admin: Admin, name: str) -> str:
    return admin.topics([name])[name].settings["retention.ms"]


def _seen(source: Source, topic: str) -> list[bytes | None]:
    source.assign({TopicPartition(topic, 0): 0})
    batch = source.poll(10, 0.5)
    return [] if batch is None else list(batch.values)
