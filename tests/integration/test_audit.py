"""`millstream audit` on what a real `millstream serve` served from a real store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deploy import cli
from features import audit_record
from features.catalog import CATALOG
from features.job import job_config, open_publisher, open_split, open_store
from features.skew import SKEW_POLICIES
from features.store import Update
from ingest.clock import SystemClock
from ingest.placement import partition_of
from ingest.settings import Settings
from schemas.codec import Codec
from schemas.errors import Refused
from schemas.events import EventType, UserEvent
from tests.serving_process import ITEMS, PARTITIONS, Place, Server, settings_for

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]

USERS = 40
HOURS_MS = 5 * 3_600_000
KINDS = (EventType.IMPRESSION, EventType.CLICK, EventType.VIEW)


@pytest.fixture
def settings(kafka: Any, valkey: Any, registry: Any, unique_name: Any, tmp_path: Any) -> Settings:
    made = settings_for(kafka, valkey, registry, unique_name("audit"), tmp_path)
    url = valkey.url.rpartition("/")[0] + "/7"
    return replace(made, redis_url=url, profile="demo")


@pytest.fixture
def place(settings: Settings) -> Iterator[Place]:
    made = Place(settings)
    yield made
    made.close()


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Result]:
    """`millstream audit`."""

    def run() -> Result:
        monkeypatch.setenv("MILLSTREAM_MODELS_DIR", str(settings.models_dir))
        options = [
            f"--bootstrap-servers={settings.bootstrap_servers}",
            f"--registry-url={settings.registry_url}",
            f"--redis-url={settings.redis_url}",
            f"--prefix={settings.topic_prefix}",
            "--profile=demo",
        ]
        command = [*options, "audit", "--users-share", "1", "--json"]
        return CliRunner().invoke(cli.build(), command)

    return run


def act(place: Place, numbers: range, from_ms: int, until_ms: int) -> None:
    """Events of all users in turn, evenly between two times."""
    codec = Codec(place.registry, UserEvent, place.topics.user_events)
    step = (until_ms - from_ms) / len(numbers)
    for at, i in enumerate(numbers):
        event = UserEvent(
            event_id=f"e{i}",
            user_id=f"user-{i % USERS}",
            item_id=ITEMS[(7 * i + i // USERS) % len(ITEMS)],
            event_type=KINDS[(i + i // USERS) % len(KINDS)],
            event_time=from_ms + round(step * at),
        )
        place.send(place.topics.user_events, event.user_id, codec.encode(event))
    place.flush()


def fold(settings: Settings, place: Place) -> None:
    """Bring the rows, and what is published of the items, up to the log."""
    split = open_split(job_config(settings))
    with closing(split), closing(open_publisher(settings, lambda _: True)) as publisher:
        split.open()
        ends = place.log.bounds(place.topics.user_events)
        reached = dict.fromkeys(ends, 0)
        while any(reached[p] < end for p, (_, end) in ends.items()):
            batches = split.poll(1.0)
            split.handle(batches)
            reached |= {batch.partition: batch.next_offset for batch in batches}
        for partition in range(PARTITIONS):
            while publisher.publish(partition):
                pass


def misplace_a_row(settings: Settings) -> str:
    """One user's row becomes another's; who it is."""
    users = [f"user-{n}" for n in range(USERS)]
    home = partition_of(users[0].encode(), PARTITIONS)
    other = next(u for u in users[1:] if partition_of(u.encode(), PARTITIONS) == home)
    with closing(open_store(settings)) as store:
        lease = store.claim(home, None)
        (row,) = store.read(lease, [other], []).rows
        assert row is not None
        at = lease.position.next_offset
        store.write(lease, Update(rows={users[0]: row}, partials={}, next_offset=at))
    return users[0]


@pytest.mark.timeout(180)
def test_a_served_row_that_is_not_the_logs_turns_the_verdict(
    settings: Settings,
    place: Place,
    run: Callable[[], Result],
    eventually: Callable[..., None],
    tmp_path: Any,
) -> None:
    now_ms = SystemClock().now_ms()
    # Answers are compared item by item only once the catalogue has been as it is for a while.
    settled_ms = now_ms + SKEW_POLICIES["demo"].table_lag_ms
    act(place, range(1_200), now_ms - HOURS_MS, now_ms - 1_000)
    fold(settings, place)
    (tmp_path / "logs").mkdir()
    server = Server(settings, tmp_path / "logs")
    try:
        eventually(server.ready, 60)
        eventually(lambda: SystemClock().now_ms() > settled_ms)
        place.ask(range(200), users=USERS)
        eventually(lambda: place.read() >= 200, 60)
        act(place, range(1_200, 1_400), now_ms, SystemClock().now_ms())
        fold(settings, place)
        place.ask(range(200, 300), users=USERS)
        eventually(lambda: place.read() >= 300, 60)
        passed = run()
        victim = misplace_a_row(settings)
        place.ask(range(400, 400 + USERS), users=USERS)
        eventually(lambda: place.read() >= 300 + USERS, 60)
    finally:
        server.close()
    assert passed.exit_code == 0, passed.output
    clean = json.loads(passed.stdout)
    assert clean["verdict"]["outcome"] == "PASS"
    assert (clean["answers"], clean["entries"], clean["users"]) == (300, 1_500, USERS)
    found = {f["name"]: f for f in clean["features"]}
    assert found["history_items"]["equal"] == 300
    assert found["item_clicks_24h"]["equal"] == 1_500
    refused = run()
    assert isinstance(refused.exception, Refused)
    skewed = json.loads(refused.stdout)
    assert skewed["verdict"]["outcome"] == "SKEWED"
    assert skewed["wrong_answers"] == 1
    assert f"of {victim}," in skewed["named"][0]
    record = audit_record.load(settings.models_dir, CATALOG.fingerprint)
    assert record is not None
    assert record.outcome == "SKEWED"
    assert record.reasons[0].startswith("row: 1 of 340 answers")
