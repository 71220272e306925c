"""The pipeline on a log in memory: every request once, whatever happens around it."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest

from inference.answer_memory import AnswerMemory, DeliveredAnswers
from inference.answers import Answers, closed
from inference.at_least_once import AtLeastOnce
from inference.batcher import BatchPolicy, Cause
from inference.commits import Ends
from inference.consumer import Consumer, ConsumerPolicy, Costs
from inference.encoding import AnswerWriter
from inference.requests import Bad, RequestReader
from ingest.clock import SystemClock
from ingest.dead_letter import DeadLetters
from ingest.log import Outgoing, TopicPartition
from ingest.memory import (
    MemoryGroups,
    MemoryGroupSource,
    MemoryLog,
    MemoryProducer,
    MemorySource,
    MemoryTransactionalProducer,
)
from ingest.metrics import MemoryMetrics
from ingest.placement import partition_of
from schemas.codec import Codec
from schemas.errors import (
    BrokerUnavailable,
    Misconfigured,
    PositionMoved,
    Reason,
    RegistryUnavailable,
    Rejected,
)
from schemas.events import DeadLetter, Recommendation, RecommendationRequest, Status
from schemas.registry import MemoryRegistry
from tests.serving import Whole

PARTITIONS = 3
POLICY = ConsumerPolicy(batch=BatchPolicy(max_size=8, objective_s=0.001, max_pending=200))


def echo(asked) -> Answers:
    return Answers(n=len(asked), closed={i: closed(a, Status.OK, "") for i, a in enumerate(asked)})


@dataclass
class World:
    """Topics in memory, and a consumer on them."""

    log: MemoryLog = field(default_factory=MemoryLog)
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    metrics: MemoryMetrics = field(default_factory=MemoryMetrics)

    def __post_init__(self) -> None:
        for topic in ("requests", "answers", "dead"):
            self.log.create_topic(topic, PARTITIONS)
        self.codec = Codec(self.registry, RecommendationRequest, "requests")

    def ask(self, count: int, start: int = 0, timestamp_ms=None, **asked) -> None:
        producer = MemoryProducer(self.log)
        for i in range(start, start + count):
            user = f"user-{i % 17}"
            request = RecommendationRequest(request_id=f"r{i}", user_id=user, **asked)
            value = self.codec.encode(request)
            producer.send(
                Outgoing(
                    topic="requests", key=user.encode(), value=value, timestamp_ms=timestamp_ms
                )
            )

    def ends(self, name: str = "a", producer=None) -> Ends:
        letters = DeadLetters(
            MemoryProducer(self.log),
            Codec(self.registry, DeadLetter, "dead"),
            "dead",
            SystemClock(),
        )
        return Ends(
            source=MemoryGroupSource(self.log, "serve"),
            producers=[producer or MemoryTransactionalProducer(self.log, name)],
            dead_letters=letters,
            reader=RequestReader(self.registry),
            writer=AnswerWriter(
                Codec(self.registry, Recommendation, "answers"), max_answer_bytes=200
            ),
            requests_topic="requests",
        )

    def consumer(self, ends: Ends, answer=echo, policy=POLICY) -> Consumer:
        costs = Costs.unknown([policy.batch.max_size])
        return Consumer(ends, Whole(answer), policy, SystemClock(), costs, self.metrics)

    def read(self, topic: str, record_type: type) -> list:
        codec, found = Codec(self.registry, record_type, topic), []
        source = MemorySource(self.log)
        bounds = self.log.bounds(topic)
        source.assign({TopicPartition(topic, p): first for p, (first, _) in bounds.items()})
        while batch := source.poll(1000, 0):
            found += [(batch.partition, codec.decode(value)) for value in batch.values]
        return found

    def answers(self) -> Counter[str]:
        return Counter(a.request_id for _, a in self.read("answers", Recommendation))


@pytest.fixture
def world() -> World:
    return World()


def serve_until(world: World, consumer: Consumer, done, eventually) -> None:
    """Run a consumer in a thread until `done`, then stop it."""
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(consumer.run, stop)
        try:
            eventually(lambda: done() or running.done())
        finally:
            stop.set()
        running.result(30)


def everyone_once(world: World, count: int):
    expected = Counter({f"r{i}": 1 for i in range(count)})
    return lambda: world.answers() == expected


def test_every_request_is_answered_once_in_its_users_partition(world, eventually):
    world.ask(100)
    serve_until(world, world.consumer(world.ends()), everyone_once(world, 100), eventually)
    batches = sum(world.metrics.value("serve.batches", cause=cause.value) for cause in Cause)
    assert 100 / 8 <= batches <= 100
    for partition, answer in world.read("answers", Recommendation):
        assert partition == partition_of(answer.user_id.encode(), PARTITIONS)


class Unsure(AtLeastOnce):
    """Sends, and dies before the offsets are stored."""

    def commit(self, positions, group) -> None:
        self._producer.flush(5)
        raise PositionMoved("gone")


def test_at_least_once_repeats_are_word_for_word_the_first_answers(world, eventually):
    def ends(kind: type[AtLeastOnce], name: str) -> Ends:
        found = world.ends(name)
        memory = AnswerMemory(
            DeliveredAnswers(world.log, MemorySource(world.log), world.registry, "answers")
        )
        producer = kind(MemoryProducer(world.log), found.source, 5)
        return replace(found, producers=[producer], memory=memory)

    numbers = itertools.count()

    def numbered(asked) -> Answers:
        told = {i: closed(a, Status.OK, f"{next(numbers)}") for i, a in enumerate(asked)}
        return Answers(n=len(asked), closed=told)

    world.ask(20)
    first = ends(Unsure, "a")
    with pytest.raises(PositionMoved):
        world.consumer(first, numbered).run(threading.Event())
    first.source.close()
    delivered = len(world.read("answers", Recommendation))
    assert delivered > 0
    assert world.metrics.value("loop.retries", loop="serve", error="PositionMoved") == 4
    world.ask(5)  # and five are asked again
    second = ends(AtLeastOnce, "b")
    consumer = world.consumer(second, numbered)
    serve_until(world, consumer, lambda: world.answers().total() == 25 + delivered, eventually)
    told: dict[str, str | None] = {}
    for _, answer in world.read("answers", Recommendation):
        assert told.setdefault(answer.request_id, answer.message) == answer.message
    assert told.keys() == {f"r{i}" for i in range(20)}


def test_answers_of_a_partition_keep_the_order_of_its_requests(world, eventually):
    world.ask(100)
    serve_until(world, world.consumer(world.ends()), everyone_once(world, 100), eventually)
    for p in range(PARTITIONS):
        found = [int(a.request_id[1:]) for q, a in world.read("answers", Recommendation) if q == p]
        assert found == sorted(found)


def test_batches_side_by_side_are_answered_in_order(world, eventually):
    turns, side_by_side = itertools.count(), threading.Event()

    class Uneven(Whole):
        def score(self, prepared):
            if next(turns) == 0:  # the first one takes longer than the next
                assert side_by_side.wait(10)
                SystemClock().sleep(0.1)
            else:
                side_by_side.set()
            return prepared

    consumer = world.consumer(world.ends())
    consumer._steps = Uneven(echo)
    world.ask(100)
    serve_until(world, consumer, everyone_once(world, 100), eventually)
    assert side_by_side.is_set()
    for p in range(PARTITIONS):
        found = [int(a.request_id[1:]) for q, a in world.read("answers", Recommendation) if q == p]
        assert found == sorted(found)


def test_a_second_life_goes_on_where_the_first_had_committed(world, eventually):
    world.ask(50)
    ends = world.ends()
    serve_until(world, world.consumer(ends), everyone_once(world, 50), eventually)
    ends.source.close()
    world.ask(50, start=50)
    serve_until(world, world.consumer(world.ends()), everyone_once(world, 100), eventually)


def test_bad_records_become_dead_letters_and_move_the_position(world, eventually):
    world.ask(5)
    MemoryProducer(world.log).send(Outgoing(topic="requests", key=b"user-1", value=b"?"))
    world.ask(5, start=5)
    serve_until(
        world,
        world.consumer(world.ends()),
        lambda: everyone_once(world, 10)() and world.read("dead", DeadLetter),
        eventually,
    )
    ((_, letter),) = world.read("dead", DeadLetter)
    assert (letter.reason, letter.value) == ("not-framed", b"?")


def test_a_poisonous_request_is_dead_lettered_and_answered(world, eventually):
    def answer(asked) -> Answers:
        dead = tuple(
            Bad(batch=a.batch, index=a.index, rejected=Rejected(Reason.POISON, "boom"))
            for a in asked
            if a.request.request_id == "r3"
        )
        return replace(echo(asked), dead=dead)

    world.ask(10)
    consumer = world.consumer(world.ends(), answer)
    serve_until(world, consumer, everyone_once(world, 10), eventually)
    ((_, letter),) = world.read("dead", DeadLetter)
    assert letter.reason == "poison"


class SilentRegistry(MemoryRegistry):
    """A registry that leaves the next questions unanswered."""

    silent = 0

    def schema(self, schema_id: int) -> str:
        if self.silent:
            self.silent -= 1
            raise RegistryUnavailable("no answer")
        return super().schema(schema_id)


def test_requests_wait_for_a_registry_that_is_gone_and_none_is_dead_lettered(eventually):
    registry = SilentRegistry()
    world = World(registry=registry)
    world.ask(20)
    consumer = world.consumer(world.ends())
    stop = threading.Event()
    registry.silent = 3
    with ThreadPoolExecutor() as pool:
        running = pool.submit(consumer.run, stop)
        eventually(lambda: not registry.silent or running.done())
        eventually(lambda: everyone_once(world, 20)() or running.done())
        stop.set()
        running.result(30)
    assert everyone_once(world, 20)()
    assert world.read("dead", DeadLetter) == []


class Flaky:
    """A transactional producer whose commits fail when told."""

    def __init__(self, inner, errors) -> None:
        self.inner, self.errors = inner, list(errors)

    def begin(self) -> None:
        self.inner.begin()

    def send(self, record) -> None:
        self.inner.send(record)

    def commit(self, positions, group) -> None:
        if self.errors:
            self.inner.abort()
            raise self.errors.pop()
        self.inner.commit(positions, group)

    def abort(self) -> None:
        self.inner.abort()

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), PositionMoved("generation")])
def test_an_aborted_transaction_is_tried_again_and_doubles_nothing(world, eventually, error):
    world.ask(60)
    producer = Flaky(MemoryTransactionalProducer(world.log, "a"), [error] * 3)
    consumer = world.consumer(world.ends(producer=producer))
    serve_until(world, consumer, everyone_once(world, 60), eventually)


def test_a_fenced_consumer_stops_and_its_successor_answers_the_rest(world, eventually):
    first, release = world.ends(), threading.Event()
    entered = threading.Event()

    def slow(asked) -> Answers:
        entered.set()
        assert release.wait(30)
        return echo(asked)

    world.ask(40)
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        zombie = pool.submit(world.consumer(first, slow).run, stop)
        assert entered.wait(30)
        first.source.expire()  # the group gives its partitions to the next member
        successor = world.consumer(world.ends())
        try:
            serve_until(world, successor, everyone_once(world, 40), eventually)
        finally:
            release.set()
        with pytest.raises(PositionMoved):
            zombie.result(60)
    assert world.answers() == Counter({f"r{i}": 1 for i in range(40)})


def test_a_member_that_joins_doubles_and_loses_nothing(world, eventually):
    world.ask(200)
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        members = []
        try:
            for name in ("a", "b"):
                members.append(pool.submit(_lives, world, name, stop))
                world.ask(200, start=200 * len(members))
            eventually(everyone_once(world, 600), timeout_s=15)
        finally:
            stop.set()
        for member in members:
            member.result(30)
    assert everyone_once(world, 600)()


def _lives(world: World, name: str, stop: threading.Event) -> None:
    """What the server does: life after life."""
    while not stop.is_set():
        ends = world.ends(name)
        try:
            world.consumer(ends).run(stop)
        except PositionMoved:
            continue
        finally:
            ends.source.close()


def test_an_error_of_the_service_ends_the_pipeline(world):
    def broken(asked) -> Answers:
        raise RuntimeError("a bug")

    world.ask(3)
    with pytest.raises(RuntimeError, match="a bug"):
        world.consumer(world.ends(), broken).run(threading.Event())
    assert world.answers() == Counter()


def test_an_error_of_a_commit_is_told_by_a_thread_that_waits_for_the_registry(world):
    failed = threading.Event()

    class Broken(Flaky):
        def commit(self, positions, group) -> None:
            failed.set()
            raise Misconfigured("a person must act")

    class Away(RequestReader):
        def read(self, batch):
            if not len(read):
                read.append(batch)
                return super().read(batch)
            assert failed.wait(10)
            raise RegistryUnavailable("away")

    read: list[object] = []
    ends = world.ends(producer=Broken(MemoryTransactionalProducer(world.log, "a"), []))
    world.ask(20)
    with pytest.raises(Misconfigured, match="a person must act"):
        world.consumer(replace(ends, reader=Away(world.registry))).run(threading.Event())


def test_an_answer_that_is_too_large_becomes_one_that_says_so(world, eventually):
    def long(asked) -> Answers:
        told = {i: closed(a, Status.OK, "x" * 300) for i, a in enumerate(asked)}
        return Answers(n=len(asked), closed=told)

    world.ask(3)
    consumer = world.consumer(world.ends(), long)
    serve_until(world, consumer, everyone_once(world, 3), eventually)
    for _, answer in world.read("answers", Recommendation):
        assert answer.status is Status.INVALID
        assert "ask for fewer items" in (answer.message or "")


def test_costs_are_of_what_a_model_was_asked_for_and_of_delivery(world, eventually):
    @dataclass(frozen=True)
    class Unmodelled(Whole):
        def modelled(self, scored):
            return 0

    clock = SystemClock()
    costs = Costs.unknown([8])
    before_s = (costs.score.predict(1), costs.deliver.predict(1))
    world.ask(40)
    ends = world.ends()
    consumer = Consumer(ends, Unmodelled(echo), POLICY, clock, costs, world.metrics)
    serve_until(world, consumer, everyone_once(world, 40), eventually)
    ends.source.close()
    assert costs.score.predict(1) == before_s[0]
    assert costs.deliver.predict(1) != before_s[1]
    consumer = Consumer(world.ends(), Whole(echo), POLICY, clock, costs, world.metrics)
    world.ask(40, start=40)
    serve_until(world, consumer, everyone_once(world, 80), eventually)
    assert costs.score.predict(1) != before_s[0]


class Counting(MemoryGroupSource):
    """Counts the polls that brought something."""

    brought = 0

    def poll(self, max_records, timeout_s):
        batch = super().poll(max_records, timeout_s)
        self.brought += batch is not None
        return batch


def test_what_comes_while_the_model_is_busy_is_polled_together(world, eventually):
    """One comes every millisecond; a poll that waits would bring it alone."""
    busy_s, count = 0.2, 100
    clock, source = SystemClock(), Counting(world.log, "serve")
    during: list[int] = []

    class Busy(Whole):
        def score(self, prepared):
            before = source.brought
            clock.sleep(busy_s)
            during.append(source.brought - before)
            return prepared

    costs = Costs.unknown([256])
    for _ in range(20):
        costs.score.observe(1, busy_s)
    ends = replace(world.ends(), source=source)
    policy = ConsumerPolicy(batch=BatchPolicy(max_size=256, objective_s=0.001))
    consumer = Consumer(ends, Busy(echo), policy, clock, costs, world.metrics)
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(consumer.run, stop)
        try:
            eventually(lambda: consumer.assigned.is_set() or running.done())
            world.ask(1)
            for n in range(1, count):
                clock.sleep(0.001)
                world.ask(1, start=n)
            eventually(lambda: everyone_once(world, count)() or running.done())
        finally:
            stop.set()
        running.result(30)
    assert during[0] < count / 2


HOUR_S = 3600.0


@pytest.mark.parametrize(
    ("sent_s_ago", "objective_s", "deadline_s", "cause"),
    [
        (0, HOUR_S, None, Cause.ENOUGH),
        (2 * HOUR_S, HOUR_S, None, Cause.DEADLINE),  # it waited elsewhere for as long as it may
        (-2 * HOUR_S, 0.0, None, Cause.DEADLINE),  # a sender's clock that is ahead gives no time
        (0, 0.0, HOUR_S, Cause.ENOUGH),
        (HOUR_S, HOUR_S, HOUR_S, Cause.DEADLINE),
    ],
)
def test_objective_and_deadline_count_from_a_requests_timestamp(
    world, eventually, sent_s_ago, objective_s, deadline_s, cause
):
    sent_ms = SystemClock().now_ms() - round(1000 * sent_s_ago)
    deadline_ms = None if deadline_s is None else round(1000 * deadline_s)
    world.ask(1, timestamp_ms=sent_ms, deadline_ms=deadline_ms)
    policy = ConsumerPolicy(batch=BatchPolicy(max_size=8, objective_s=objective_s))
    consumer = world.consumer(world.ends(), policy=policy)
    serve_until(world, consumer, everyone_once(world, 1), eventually)
    causes = {one: world.metrics.value("serve.batches", cause=one.value) for one in Cause}
    assert {one for one, count in causes.items() if count} == {cause}


class Idling(MemoryGroupSource):
    """Counts the polls that only take part in the group."""

    idle = 0

    def poll(self, max_records, timeout_s):
        self.idle += not max_records
        return super().poll(max_records, timeout_s)


def test_a_consumer_that_stalls_takes_part_in_its_group_and_fetches_nothing(world, eventually):
    release, stop = threading.Event(), threading.Event()

    def slow(asked) -> Answers:
        assert release.wait(30)
        return echo(asked)

    source = Idling(world.log, "serve")
    policy = ConsumerPolicy(batch=BatchPolicy(max_size=8, max_pending=16))
    consumer = world.consumer(replace(world.ends(), source=source), slow, policy)
    world.ask(400)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(consumer.run, stop)
        try:
            eventually(lambda: source.idle > 2 or running.done())
            assert not running.done()
            # As many as may wait, and a batch in each lane.
            assert sum(source._cursor.positions.values()) <= 16 + 8 * 2
            release.set()
            eventually(everyone_once(world, 400), timeout_s=15)
        finally:
            release.set()
            stop.set()
        running.result(30)


def test_a_topic_of_bad_records_stops_the_consumer_before_it_is_drained(world):
    for n in range(150):
        user = f"user-{n % 17}".encode()
        MemoryProducer(world.log).send(Outgoing(topic="requests", key=user, value=b"?"))
    with pytest.raises(Misconfigured, match="more than the allowed share of 20%"):
        world.consumer(world.ends()).run(threading.Event())
    assert sum(MemoryGroups(world.log).offsets("serve", "requests").values()) < 150
    assert sum(end for _, end in world.log.bounds("dead").values()) < 150
