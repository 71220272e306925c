"""A new feature set is taken up beside the old one; its jobs are killed; every model has rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.commands import command, environment
from features.catalog import CATALOG
from features.declare import FeatureSet
from features.feature_sets import FeatureSets
from features.job import open_store, rebuild_parts
from features.rebuild import verify
from features.redis_store import RedisStore
from ingest.clock import SystemClock
from ingest.log import Outgoing
from ingest.reading import until_end
from ingest.settings import Settings
from schemas.codec import Codec
from schemas.events import UserEvent
from tests.feature_sets import OLD
from tests.feature_world import events
from tests.published import publish
from tests.serving_process import ITEMS, PARTITIONS, Place, Server, settings_for

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.tf, pytest.mark.chaos]

EVENTS = 4_000
WAIT_S = 120.0
NOW_MS = SystemClock().now_ms()


@pytest.fixture
def place(
    kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Place]:
    made = Place(settings_for(kafka, valkey, registry, unique_name("migrate"), tmp_path))
    yield made
    made.close()


def trained(place: Place, features: FeatureSet, folder: Path) -> int:
    """A version that was trained on that set."""
    from features.hashing import hash_ids
    from tests.tiny_model import export

    export(folder, features, hash_ids(ITEMS))
    return publish(place.settings, folder, features)


def told(settings: Settings, *words: str, code: int = 0) -> str:
    """What a command prints."""
    done = subprocess.run(
        command(*words),
        env={**os.environ, **environment(settings)},  # noqa: TID251 - the child needs our PATH
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@contextmanager
def running(settings: Settings, log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the background, its output in a file."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command(*words),
            env={**os.environ, **environment(settings)},  # noqa: TID251
            stdout=file,
            stderr=file,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def produce(place: Place, first: int, last: int) -> None:
    codec = Codec(place.registry, UserEvent, place.topics.user_events)
    for number, event in enumerate(events(last, users=97)):
        if number >= first:
            place.producer.send(
                Outgoing(
                    topic=place.topics.user_events,
                    key=event.user_id.encode(),
                    value=codec.encode(event),
                    timestamp_ms=NOW_MS + number,  # a live topic drops what is older
                )
            )
    place.flush()


def lags(settings: Settings) -> dict[str, Any]:
    """Records behind the log's end, by feature set."""
    found = json.loads(told(settings, "features", "migrate", "--status", "--json"))
    return {one["fingerprint"]: one["lag"] for one in found}


def tombstones(place: Place, fingerprint: str) -> tuple[int, int]:
    """Of this set's keys on item-features: records with a value, and keys whose last is null."""
    last: dict[bytes, bytes | None] = {}
    values = 0
    source = place.new_source()
    try:
        for batch in until_end(place.log, source, [place.topics.item_features]):
            for key, value in zip(batch.keys, batch.values, strict=True):
                if key is not None and key.endswith(b"\0" + fingerprint[:8].encode()):
                    values += value is not None
                    last[key] = value
    finally:
        source.close()
    return values, sum(value is None for value in last.values())


def test_a_new_set_is_folded_beside_the_old_one_until_no_version_needs_that(
    place: Place, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    settings = place.settings
    assert trained(place, OLD, tmp_path / "old") == 1
    assert [trained(place, CATALOG, tmp_path / f"new-{i}") for i in range(2)] == [2, 3]
    told(settings, "release", "promote", "1", "--reason", "first")
    sets = FeatureSets(settings.redis_url)
    sets.declare(OLD)
    sets.close()
    produce(place, 0, EVENTS)
    (tmp_path / "logs").mkdir()
    migrating = tmp_path / "migrate.log"
    old, new = OLD.fingerprint, CATALOG.fingerprint

    def caught_up() -> bool:
        return lags(settings) == {old: 0, new: 0}

    # The job of before, and a server of a program that knows both sets.
    with running(settings, tmp_path / "old.log", "features", "run", "--set", old[:6]) as before:
        eventually(lambda: lags(settings)[old] == 0, WAIT_S)
        server = Server(settings, tmp_path / "logs")
        try:
            eventually(server.ready, timeout_s=WAIT_S)
            with running(settings, migrating, "features", "migrate") as migration:
                eventually(lambda: "read by version 1" in migrating.read_text(), WAIT_S)
                produce(place, EVENTS, 2 * EVENTS)
                eventually(lambda: before.poll() is not None, WAIT_S)  # its partitions were taken
                migration.kill()
            with running(settings, migrating, "features", "migrate") as migration:
                eventually(caught_up, WAIT_S)
                for features in (OLD, CATALOG):
                    report = verify(rebuild_parts(settings, features))
                    assert report.ok, report
                    assert report.rows.equal > 90
                place.ask(range(200))
                eventually(lambda: place.read() >= 200, WAIT_S)
                told(settings, "release", "promote", "2")
                eventually(
                    lambda: (
                        place.ask(range(len(place.answers), len(place.answers) + 10))
                        or (place.read() and place.answers[-1].value.model_version == 2)
                    ),
                    WAIT_S,
                )
                assert "version 1 (previous)" in told(
                    settings, "features", "migrate", "--retire", old, code=3
                )
                told(settings, "release", "promote", "3")
                over = f"feature set {old[:8]}: caught up, read by nobody"
                eventually(lambda: over in migrating.read_text(), WAIT_S)
                eventually(lambda: "migrate.ended" in migrating.read_text(), WAIT_S)
                produce(place, 2 * EVENTS, 2 * EVENTS + 500)
                eventually(lambda: lags(settings)[new] == 0, WAIT_S)
                assert lags(settings)[old] == 500
                assert "this program folds" in told(
                    settings, "features", "migrate", "--retire", new, code=3
                )
                gone = json.loads(told(settings, "features", "migrate", "--retire", old, "--json"))
                migration.send_signal(signal.SIGTERM)
                assert migration.wait(60) == 0, migrating.read_text()
        finally:
            server.stop()
    place.read()
    by_version = {answer.value.model_version: answer.value.fingerprint for answer in place.answers}
    assert by_version.items() >= {1: old, 2: new}.items(), by_version
    assert all(answer.value.fallback_reason is None for answer in place.answers)
    assert all(answer.value.events_offset > 0 for answer in place.answers)
    assert_gone(place, gone)
    # Nobody needs another set any more: it comes up, and ends by itself.
    told(settings, "features", "migrate", "--until-one", "--", "--parallelism", "2")


def assert_gone(place: Place, gone: dict[str, Any]) -> None:
    """Nothing is left of the old set, and the new one is whole."""
    settings, fingerprint = place.settings, OLD.fingerprint
    assert lags(settings).keys() == {CATALOG.fingerprint}
    store = RedisStore(settings.redis_url, fingerprint)
    kept = open_store(settings)
    for partition in range(PARTITIONS):
        assert store.positions([partition]) == {partition: None}
        keys = store.keys(partition)
        assert not keys.users | keys.items
        assert kept.keys(partition).users
    store.close()
    kept.close()
    assert gone["values"] > 97
    values, null = tombstones(place, fingerprint)
    assert null == gone["tombstones"]
    assert values >= null > 0
    assert verify(rebuild_parts(settings)).ok
