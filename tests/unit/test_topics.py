"""The ten topics."""

from __future__ import annotations

import pytest

from ingest.log import Outgoing
from ingest.memory import MemoryLog
from ingest.topics import (
    FOR_EVER,
    TEN_YEARS_MS,
    Topics,
    TopicSpec,
    check_partitions,
    describe,
    ensure_topics,
    topic_specs,
)
from schemas.errors import Misconfigured
from schemas.events import RECORD_OF_TOPIC


def test_every_record_type_has_a_topic_with_a_name_and_a_spec() -> None:
    topics = Topics("run1-")
    names = [s.name for s in topic_specs("run1-", 4, replay=False)]
    assert list(topics.names()) == names == ["run1-" + name for name in RECORD_OF_TOPIC]
    attributes = {v for k, v in vars(topics).items() if k != "prefix"}
    assert attributes == set(names)


def test_topics_keyed_by_user_share_one_partition_count() -> None:
    topics = Topics()
    of = {s.name: s.partitions for s in topic_specs("", 8, replay=False)}
    assert {of[topics.user_events], of[topics.requests], of[topics.recommendations]} == {8}


def test_only_the_newest_of_items_features_and_releases_is_kept() -> None:
    topics = Topics()
    compacted = {s.name for s in topic_specs("", 4, replay=False) if s.cleanup == "compact"}
    assert compacted == {topics.item_updates, topics.item_features, topics.model_releases}


def test_topics_that_hold_replays_never_delete_or_roll_by_old_timestamps() -> None:
    for spec in topic_specs("", 4, replay=True):
        assert spec.settings()["retention.ms"] == str(FOR_EVER)
        assert spec.settings()["segment.ms"] == str(TEN_YEARS_MS)


def test_a_dead_letter_may_be_larger_than_its_record() -> None:
    of = {s.name: s.max_record_bytes for s in topic_specs("", 4, replay=False)}
    assert of[Topics().dead_letters] > 2 * of[Topics().user_events]


def test_ensuring_twice_creates_once() -> None:
    log = MemoryLog()
    specs = topic_specs("", 4, replay=True)
    assert len(ensure_topics(log, specs)) == 10
    assert ensure_topics(log, specs) == []
    assert check_partitions(log, Topics()) == 4


def test_unequal_counts_are_refused_with_the_command_that_mends() -> None:
    log = MemoryLog()
    ensure_topics(log, topic_specs("", 4, replay=True))
    log.delete_topics([Topics().requests])
    log.create_topic(Topics().requests, 2)
    with pytest.raises(
        Misconfigured, match=r"recommendation-requests has 2.*topics repartition --to 4"
    ):
        check_partitions(log, Topics())


def test_a_missing_topic_is_refused_with_the_command_that_creates() -> None:
    with pytest.raises(Misconfigured, match=r"user-events.*millstream topics create"):
        check_partitions(MemoryLog(), Topics())


def test_describe_tells_what_is_there_and_what_is_not() -> None:
    log = MemoryLog()
    specs = topic_specs("", 4, replay=False)
    ensure_topics(log, specs[:1])
    log.append(Outgoing(topic="user-events", key=b"k", value=b"v"))
    first, second = describe(log, log, specs)[:2]
    assert (first.name, first.exists, first.partitions, first.records) == (
        "user-events",
        True,
        4,
        1,
    )
    assert (first.cleanup, first.retention) == ("delete", "7 days")
    assert not second.exists


def test_a_topic_without_partitions_is_no_topic() -> None:
    with pytest.raises(ValueError, match="t: partitions must be at least 1, got 0"):
        TopicSpec(name="t", partitions=0)
