"""Every worker refuses at its start what does not fit: exit code 2, and what to do."""

from __future__ import annotations

import http.client
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from deploy import ports
from deploy.cli import run
from features.job import open_store
from features.store import Position
from inference.exposure import Exposure
from inference.server import Options, Server
from ingest.kafka import KafkaAdmin, KafkaGroups, KafkaProducer
from ingest.log import Outgoing
from ingest.topics import serving_group, topic_specs
from schemas.errors import BrokerUnavailable
from tests.feature_world import PARTITIONS, World, make_world

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]

WORKERS = (
    ("features", "run"),
    ("features", "join"),
    ("features", "archive"),
    ("monitor",),
    ("serve",),
)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Workers put their own in, of which nothing must be left here."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def world(kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str]) -> World:
    return make_world(kafka, valkey, registry, unique_name("start"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Start a worker that must end with exit code 2; what it said."""

    def start(world: World, *worker: str) -> str:
        settings = world.settings
        code = run(
            [
                *("--bootstrap-servers", settings.bootstrap_servers),
                *("--registry-url", settings.registry_url),
                *("--redis-url", settings.redis_url),
                *("--prefix", settings.topic_prefix),
                *worker,
            ]
        )
        assert code == 2
        return " ".join(capsys.readouterr().err.split())

    return start


def store_stands(world: World, changes: Mapping[str, Any]) -> None:
    """Partition 0 of the store has been folded from here, changed."""
    log, topic = world.log(), world.topics.user_events
    here = Position(
        cluster_id=log.cluster_id(), topic_id=log.topic_id(topic), epoch=1, next_offset=0
    )
    store = open_store(world.settings)
    store.claim(0, replace(here, **changes))
    store.close()


def test_unequal_partition_counts_are_refused_by_every_worker(
    world: World, refused: Callable[..., str], unique_name: Callable[[str], str]
) -> None:
    prefix = unique_name("unequal") + "-"
    unequal = World(settings=replace(world.settings, topic_prefix=prefix))
    specs = [
        replace(spec, partitions=3) if spec.name == unequal.topics.requests else spec
        for spec in topic_specs(prefix, PARTITIONS, replay=True)
    ]
    KafkaAdmin(world.settings.bootstrap_servers).create_topics(specs)
    for worker in WORKERS:
        said = refused(unequal, *worker)
        assert "recommendation-requests has 3" in said
        assert "millstream topics repartition --to 4" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"cluster_id": "another"}, "cluster another", id="another-cluster"),
        pytest.param({"topic_id": "another"}, "topic id another", id="another-topic"),
        pytest.param({"next_offset": 9}, "stands at offset 9", id="past-the-end"),
    ],
)
def test_rows_of_another_log_are_refused_with_the_command_that_rebuilds(
    world: World, refused: Callable[..., str], changes: Mapping[str, Any], says: str
) -> None:
    store_stands(world, changes)
    said = refused(world, "serve")
    assert says in said
    assert "millstream features rebuild --partition 0" in said


def test_a_serving_group_past_the_end_is_refused_with_the_command_that_moves_it(
    world: World, refused: Callable[..., str]
) -> None:
    servers, topic = world.settings.bootstrap_servers, world.topics.requests
    producer = KafkaProducer(servers)
    producer.send(Outgoing(topic=topic, key=b"u", value=b"v", partition=1))
    producer.flush(30)
    producer.close()
    group = serving_group(world.settings.topic_prefix)
    KafkaGroups(servers, timeout_s=30).move(group, topic, {1: 7})
    said = refused(world, "serve")
    assert "read up to offset 7, but its log spans 0 to 1" in said
    assert f"--group {group} --topic {topic} --reset-offsets --to-earliest" in said


def test_the_network_is_ready_while_the_log_s_ends_cannot_be_opened(
    world: World, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    """Calls are answered by then; what is wrong is tried again."""
    tries = []

    def no_ends(_: Server) -> Any:
        tries.append(1)
        raise BrokerUnavailable("no coordinator yet")

    monkeypatch.setattr(Server, "_ends", no_ends)
    stop = threading.Event()
    with ports.reserve(1) as reserved:
        (port,) = reserved.numbers
    with ExitStack() as stack:
        server = Server(world.settings, Options(exposure=Exposure(http_port=port)), stack)
        server.expose(stop)
        serving = threading.Thread(target=server.serve, args=(stop,))
        serving.start()
        try:
            eventually(lambda: probed(port) == 200 and len(tries) > 1)
        finally:
            stop.set()
            serving.join(30)
    assert not serving.is_alive()


def probed(port: int) -> int:
    """The status of /readyz."""
    made = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        made.request("GET", "/readyz")
        return made.getresponse().status
    finally:
        made.close()
