"""Every error of the library has a meaning, and leaves as one of ours."""

from __future__ import annotations

from collections.abc import Callable

import confluent_kafka as ck
import pytest

from ingest.clock import ManualClock, SystemClock
from ingest.kafka import (
    KafkaAdmin,
    KafkaGroupSource,
    KafkaLog,
    KafkaProducer,
    KafkaSource,
    KafkaTransactionalProducer,
)
from ingest.kafka.client import mapped, mapping, settled
from ingest.kafka.errors import FENCED, FOREIGN, MISCONFIGURED, REJECTED, meaning
from ingest.log import Outgoing, TopicPartition
from ingest.topics import TopicSpec
from schemas.errors import (
    BrokerUnavailable,
    MillstreamError,
    Misconfigured,
    PositionForeign,
    PositionMoved,
    Reason,
    Rejected,
)

# Nobody listens on the discard port of this machine.
NOWHERE = "127.0.0.1:9"
TIMEOUT_S = 1.0


def codes() -> dict[str, int]:
    """Every error code that the library knows, by the name that its errors give."""
    numbers = {v for k, v in vars(ck.KafkaError).items() if k.isupper() and isinstance(v, int)}
    return {ck.KafkaError(n).name(): n for n in sorted(numbers)}


def test_every_name_in_the_table_is_one_of_the_librarys() -> None:
    listed = FENCED | FOREIGN | MISCONFIGURED | REJECTED.keys()
    assert listed - codes().keys() == set()


def test_no_name_has_two_meanings() -> None:
    tables = [FENCED, FOREIGN, MISCONFIGURED, frozenset(REJECTED)]
    assert sum(map(len, tables)) == len(frozenset().union(*tables))


@pytest.mark.parametrize("name", codes())
def test_every_code_becomes_one_of_our_errors_and_keeps_its_name(name: str) -> None:
    ours = mapped(ck.KafkaError(codes()[name], "why"), "poll t[0]")
    assert isinstance(ours, MillstreamError)
    assert "poll t[0]: why" in str(ours)
    assert name in str(ours)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_FENCED", PositionMoved),
        ("ILLEGAL_GENERATION", PositionMoved),
        ("_AUTO_OFFSET_RESET", PositionForeign),
        ("TOPIC_AUTHORIZATION_FAILED", Misconfigured),
        ("MSG_SIZE_TOO_LARGE", Rejected),
        ("_TRANSPORT", BrokerUnavailable),
        ("UNKNOWN_TOPIC_OR_PART", BrokerUnavailable),
        ("A_CODE_OF_A_LATER_VERSION", BrokerUnavailable),
    ],
)
def test_a_code_means_what_its_caller_has_to_do(name: str, expected: type[MillstreamError]) -> None:
    assert type(meaning(name, "why")) is expected


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ck.KafkaException(ck.KafkaError(ck.KafkaError._TIMED_OUT)), BrokerUnavailable),
        (ValueError("no such setting"), Misconfigured),
        (RuntimeError("Consumer closed"), BrokerUnavailable),
    ],
)
def test_what_a_call_raises_leaves_as_ours(
    raised: Exception, expected: type[MillstreamError]
) -> None:
    with pytest.raises(expected, match=r"^ask: "), mapping("ask"):
        raise raised


def test_a_setting_that_the_library_does_not_know_is_misconfigured() -> None:
    with pytest.raises(Misconfigured, match=r"no\.such\.setting"):
        KafkaSource(NOWHERE, options={"no.such.setting": 1})
    with pytest.raises(Misconfigured, match=r"no\.such\.setting"):
        KafkaProducer(NOWHERE, options={"no.such.setting": 1})


def test_a_record_dated_too_far_ahead_is_rejected_before_it_can_spoil_its_batch() -> None:
    producer = KafkaProducer(NOWHERE, timeout_s=TIMEOUT_S)
    at = SystemClock().now_ms() + 2 * 3_600_000
    with pytest.raises(Rejected) as rejected:
        producer.send(Outgoing(topic="t", key=b"k", value=b"v", timestamp_ms=at))
    assert rejected.value.reason == Reason.IN_FUTURE
    producer.close()


class TestNobodyThere:
    """Each call that needs a broker says so, within its time-out."""

    @pytest.fixture(autouse=True)
    def _bounded(self) -> object:
        clock = SystemClock()
        start = clock.monotonic_s()
        yield
        assert clock.monotonic_s() - start < 8 * TIMEOUT_S

    def test_source(self) -> None:
        source = KafkaSource(NOWHERE, timeout_s=TIMEOUT_S)
        source.assign({TopicPartition("t", 0): 0})
        with pytest.raises(BrokerUnavailable):
            source.poll(1, 0.1)
        source.close()

    def test_group_source_waits_for_its_partitions(self) -> None:
        member = KafkaGroupSource(NOWHERE, "g", timeout_s=TIMEOUT_S)
        member.subscribe(["t"], lambda _: None, lambda _: None)
        with pytest.raises(BrokerUnavailable):
            _poll_often(member)
        member.close()

    def test_producer(self) -> None:
        producer = KafkaProducer(NOWHERE, timeout_s=TIMEOUT_S)
        producer.send(Outgoing(topic="t", key=b"k", value=b"v"))
        with pytest.raises(BrokerUnavailable, match="1 records were not delivered"):
            producer.flush(0.2)
        producer.close()

    def test_transactional_producer(self) -> None:
        with pytest.raises(BrokerUnavailable):
            KafkaTransactionalProducer(NOWHERE, "id", timeout_s=TIMEOUT_S)

    def test_log(self) -> None:
        log = KafkaLog(NOWHERE, timeout_s=TIMEOUT_S)
        with pytest.raises(BrokerUnavailable):
            log.cluster_id()
        with pytest.raises(BrokerUnavailable):
            log.bounds("t")

    def test_admin(self) -> None:
        admin = KafkaAdmin(NOWHERE, timeout_s=TIMEOUT_S)
        with pytest.raises(BrokerUnavailable):
            admin.topics(["t"])
        with pytest.raises(BrokerUnavailable):
            admin.create_topics([TopicSpec(name="t", partitions=1)])


def _poll_often(member: KafkaGroupSource) -> None:
    for _ in range(20):
        member.poll(1, 0.1)


def unled(code: int, times: int) -> Callable[[], str]:
    """A question that fails so often, then is answered."""
    left = iter(range(times))

    def ask() -> str:
        with mapping("ask"):
            if next(left, None) is not None:
                raise ck.KafkaException(ck.KafkaError(code))
        return "answer"

    return ask


def test_a_question_is_asked_again_while_a_partition_has_no_leader() -> None:
    clock = ManualClock()
    assert settled(unled(ck.KafkaError.NOT_LEADER_FOR_PARTITION, 5), clock, 1.0) == "answer"
    assert 0 < clock.monotonic_s() < 1
    with pytest.raises(BrokerUnavailable, match="NOT_LEADER"):
        settled(unled(ck.KafkaError.NOT_LEADER_FOR_PARTITION, 1000), clock, 1.0)
    assert 1 < clock.monotonic_s() < 3


def test_a_question_is_not_asked_again_when_no_broker_answers() -> None:
    clock = ManualClock()
    with pytest.raises(BrokerUnavailable):
        settled(unled(ck.KafkaError._TRANSPORT, 1), clock, 1.0)
    assert clock.monotonic_s() == 0
