"""Request to recommendation through Kafka: `millstream serve` beside its SavedModel alone."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import numpy as np
import polars as pl
from numpy.typing import NDArray

from features import rows
from features.assemble import UserFeatures, assemble_users
from features.catalog import CATALOG
from features.declare import UserContext
from features.hashing import hash_ids
from features.job import open_store
from inference import operator
from inference.model import ModelRef
from ingest.placement import partitions_of
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.events import Item, Recommendation, RecommendationRequest
from tests.bench.asking import ask
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, TooSlow, chunks, quantiles_ms, seconds, shares
from tests.bench.shop import COUNTRIES, DEVICES, SURFACES
from tests.bench.to_rows import ensure_rows
from tests.bench.world import MAIN, PARTITIONS, Sent, World
from tests.published import publish
from tests.untrained import export_untrained

AIM = 3_000.0
BATCHES = (1, 4, 16, 32, 64, 128, 256)
LIMIT_S = 1.5  # for each batch size
K = 10
SEEN = 50
WARM = 1_000  # requests at a burst
WARM_PER_S, WARM_PARTS = 1_000, 2.5  # then, for so many times as long as latencies are measured
SETTLE_S = 3.0  # at a rate, before it is measured
ANSWERS_S = 60.0
STEP_S = 0.001
QUIET = ("TF_CPP_MIN_LOG_LEVEL", "2")
ACTIVE = 4_000  # users who ask: the most active ones, whose histories are full


def run(world: World) -> Iterator[Figure]:
    """Export an untrained model of full size, call it in a loop, then serve it through Kafka."""
    settings, alone = ready(world)
    limits = {"the SavedModel alone, its best batch": max(alone.values())}
    with world.command(settings, "serve", environment=dict([QUIET])):
        client = Client(world, settings)
        client.warm()
        taken_s = client.burst(world.sizes.serve_requests)
        burst = client.told()
        per_s = world.sizes.serve_requests / taken_s
        load = per_s / 2
        cores = world.cores()
        latencies = client.paced(load, world.sizes.paced_s)
        used = cores.used()
        told = client.told()
        client.close()
        asked = ask(world, settings)
    yield figure(
        "request to recommendation through Kafka",
        per_s,
        "recommendations/s",
        aim=AIM,
        limits=limits,
        requests=world.sizes.serve_requests,
        savedmodel_per_s={f"batch {size}": round(found) for size, found in alone.items()},
        model=f"two towers, history {SEEN}, width 64, {world.sizes.catalogue:,} items",
        answers=burst,
        note="from the first request sent to the last answer read, read_committed",
        **({} if per_s >= AIM else {"profile": _profile(burst, taken_s)}),
    )
    found = quantiles_ms(latencies)
    world.samples["request to recommendation"] = (np.asarray(latencies) * 1000, None)
    for q in ("p50", "p99"):
        yield figure(
            f"request to recommendation at half load, {q}",
            found[f"{q}_ms"],
            "ms",
            requests_per_s=round(load),
            requests=found["n"],
            quantiles=found,
            answers=told,
            busy_processors=used,
            p50_ms_by_second=[
                round(quantiles_ms(part)["p50_ms"]) for part in chunks(latencies, round(load))
            ],
        )
    yield asked


def ready(world: World) -> tuple[Settings, dict[int, float]]:
    """Settings of a shop whose released model can be served, and the model's own pace by batch."""
    settings = ensure_rows(world)
    if "alone" not in world.notes:
        users, seen = features(world, settings)
        staging = world.directory / "staging"
        export_version(world, staging, settings)
        world.notes["alone"] = _alone(staging, users, seen)
        _release(world, settings, staging)
    alone: dict[int, float] = world.notes["alone"]  # type: ignore[assignment]
    return settings, alone


def _profile(told: dict[str, Any], taken_s: float) -> list[str]:
    """The stages of an answer's batch, by serve's own account; waiting in the queue apart."""
    stages = {name: told[f"{name}_us"] / 1e6 for name in ("read", "assemble", "score")}
    said = ", ".join(f"{name} {part}" for name, part in shares(stages).items())
    batch_ms = 1000 * sum(stages.values())
    return [f"{batch_ms:.1f} ms a batch before it is produced: {said}; {taken_s:.1f} s in all"]


@dataclass(slots=True)
class _Answer:
    """What came back: when, and the bytes."""

    received_s: float
    value: bytes


@dataclass(frozen=True, slots=True, order=True)
class Took:
    """One request, its times on the clock of `CLOCK.monotonic_s`."""

    sent_s: float
    received_s: float
    version: int  # of the model that answered
    reason: str | None  # why no model did

    @property
    def latency_s(self) -> float:
        return self.received_s - self.sent_s


class Client:
    """Sends requests and reads answers, in one thread."""

    def __init__(self, world: World, settings: Settings) -> None:
        self._world = world
        topics = Topics(settings.topic_prefix)
        self._requests = topics.requests
        self._codec = Codec(world.registry, RecommendationRequest, topics.requests)
        self._reader = ColumnReader(world.registry, Recommendation)
        self._producer = world.producer(**{"linger.ms": 5})  # the library's default
        ends = world.ends(topics.recommendations)
        self._consumer = world.consumer(
            ends, topics.recommendations, **{"isolation.level": "read_committed"}
        )
        self._chance = np.random.default_rng(3)
        self._sent_s: dict[str, float] = {}
        self._statuses: dict[str, int] = {}
        self._stages: dict[str, float] = {}

    def warm(self, delivery: str = "") -> None:
        """
        Let all that is measured have its code ready. A broker compiles for half a minute, on the
        processors that are measured: once a way of delivery, small batches come at a steady rate.
        """
        self.burst(WARM)
        if not self._world.notes.get(f"warm {delivery}"):
            self._world.notes[f"warm {delivery}"] = True
            self.paced(WARM_PER_S, WARM_PARTS * self._world.sizes.paced_s)

    def settle(self, per_s: float) -> None:
        """
        Let a rate run before it is measured: for a second the broker compiles what this one makes
        hot, and answers wait for that, on whichever load comes first.
        """
        self.steady(per_s, SETTLE_S)

    def burst(self, count: int) -> float:
        """Seconds from the first request sent to the last answer read."""
        made = self._made(count)
        start_s = CLOCK.monotonic_s()
        answers: list[_Answer] = []
        for at, one in enumerate(made):
            self._send(one)
            if at % 256 == 0:
                self._take(answers, 0)
        self._producer.flush(ANSWERS_S)
        self._collect(answers, count)
        self._read(answers)
        return answers[-1].received_s - start_s

    def paced(self, per_s: float, for_s: float) -> list[float]:
        """Seconds from sending to reading the answer, at a steady rate whatever comes back."""
        return [one.latency_s for one in self.steady(per_s, for_s)]

    def steady(self, per_s: float, for_s: float) -> list[Took]:
        """Requests at a steady rate whatever comes back, in the order in which they were sent."""
        made = self._made(int(per_s * for_s))
        answers: list[_Answer] = []
        start_s, sent = CLOCK.monotonic_s(), 0
        while sent < len(made):
            due = min(len(made), int((CLOCK.monotonic_s() - start_s) * per_s) + 1)
            for one in made[sent:due]:
                self._send(one)
            sent = due
            self._producer.poll(0)
            self._take(answers, STEP_S)
        self._collect(answers, len(made))
        frame = self._read(answers)
        rows = frame.select("request_id", "model_version", "fallback_reason").iter_rows()
        return sorted(
            Took(self._sent_s[request_id], answer.received_s, version, reason)
            for (request_id, version, reason), answer in zip(rows, answers, strict=True)
        )

    def told(self) -> dict[str, Any]:
        """How the answers ended, and their stages' mean time by their own account."""
        return {**self._statuses, **self._stages}

    def close(self) -> None:
        self._producer.flush(ANSWERS_S)
        self._consumer.close()

    def _made(self, count: int) -> list[tuple[str, bytes, bytes]]:
        shop = self._world.shop
        people = self._chance.integers(0, min(ACTIVE, shop.users), count).tolist()
        requests = [
            RecommendationRequest(
                request_id=uuid.UUID(bytes=self._chance.bytes(16)).hex,
                user_id=shop.user(person),
                k=K,
                surface=SURFACES[person % 3],
                device=DEVICES[person % 3],
                country=COUNTRIES[person % 4],
            )
            for person in people
        ]
        values = self._codec.encode_many(requests)
        return [
            (one.request_id, one.user_id.encode(), value)
            for one, value in zip(requests, values, strict=True)
        ]

    def _send(self, one: tuple[str, bytes, bytes]) -> None:
        request_id, key, value = one
        self._sent_s[request_id] = CLOCK.monotonic_s()
        self._producer.produce(self._requests, key=key, value=value)

    def _take(self, answers: list[_Answer], timeout_s: float) -> None:
        found = self._consumer.consume(1, timeout_s) if timeout_s else []
        found += self._consumer.consume(1_000, 0)
        now_s = CLOCK.monotonic_s()
        answers += [_Answer(now_s, m.value()) for m in found if _is_record(m)]

    def _collect(self, answers: list[_Answer], count: int) -> None:
        end_s = CLOCK.monotonic_s() + ANSWERS_S
        while len(answers) < count:
            if CLOCK.monotonic_s() > end_s:
                raise TooSlow(f"{len(answers)} of {count} answers after {ANSWERS_S:g} s")
            self._take(answers, 0.05)

    def _read(self, answers: list[_Answer]) -> pl.DataFrame:
        """
        The answers in order; counts how the requests ended.

        Raises:
            RuntimeError: not every request has exactly one answer.
        """
        columns = ("request_id", "model_version", "fallback_reason", "latency_us")
        frame = self._reader.read([a.value for a in answers], columns).frame
        ids: list[str] = frame["request_id"].to_list()
        if len(set(ids)) != len(answers) or not set(ids) <= self._sent_s.keys():
            raise RuntimeError(f"{len(answers)} answers to {len(set(ids))} requests")
        reasons = frame["fallback_reason"].to_list()
        self._statuses = {
            f"{'ok' if reason is None else reason}": reasons.count(reason)
            for reason in sorted(set(reasons), key=str)
        }
        stages = frame["latency_us"].struct.unnest()
        self._stages = {f"{n}_us": round(float(stages[n].mean() or 0)) for n in stages.columns}
        return frame


def _is_record(message: ck.Message) -> bool:
    if message.error() is None:
        return True
    raise RuntimeError(f"answers cannot be read: {message.error()}")


def features(world: World, settings: Settings) -> tuple[UserFeatures, NDArray[np.uint64]]:
    """Features of the largest batch of active users, and what they have seen."""
    people = [world.shop.user(at) for at in range(BATCHES[-1])]
    places = partitions_of([p.encode() for p in people], PARTITIONS)
    store = open_store(settings)
    asked = {p: [u for u, at in zip(people, places, strict=True) if at == p] for p in set(places)}
    found = [row for part in store.snapshots(asked).values() for row in part.rows]
    store.close()
    decoded = rows.decode(found, CATALOG.fingerprint).rows
    n = len(found)
    same = {name: np.resize(hash_ids(given), n) for name, given in _CONTEXT.items()}
    now_ms = np.full(n, CLOCK.now_ms(), np.int64)
    context = UserContext(rows=decoded, now_ms=now_ms, **same)
    seen = np.zeros((n, SEEN), np.uint64)
    for at in range(n):
        mine = decoded.history_item[decoded.history_splits[at] : decoded.history_splits[at + 1]]
        seen[at, : len(mine)] = mine
    return assemble_users(CATALOG, context), seen


_CONTEXT = {"surface": SURFACES, "device": DEVICES, "country": COUNTRIES}


def export_version(world: World, staging: Path, settings: Settings, seed: int = 1) -> None:
    """A SavedModel of the size that production would have; each seed's is another training's."""
    os.environ.setdefault(*QUIET)  # noqa: TID251 - TensorFlow reads it when it is imported
    from retrain.recipe import NetworkPolicy

    items = hash_ids([world.shop.item(at) for at in range(world.sizes.catalogue)])
    asked = features(world, settings)
    export_untrained(staging, items, policy=NetworkPolicy(), seed=seed, asked=asked)


def _alone(staging: Path, users: UserFeatures, seen: NDArray[np.uint64]) -> dict[int, float]:
    """Recommendations/s of `retrieve` called in a loop, by batch size."""
    from inference.savedmodel import SavedModel

    ref = ModelRef(name="bench", version=1, fingerprint=CATALOG.fingerprint)
    model = SavedModel(staging, ref, CATALOG, batch_sizes=BATCHES)
    found = {}
    for size in BATCHES:
        part = UserFeatures(longs=users.longs[:size], floats=users.floats[:size])
        left_out = seen[:size]
        for _ in range(3):
            model.retrieve(part, left_out, K)
        calls, end_s = [], CLOCK.monotonic_s() + LIMIT_S
        while CLOCK.monotonic_s() < end_s:
            calls.append(seconds(lambda p=part, x=left_out: model.retrieve(p, x, K)))
        found[size] = size / float(np.median(calls))
    model.close()
    return found


def _release(world: World, settings: Settings, staging: Path) -> None:
    """Catalogue on its topic; the model in the registry, and released."""
    topics = Topics(MAIN)
    items = world.shop.catalogue(world.sizes.catalogue)
    codec = Codec(world.registry, Item, topics.item_updates)
    now_ms = CLOCK.now_ms()
    for part in chunks(list(zip(items, codec.encode_many(items), strict=True)), 1_000):
        records = [
            Sent(key=item.item_id.encode(), value=value, timestamp_ms=now_ms)
            for item, value in part
        ]
        world.produce(topics.item_updates, records)
    operator.promote(settings, publish(settings, staging), "to be measured")
