"""Every kind of bad input through the real processes: the letter or the answer, and neighbours."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run
from ingest.clock import SystemClock
from ingest.kafka import KafkaProducer
from ingest.log import Delivered, Outgoing
from ingest.placement import partition_of
from ingest.settings import Settings
from schemas.codec import Codec
from schemas.errors import Reason
from schemas.events import EventType, RecommendationRequest, Status, UserEvent
from schemas.registry import RemoteRegistry
from tests.feature_world import PARTITIONS, World, jobs, make_world
from tests.serving_process import Place, Server, settings_for

pytestmark = [pytest.mark.kafka, pytest.mark.valkey]

NOW = 1_750_000_000_000
ANN, BOB = "ann", "bob"
UNKNOWN_ID = b"\0\x7f\xff\xff\xff"


def event(number: int, user: str = ANN, **fields: Any) -> UserEvent:
    known = {
        "event_id": f"e{number}",
        "user_id": user,
        "item_id": "film",
        "event_type": EventType.CLICK,
        "event_time": NOW + number,
    }
    return UserEvent(**(known | fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A bad record and why it is one."""

    reason: Reason
    value: bytes | None
    key: bytes | None = ANN.encode()


def bad_events(encode: Callable[[UserEvent], bytes]) -> list[Bad]:
    good = encode(event(1))
    return [
        Bad(reason=Reason.NOT_FRAMED, value=b'{"user_id": "ann"}'),
        Bad(reason=Reason.NOT_FRAMED, value=b""),
        Bad(reason=Reason.UNKNOWN_SCHEMA, value=UNKNOWN_ID + good[5:]),
        Bad(reason=Reason.UNDECODABLE, value=good[:-3]),
        Bad(reason=Reason.UNDECODABLE, value=good + b"left over"),
        Bad(reason=Reason.NULL_KEY, value=good, key=None),
        Bad(reason=Reason.KEY_MISMATCH, value=good, key=BOB.encode()),
        Bad(reason=Reason.MISSING_FIELD, value=encode(event(2, event_id=""))),
        Bad(reason=Reason.MISSING_FIELD, value=encode(event(2, item_id=""))),
        Bad(reason=Reason.OUT_OF_RANGE, value=encode(event(2, event_time=-1))),
        Bad(reason=Reason.OUT_OF_RANGE, value=encode(event(2, value=math.inf))),
        Bad(reason=Reason.IN_FUTURE, value=encode(event(2, event_time=NOW + 3_600_000))),
        Bad(reason=Reason.TOO_LARGE, value=encode(event(2, item_id="x" * 600))),
    ]


class Sender:
    """Puts records of any kind on a topic, and says where each landed."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._producer = KafkaProducer(settings.bootstrap_servers)
        self._topic = topic
        self._landed: dict[int, Delivered] = {}

    def send(
        self, value: bytes | None, key: bytes | None, at_ms: int, partition: int | None = None
    ) -> int:
        """A number to ask `origin` with."""
        number = len(self._landed)

        def landed(where: Delivered) -> None:
            self._landed[number] = where

        record = Outgoing(
            topic=self._topic,
            key=key,
            value=value,
            timestamp_ms=at_ms,
            partition=0 if key is None else partition,
        )
        self._producer.send(record, landed)
        self._producer.flush(30)
        return number

    def origin(self, number: int) -> str:
        topic, partition, offset = self._landed[number]
        return f"{topic}/{partition}/{offset}"

    def close(self) -> None:
        self._producer.close()


@pytest.fixture
def letters(capsys: pytest.CaptureFixture[str]) -> Callable[[Settings], dict[str, Any]]:
    """`letters(settings)`: what `millstream dead-letters list --json` prints, by origin."""

    def read(settings: Settings) -> dict[str, Any]:
        capsys.readouterr()
        code = run(
            [
                *("--bootstrap-servers", settings.bootstrap_servers),
                *("--registry-url", settings.registry_url),
                *("--prefix", settings.topic_prefix),
                *("dead-letters", "list", "--json"),
            ]
        )
        assert code == 0
        found = json.loads(capsys.readouterr().out)
        return {f"{one['topic']}/{one['partition']}/{one['offset']}": one for one in found}

    return read


@pytest.fixture
def world(kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str]) -> World:
    return make_world(kafka, valkey, registry, unique_name("bad"))


def assert_letters(found: dict[str, Any], sender: Sender, sent: dict[int, Bad]) -> None:
    expected = {
        sender.origin(number): (
            bad.reason,
            None if bad.key is None else b64(bad.key),
            None if bad.value is None else b64(bad.value),
        )
        for number, bad in sent.items()
    }
    assert {
        origin: (one["reason"], one["key"], one["value"]) for origin, one in found.items()
    } == expected
    assert all(one["detail"] for one in found.values())


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_every_bad_event_is_a_dead_letter_and_its_neighbours_are_folded(
    world: World,
    tmp_path: Path,
    letters: Callable[[Settings], dict[str, Any]],
    eventually: Callable[..., None],
) -> None:
    registry = RemoteRegistry(world.settings.registry_url, 10)
    encode = Codec(registry, UserEvent, world.topics.user_events).encode
    sender = Sender(world.settings, world.topics.user_events)
    sent: dict[int, Bad] = {}
    good = 0
    for bad in bad_events(encode):
        good += 1
        sender.send(encode(event(good + 100)), ANN.encode(), NOW)
        sent[sender.send(bad.value, bad.key, NOW)] = bad
    sender.send(encode(event(101)), ANN.encode(), NOW)  # a duplicate
    elsewhere = (partition_of(ANN.encode(), PARTITIONS) + 1) % PARTITIONS
    sender.send(encode(event(200)), ANN.encode(), NOW, partition=elsewhere)
    sender.send(encode(event(300, BOB)), BOB.encode(), NOW)
    sender.send(None, BOB.encode(), NOW)  # erases him
    sender.close()
    with jobs(world, tmp_path) as start:
        job = start()
        eventually(lambda: world.counts().folded == good + 2, 90)
        eventually(world.caught_up)
    counts = world.counts()
    assert (counts.dead, counts.duplicates, counts.misplaced) == (len(sent), 1, 1)
    assert (counts.erased, counts.late) == (1, 0)
    assert_letters(letters(world.settings), sender, sent)
    assert "partitioner=murmur2_random" in job.output()


def bad_requests(encode: Callable[[RecommendationRequest], bytes]) -> list[Bad]:
    good = encode(RecommendationRequest(request_id="r", user_id=ANN))
    return [
        Bad(reason=Reason.NOT_FRAMED, value=b"give me films"),
        Bad(reason=Reason.UNKNOWN_SCHEMA, value=UNKNOWN_ID + good[5:]),
        Bad(reason=Reason.UNDECODABLE, value=good + b"left over"),
        Bad(reason=Reason.NULL_KEY, value=good, key=None),
        Bad(reason=Reason.KEY_MISMATCH, value=good, key=BOB.encode()),
        Bad(reason=Reason.MISSING_FIELD, value=None),
    ]


# By request id: what is asked, and what the answer says.
WRONG: dict[str, tuple[dict[str, Any], Status, str]] = {
    "no-k": ({"k": 0}, Status.INVALID, "k must be between 1 and 500, got 0"),
    "too-many": ({"k": 501}, Status.INVALID, "k must be between 1 and 500, got 501"),
    "candidates": (
        {"candidates": tuple(f"i{n}" for n in range(10_000))},
        Status.INVALID,
        "at most 5000 candidates can be ranked, got 10000",
    ),
    "late": ({"deadline_ms": 1_000}, Status.EXPIRED, "after its deadline"),
}


@pytest.fixture
def place(
    kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Place]:
    made = Place(settings_for(kafka, valkey, registry, unique_name("bad"), tmp_path))
    yield made
    made.close()


def test_every_bad_request_is_a_dead_letter_or_told_and_its_neighbours_are_answered(
    place: Place,
    tmp_path: Path,
    letters: Callable[[Settings], dict[str, Any]],
    eventually: Callable[..., None],
) -> None:
    encode = Codec(place.registry, RecommendationRequest, place.topics.requests).encode
    sender = Sender(place.settings, place.topics.requests)
    sent: dict[int, Bad] = {}
    for bad in bad_requests(encode):
        sent[sender.send(bad.value, bad.key, SystemClock().now_ms())] = bad
    for name, (given, _, _) in WRONG.items():
        asked = RecommendationRequest(**({"request_id": name, "user_id": ANN} | given))
        at_ms = SystemClock().now_ms() - 60_000
        sender.send(encode(asked), ANN.encode(), at_ms)
    place.ask(range(20))
    items = Sender(place.settings, place.topics.item_updates)
    sent_item = items.send(b"no film", b"film", SystemClock().now_ms())
    (tmp_path / "logs").mkdir()
    server = Server(place.settings, tmp_path / "logs")
    try:
        eventually(server.ready, timeout_s=90)
        eventually(lambda: place.read() >= 20 + len(WRONG), timeout_s=60)
        assert server.stop() == 0
    finally:
        server.close()
        sender.close()
        items.close()
    place.read()
    answers = {a.value.request_id: a.value for a in place.answers}
    assert len(answers) == len(place.answers) == 20 + len(WRONG)
    for name, (_, status, message) in WRONG.items():
        assert answers[name].status is status
        assert message in (answers[name].message or "")
        assert answers[name].items == ()
    assert all(len(answers[f"r{n}"].items) == 5 for n in range(20))
    found = letters(place.settings)
    item = found.pop(items.origin(sent_item))
    assert (item["reason"], item["value"]) == (Reason.NOT_FRAMED, b64(b"no film"))
    assert_letters(found, sender, sent)
