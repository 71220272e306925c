"""`millstream topics repartition` on a real broker, killed on the way, and the rows after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from deploy.cli import run
from features.job import open_store, rebuild_parts
from features.rebuild import verify
from ingest.kafka import KafkaAdmin, KafkaProducer, KafkaSource
from ingest.log import Outgoing
from ingest.origin import ORIGIN_HEADER
from ingest.placement import partition_of
from ingest.reading import until_end
from ingest.repartition import COPIED
from tests.feature_world import World, events, make_world

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.chaos]

EVENTS = 12_000
ERASED = ("user-3", "user-11")
AFTER = 6
# The command in so many transactions that a kill is sure to come between two of them.
MANY_STEPS = """
import sys
from deploy import cli
from ingest import topic_copy
topic_copy.TRANSACTION_RECORDS = 200
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.fixture
def world(kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str]) -> World:
    return make_world(kafka, valkey, registry, unique_name("repartition"))


def options(world: World) -> list[str]:
    settings = world.settings
    return [
        *("--bootstrap-servers", settings.bootstrap_servers),
        *("--registry-url", settings.registry_url),
        *("--redis-url", settings.redis_url),
        *("--prefix", settings.topic_prefix),
    ]


def erase(world: World, users: tuple[str, ...]) -> None:
    producer = KafkaProducer(world.settings.bootstrap_servers)
    for user in users:
        producer.send(Outgoing(topic=world.topics.user_events, key=user.encode(), value=None))
    producer.flush(30)
    producer.close()


def origins(world: World, topic: str) -> Counter[bytes]:
    """Where the records of a topic were first, those in a wrong partition being named too."""
    found: Counter[bytes] = Counter()
    source = KafkaSource(world.settings.bootstrap_servers)
    for batch in until_end(world.log(), source, [topic]):
        for at, key in enumerate(batch.keys):
            assert key is not None
            assert partition_of(key, AFTER) == batch.partition
            ((name, origin),) = batch.headers[at]
            assert name == ORIGIN_HEADER
            found[origin] += 1
    source.close()
    return found


def begun(new: World) -> bool:
    """Whether a first transaction of the copy is there."""
    progress = new.settings.topic_prefix + COPIED
    admin = KafkaAdmin(new.settings.bootstrap_servers)
    return progress in admin.topics([progress]) and new.log().bounds(progress)[0][1] > 0


def rows_of(new: World) -> dict[str, bytes | None]:
    """Every user's row, which lies in the partition of the user."""
    store = open_store(new.settings)
    found: dict[str, bytes | None] = {}
    for partition in range(AFTER):
        users = sorted(store.keys(partition).users)
        assert all(partition_of(user.encode(), AFTER) == partition for user in users)
        rows = store.snapshots({partition: users})[partition].rows
        found |= dict(zip(users, rows, strict=True))
    store.close()
    return found


def test_a_repartition_killed_on_the_way_loses_and_doubles_nothing_and_gives_the_same_rows(
    world: World, eventually: Callable[..., None]
) -> None:
    found = list(events(EVENTS))
    world.produce(found[: EVENTS // 2])
    erase(world, ERASED)
    world.produce(found[EVENTS // 2 :])
    before = world.fold_undisturbed().contents()
    command = [*options(world), "topics", "repartition", "--to", str(AFTER)]
    new = World(settings=replace(world.settings, topic_prefix=f"{world.settings.topic_prefix}g2-"))

    process = subprocess.Popen(
        [sys.executable, "-c", MANY_STEPS, *command],
        stdout=subprocess.DEVNULL,
        env=dict(os.environ),  # noqa: TID251
    )
    eventually(lambda: begun(new), 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    partial = sum(origins(world, new.topics.user_events).values())
    assert 0 < partial < EVENTS

    assert run(command) == 0
    once = origins(world, new.topics.user_events)
    ends = world.ends()
    assert set(once.values()) == {1}
    assert set(once) == {
        f"{world.topics.user_events}/{p}/{at}".encode()
        for p, end in ends.items()
        for at in range(end)
    }

    assert run([*command, "--switch"]) == 0
    assert run([*options(world), "features", "run"]) == 2  # told where to go
    after = rows_of(new)
    assert after == {user: row for (_, kind, user), row in before.items() if kind == "u"}
    assert verify(rebuild_parts(new.settings)).ok
