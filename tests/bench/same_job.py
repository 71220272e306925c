"""The same job by peers: each user's last 50 items and 24 h counts in Redis, from one topic."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import redis

from features import rows
from features.catalog import CATALOG
from features.hashing import hash_ids
from features.job import open_store
from features.tiles import window_counts
from ingest.placement import partitions_of
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.events import EventType, UserEvent
from tests.bench.environment import SAID, installed
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, seconds
from tests.bench.peers import row
from tests.bench.peers.task import KEY, Task
from tests.bench.to_rows import folded
from tests.bench.world import PARTITIONS, PEER_DB, ROOT, SAME_DB, Sent, World

PEERS = {"Quix Streams": "quix", "Bytewax": "bytewax_job", "Faust": "faust_job"}
STATES = {"own": "its keyed state", "batch": "rows folded in batches"}
LOCK = Path(__file__).with_name("peers-requirements.lock")
PREFIX = "same-"
SHARE = 6  # of all events, one in so many: a peer takes seconds for what we do in one
SAMPLE = 500
TIMES = 10.0  # what is aimed at, or half of consuming alone
PASSES = 3
RUN_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a peer's run told; or why it told nothing."""

    events: int = 0
    taken_s: float = 0.0
    cpu_s: float = 0.0  # of its process, all threads
    error: str = ""

    @property
    def per_s(self) -> float | None:
        return None if self.error else self.events / self.taken_s


def run(world: World) -> Iterator[Figure]:
    """Ours with its whole catalogue, each peer with the smaller job; the answers compared."""
    count = _produce(world)
    topic = Topics(PREFIX).user_events
    settings = world.named(PREFIX, SAME_DB)
    consumed = max(count / seconds(lambda: world.consume_all(topic)) for _ in range(PASSES))
    # A short topic is hardly begun when it ends: the long one's rate where it was measured.
    consumed = max(consumed, world.notes.get("consume_per_s", 0.0))
    runs = sorted((folded(settings, count) for _ in range(PASSES)), key=lambda one: one.per_s)
    ours = runs[PASSES // 2]
    expected = _ours(world, settings)
    rates: dict[str, float] = {}
    interpreter = installed(LOCK, world.directory.parent / "peers-venv")
    for peer, module in PEERS.items():
        for state, described in STATES.items():
            task = _task(world, count, module, state)
            done = ran(interpreter, module, task)
            name = f"same job, {peer}, {described}"
            wrong = "" if done.error else _unlike(task, expected)
            if done.per_s is None or wrong:
                yield Figure(
                    name=name,
                    value=None,
                    unit="events/s",
                    detail={"error": done.error or wrong, "answers": "not compared"},
                )
                continue
            rates[f"{peer}, {described}"] = done.per_s
            yield figure(
                name,
                done.per_s,
                "events/s",
                measured="a peer",
                events=done.events,
                cpu_us_per_event=round(1e6 * done.cpu_s / done.events, 1),
                answers=f"equal to ours for {len(expected)} users",
            )
    best = max(rates.items(), key=lambda pair: pair[1], default=None)
    half = consumed / 2
    yield figure(
        "Kafka to Redis rows, whole catalogue beside the peers' smaller job",
        ours.per_s,
        "events/s",
        aim=half if best is None else min(half, TIMES * best[1]),
        peer=best,
        limits={"confluent_kafka consuming alone": consumed},
        events=count,
        cpu_us_per_event=round(1e6 * ours.cpu_s / count, 1),
        aimed_at=f"{TIMES:g} x the best peer, or half of consuming alone, whichever is lower",
        ratios={name: round(ours.per_s / rate, 1) for name, rate in rates.items()},
        note="one process each; a peer's time runs from its first record to its last written row, "
        "ours from before the first poll",
    )


def _produce(world: World) -> int:
    """Events without repeats, which the peers would count twice; how many."""
    world.create_topics(PREFIX)
    topic = Topics(PREFIX).user_events
    count = world.sizes.events // SHARE
    unique = {e.event_id: e for e in world.shop.events(count, CLOCK.now_ms())}
    codec = Codec(world.registry, UserEvent, topic)
    values = codec.encode_many(list(unique.values()))
    world.produce(
        topic,
        [
            Sent(key=e.user_id.encode(), value=v, timestamp_ms=e.event_time)
            for e, v in zip(unique.values(), values, strict=True)
        ],
    )
    return len(unique)


def _task(world: World, count: int, module: str, state: str) -> Task:
    return Task(
        bootstrap_servers=world.settings.bootstrap_servers,
        topic=Topics(PREFIX).user_events,
        redis_url=world.named(PREFIX, PEER_DB).redis_url,
        events=count,
        directory=str(world.directory / "peers" / f"{module}-{state}"),
        state=state,
        partitions=PARTITIONS,
    )


def ran(interpreter: Path | str, module: str, task: Task) -> Outcome:
    """One peer's run into an emptied database."""
    if isinstance(interpreter, str):
        return Outcome(error=interpreter)
    with redis.Redis.from_url(task.redis_url) as client:
        client.flushdb()
    Path(task.directory).mkdir(parents=True)
    log = Path(task.directory).with_suffix(".log")
    command = [str(interpreter), "-m", f"tests.bench.peers.{module}", json.dumps(asdict(task))]
    with log.open("wb") as errors:
        try:
            done = subprocess.run(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, timeout=RUN_S, check=False
            )
        except subprocess.TimeoutExpired:
            return Outcome(error=f"not at its end after {RUN_S:g} s")
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith('{"events"')]
    if not lines:
        return Outcome(error=f"exit code {done.returncode}: {log.read_text()[-SAID:]}")
    told = json.loads(lines[-1])
    if told["events"] != task.events:
        return Outcome(error=f"took {told['events']} of {task.events} events")
    return Outcome(**told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What both hold of a user."""

    items: tuple[int, ...]  # hashes of the last items, oldest first
    counts: Mapping[int, int]  # events of each type in the last 24 hours


def _ours(world: World, settings: Settings) -> dict[str, Answer]:
    """A sample of users, the most active among them."""
    people = [
        world.shop.user(at) for at in np.geomspace(1, world.shop.users, SAMPLE).astype(int) - 1
    ]
    people = list(dict.fromkeys(people))
    places = partitions_of([p.encode() for p in people], PARTITIONS).tolist()
    asked: dict[int, list[str]] = {}
    for user, place in zip(people, places, strict=True):
        asked.setdefault(place, []).append(user)
    store = open_store(settings)
    found = store.snapshots(asked)
    store.close()
    answers: dict[str, Answer] = {}
    for place, users in asked.items():
        decoded = rows.decode(found[place].rows, CATALOG.fingerprint).rows
        now_ms = decoded.last_seen_ms
        counts = {
            k: window_counts(decoded, [k], now_ms, hours=row.HOURS).tolist() for k in EventType
        }
        for at, user in enumerate(users):
            mine = slice(decoded.history_splits[at], decoded.history_splits[at + 1])
            answers[user] = Answer(
                items=tuple(decoded.history_item[mine].tolist()),
                counts={int(k): n[at] for k, n in counts.items() if n[at]},
            )
    return answers


def _unlike(task: Task, expected: Mapping[str, Answer]) -> str:
    with redis.Redis.from_url(task.redis_url) as client:
        return unlike(expected, client.mget([KEY + user for user in expected]))


def unlike(expected: Mapping[str, Answer], stored: Sequence[bytes | None]) -> str:
    """The first user of whom a peer's rows say something else; empty: there is none."""
    for (user, ours), value in zip(expected.items(), stored, strict=True):
        held = row.empty() if value is None else json.loads(value)
        counts: Counter[int] = Counter()
        for hour in held["hours"].values():
            counts.update({int(EventType[kind]): n for kind, n in hour.items()})
        theirs = Answer(items=tuple(hash_ids(held["items"]).tolist()), counts=counts)
        if theirs != ours:
            return f"another answer for {user}: {theirs}, ours {ours}"
    return ""
