"""An experiment from its start to its report, on a real server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.commands import command, environment
from features.catalog import CATALOG
from features.hashing import hash_ids
from inference.experiments import INTERLEAVED, assign
from ingest.clock import SystemClock
from schemas.codec import Codec
from schemas.events import EventType, Experiment, ExperimentArm, Item, UserEvent
from tests.published import publish
from tests.serving_process import ITEMS, Place, Server, settings_for

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.tf]

WAIT_S = 120.0
USERS = 300


@pytest.fixture
def place(
    kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Place]:
    made = Place(settings_for(kafka, valkey, registry, unique_name("experiment"), tmp_path))
    yield made
    made.close()


def told(place: Place, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        command(*words),
        env={**os.environ, **environment(place.settings)},  # noqa: TID251 - the child needs our PATH
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def published(place: Place, folder: Path, items: list[str]) -> int:
    from tests.tiny_model import export

    export(folder, CATALOG, hash_ids(items))
    return publish(place.settings, folder)


def choose(place: Place, clicks: list[tuple[str, str]]) -> None:
    codec = Codec(place.registry, UserEvent, place.topics.user_events)
    now_ms = SystemClock().now_ms()
    for n, (user, item) in enumerate(clicks):
        event = UserEvent(
            event_id=f"click-{n}",
            user_id=user,
            item_id=item,
            event_type=EventType.CLICK,
            event_time=now_ms + 1,
        )
        place.send(place.topics.user_events, user, codec.encode(event))
    place.flush()


def test_users_are_split_answers_say_so_and_the_report_finds_the_better_arm(
    place: Place, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    published(place, tmp_path / "1", ["banned", *ITEMS])
    published(place, tmp_path / "2", ITEMS[::-1])
    told(place, "release", "promote", "1")
    arms = ("--arm", "control=1", "--arm", "turned=2")
    assert "is not in the registry" in told(
        place, "experiment", "start", "e", "--arm", "control=1", "--arm", "x=9", code=3
    )
    begun = json.loads(told(place, "experiment", "start", "turn", *arms, "--json"))
    assert begun["generation"] == 2
    assert "turn" in told(place, "experiment", "list")
    (tmp_path / "logs").mkdir()
    banned = Item(item_id="banned", title="best of version 1", categories=("banned",))
    items = Codec(place.registry, Item, place.topics.item_updates)
    place.send(place.topics.item_updates, "banned", items.encode(banned))
    place.flush()
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nkind = "block"\nattribute = "category"\nvalues = ["banned"]\n', encoding="utf-8"
    )
    server = Server(place.settings, tmp_path / "logs", "0", "--rules", str(rules))
    try:
        eventually(server.ready, timeout_s=WAIT_S)
        # Both versions are there: the release has moved on from "stable alone".
        eventually(
            lambda: (
                place.ask(range(len(place.answers), len(place.answers) + 20), USERS)
                or (place.read() and bool(place.answers[-1].value.experiments))
            ),
            WAIT_S,
        )
        before = len(place.answers)
        place.ask(range(before, before + 2 * USERS), USERS)
        eventually(lambda: place.read() >= before + 2 * USERS, WAIT_S)
        answers = [one.value for one in place.answers[before:]]
        kept: dict[str, str] = {}
        for one in answers:
            ((name, arm),) = [(e.name, e.value) for e in one.experiments]
            assert (name, one.model_version) == ("turn", {"control": 1, "turned": 2}[arm])
            assert kept.setdefault(one.user_id, arm) == arm
        split = Experiment(
            name="turn",
            arms=(
                ExperimentArm(name="control", version=1),
                ExperimentArm(name="turned", version=2),
            ),
        )
        expected = assign(split, hash_ids(list(kept)))
        assert [split.arms[i].name for i in expected] == list(kept.values())
        assert not any(item.item_id == "banned" for one in answers for item in one.items)
        newest = {one.user_id: one for one in answers}
        choose(
            place,
            [
                (user, one.items[0].item_id)
                for n, (user, one) in enumerate(sorted(newest.items()))
                if kept[user] == "turned" or n % 4 == 0
            ],
        )
        found = json.loads(told(place, "experiment", "report", "turn", "--json"))
        control, turned = found["arms"]
        assert found["trusted"]
        assert control["users"] + turned["users"] == USERS
        assert turned["chosen"] == list(kept.values()).count("turned")
        assert turned["difference"] > 0
        assert turned["p"] < 1e-6
        assert "difference, 95 %" in told(place, "experiment", "report", "turn")

        told(place, "experiment", "stop", "turn")
        told(place, "experiment", "interleave", "draft", "--a", "1", "--b", "2")
        assert "no experiment 'turn' runs" in told(place, "experiment", "report", "turn", code=3)
        eventually(
            lambda: (
                place.ask(range(len(place.answers), len(place.answers) + 20), USERS)
                or (
                    place.read()
                    and [e.name for e in place.answers[-1].value.experiments] == ["draft"]
                )
            ),
            WAIT_S,
        )
        drafted = [
            one.value
            for one in place.answers
            if [e.name for e in one.value.experiments] == ["draft"]
        ]
        for one in drafted:
            teams = one.experiments[0].value.removeprefix(INTERLEAVED)
            assert len(teams) == len(one.items) == 5
        choose(
            place,
            [
                (one.user_id, item.item_id)
                for one in drafted
                for item, team in zip(
                    one.items, one.experiments[0].value.removeprefix(INTERLEAVED), strict=True
                )
                if team == "1"
            ],
        )
        found = json.loads(told(place, "experiment", "report", "draft", "--json"))
        users = len({one.user_id for one in drafted})
        assert (found["preference"]["first"], found["preference"]["second"]) == (0, users)
        assert "share of votes for b: 100.0%" in told(place, "experiment", "report", "draft")
        told(place, "release", "promote", "2")
        assert told(place, "experiment", "list") == ""
    finally:
        server.stop()
