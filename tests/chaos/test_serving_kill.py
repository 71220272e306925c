"""kill -9 of the inference consumer, and a zombie: every request answered exactly once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference.answers import Answers, closed
from inference.batcher import BatchPolicy
from inference.commits import Ends
from inference.consumer import Consumer, ConsumerPolicy, Costs
from inference.encoding import AnswerWriter
from inference.requests import RequestReader
from ingest.clock import SystemClock
from ingest.dead_letter import DeadLetters
from ingest.kafka import KafkaGroupSource, KafkaProducer, KafkaTransactionalProducer
from ingest.metrics import MemoryMetrics
from schemas.codec import Codec
from schemas.errors import Misconfigured, PositionMoved
from schemas.events import DeadLetter, Recommendation, Status
from tests.serving import Whole
from tests.serving_process import Place, Server, settings_for

pytestmark = [pytest.mark.chaos, pytest.mark.kafka, pytest.mark.valkey]


@pytest.fixture
def place(kafka, valkey, registry, unique_name, tmp_path) -> Iterator[Place]:
    made = Place(settings_for(kafka, valkey, registry, unique_name("serve"), tmp_path))
    yield made
    made.close()


@pytest.fixture
def serve(place, tmp_path):
    """Start servers that end with the test."""
    servers: list[Server] = []
    (tmp_path / "logs").mkdir()

    def start(name: str = "0", *more: str) -> Server:
        servers.append(Server(place.settings, tmp_path / "logs", name, *more))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def once(count: int) -> Counter[str]:
    return Counter({f"r{n}": 1 for n in range(count)})


def test_a_server_killed_twice_answers_every_request_once(place, serve, eventually):
    total = 6_000
    server = serve()
    eventually(server.ready, timeout_s=60)
    place.ask(range(1_500))
    eventually(lambda: place.read() > 300, timeout_s=30)
    place.ask(range(1_500, 3_000))
    server.kill()  # answers of an open transaction are under way
    place.raw(b"user-1", b"not a request")
    server = serve()
    eventually(lambda: place.read() > 1_800, timeout_s=60)
    place.ask(range(3_000, total))
    server.kill()
    server = serve()
    eventually(lambda: place.read() >= total, timeout_s=60)
    assert server.stop() == 0
    place.read()
    assert place.counts() == once(total)
    letters = place.log.bounds(place.topics.dead_letters)
    assert sum(end - first for first, end in letters.values()) >= 1


def test_delivered_at_least_once_nothing_is_lost_and_repeats_are_word_for_word(
    place, serve, eventually
):
    total, asked = 4_000, Counter()
    more = ("--delivery", "at-least-once")
    for life in range(4):
        server = serve("0", *more)
        eventually(server.ready, timeout_s=60)
        first = life * total // 4
        place.ask(range(first, first + total // 4))
        asked.update(f"r{n}" for n in range(first, first + total // 4))
        eventually(lambda: place.read() > first + 100, timeout_s=60)  # noqa: B023
        server.kill()
    server = serve("0", *more)
    eventually(lambda: place.read() and place.counts().keys() == asked.keys(), timeout_s=60)
    before = place.read()
    place.ask(range(total - 300, total))  # by clients that did not hear
    eventually(lambda: place.read() >= before + 300, timeout_s=60)
    assert server.stop() == 0
    place.read()
    counts = place.counts()
    assert counts.keys() == asked.keys()
    told: dict[str, Recommendation] = {}
    for answer in place.answers:
        assert told.setdefault(answer.value.request_id, answer.value) == answer.value
    assert sum(count > 1 for count in counts.values()) >= 300


def test_a_second_server_takes_its_share_and_gives_it_back(place, serve, eventually):
    one = serve("0")
    eventually(one.ready, timeout_s=60)
    place.ask(range(1_000))
    two = serve("1")
    place.ask(range(1_000, 2_000))
    eventually(two.ready, timeout_s=60)
    place.ask(range(2_000, 4_000))
    eventually(lambda: place.read() >= 4_000, timeout_s=60)
    assert two.stop() == 0
    place.ask(range(4_000, 5_000))
    eventually(lambda: place.read() >= 5_000, timeout_s=60)
    assert one.stop() == 0
    place.read()
    assert place.counts() == once(5_000)


def test_of_two_servers_of_one_name_the_first_ends_and_says_why(place, serve, eventually):
    first = serve("0", "--delivery", "at-least-once")
    eventually(first.ready, timeout_s=60)
    second = serve("0", "--delivery", "at-least-once")
    assert first.ended() == 2
    assert "an --instance of its own" in first.errors.read_text()
    eventually(second.ready, timeout_s=60)
    place.ask(range(300))
    eventually(lambda: place.read() >= 300, timeout_s=60)
    assert second.stop() == 0
    place.read()
    assert place.counts() == once(300)


def ends(place: Place, name: str) -> Ends:
    settings, topics = place.settings, place.topics
    servers = settings.bootstrap_servers
    letters = Codec(place.registry, DeadLetter, topics.dead_letters)
    return Ends(
        source=KafkaGroupSource(
            servers, f"{settings.topic_prefix}serve", instance_id=name, session_timeout_s=6
        ),
        producers=[
            KafkaTransactionalProducer(servers, f"{settings.topic_prefix}{name}-{turn}")
            for turn in range(2)
        ],
        dead_letters=DeadLetters(
            KafkaProducer(servers), letters, topics.dead_letters, SystemClock()
        ),
        reader=RequestReader(place.registry),
        writer=AnswerWriter(Codec(place.registry, Recommendation, topics.recommendations)),
        requests_topic=topics.requests,
    )


def consumer(ends: Ends, steps: Whole) -> Consumer:
    policy = ConsumerPolicy(batch=BatchPolicy(max_size=64, objective_s=0.001))
    return Consumer(ends, steps, policy, SystemClock(), Costs.unknown([64]), MemoryMetrics())


def test_a_zombie_whose_transaction_is_fenced_answers_nothing(place, eventually):
    entered, release, stop = threading.Event(), threading.Event(), threading.Event()

    def echo(asked) -> Answers:
        told = {i: closed(a, Status.OK, "") for i, a in enumerate(asked)}
        return Answers(n=len(asked), closed=told)

    def stuck(asked) -> Answers:
        entered.set()
        assert release.wait(60)
        return echo(asked)

    place.ask(range(500))
    first = ends(place, "a")
    with ThreadPoolExecutor() as pool:
        try:
            zombie = pool.submit(consumer(first, Whole(stuck)).run, stop)
            assert entered.wait(60)
            second = ends(place, "a")  # the same instance, started again elsewhere
            successor = pool.submit(consumer(second, Whole(echo)).run, stop)
            eventually(lambda: place.read() >= 500, timeout_s=60)
            release.set()
            # By its producer's transaction, or by its consumer's poll, whichever hears of it first.
            with pytest.raises((PositionMoved, Misconfigured)):
                zombie.result(60)
        finally:
            release.set()
            stop.set()
        successor.result(60)
    for one in (first, second):
        one.source.close()
        for producer in one.producers:
            producer.close()
    place.read()
    assert place.counts() == once(500)
