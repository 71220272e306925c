"""Programs in Go and Node, each with a popular Kafka client, beside Millstream on one broker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.job import rebuild_parts
from features.rebuild import verify
from ingest.kafka import KafkaSource, KafkaTransactionalProducer
from ingest.log import Outgoing, TopicPartition
from ingest.placement import partition_of
from schemas.codec import Codec
from schemas.events import Recommendation, Status
from schemas.registry import RemoteRegistry
from tests.feature_world import PARTITIONS, World, make_world

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]

CLIENTS = Path(__file__).parents[1] / "clients"
SCHEMA = Path(__file__).parents[2] / "schemas" / "avro" / "user_event.avsc"
EVENTS, USERS = 2_000, 50
Client = Callable[..., str]


def needed(tool: str, command: str) -> str:
    """A tool's path. Where it is missing: an error in CI, else a skip."""
    found = shutil.which(tool)
    if found is None:
        problem = f"{tool} is not here (to get it: `{command}`)"
        if os.environ.get("CI") == "true":  # noqa: TID251
            pytest.fail(problem)
        pytest.skip(problem)
    return found


def ran(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Client:
    program = tmp_path_factory.mktemp("go") / "clients"
    tool = needed("go", "apt-get install golang")
    ran(tool, "build", "-mod=readonly", "-o", str(program), ".", cwd=CLIENTS / "go")
    return lambda *arguments: ran(str(program), *arguments)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("node") / "clients"
    npm, tool = (needed(name, "apt-get install nodejs npm") for name in ("npm", "node"))
    shutil.copytree(
        CLIENTS / "node", folder, ignore=lambda *_: ["node_modules"]
    )  # packages stay outside the tree
    ran(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
    return lambda *arguments: ran(tool, str(folder / "main.mjs"), *arguments)


@pytest.fixture
def world(kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str]) -> World:
    return make_world(kafka, valkey, registry, unique_name("clients"))


@pytest.fixture(params=["go", "node"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(language: str, request: pytest.FixtureRequest) -> Client:
    found: Client = request.getfixturevalue(language)
    return found


def on_the_log(world: World) -> int:
    """Recommendations on the log, of transactions that are open or aborted too."""
    source = KafkaSource(world.settings.bootstrap_servers, read_committed=False)
    topic = world.topics.recommendations
    source.assign({TopicPartition(topic, p): 0 for p in range(PARTITIONS)})
    found = 0
    while (batch := source.poll(100, 0.5)) is not None:
        found += len(batch)
    source.close()
    return found


def begin(world: World, producer: KafkaTransactionalProducer, name: str) -> None:
    """Three recommendations in a transaction that stays open."""
    registry = RemoteRegistry(world.settings.registry_url, world.settings.timeout_s)
    codec = Codec(registry, Recommendation, world.topics.recommendations)
    producer.begin()
    for n in range(3):
        said = Recommendation(
            request_id=f"{name}-{n}", user_id=f"user-{n}", event_time=n, status=Status.OK
        )
        producer.send(
            Outgoing(
                topic=world.topics.recommendations,
                key=said.user_id.encode(),
                value=codec.encode(said),
            )
        )


def test_events_of_a_foreign_client_are_folded_once_in_the_partition_of_their_key(
    world: World, client: Client, language: str
) -> None:
    settings = world.settings
    client(
        *("produce", settings.bootstrap_servers, settings.registry_url, world.topics.user_events),
        *(str(SCHEMA), str(EVENTS), str(USERS)),
    )
    folded = world.fold_undisturbed()
    counts = folded.counts()
    assert (counts.folded, counts.records) == (EVENTS, EVENTS)
    assert (counts.misplaced, counts.duplicates, counts.dead, counts.late) == (0, 0, 0, 0)
    rows = {(at, user) for at, kind, user in folded.contents() if kind == "u"}
    users = [f"{language}-user-{n}" for n in range(USERS)]
    assert rows == {(partition_of(user.encode(), PARTITIONS), user) for user in users}
    assert verify(rebuild_parts(folded.settings)).ok


def test_a_foreign_client_sees_committed_recommendations_and_no_others(
    world: World, client: Client, eventually: Callable[..., None]
) -> None:
    settings, topic = world.settings, world.topics.recommendations
    producer = KafkaTransactionalProducer(settings.bootstrap_servers, settings.topic_prefix)
    begin(world, producer, "first")
    producer.commit({}, None)
    begin(world, producer, "aborted")
    eventually(lambda: on_the_log(world) == 6)
    producer.abort()
    begin(world, producer, "last")
    producer.commit({}, None)
    producer.close()
    told = client("consume", settings.bootstrap_servers, settings.registry_url, topic, "6")
    assert sorted(json.loads(told)) == [
        f"{name}-{n}" for name in ("first", "last") for n in range(3)
    ]
