"""Kafka to archive: made-up answers of ten items each, joined with what their users then did."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np

from features.catalog import CATALOG
from features.declare import Level
from ingest.placement import partitions_of
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.events import Recommendation, ScoredItem, Status
from tests.bench.figures import Figure
from tests.bench.measure import CLOCK
from tests.bench.shop import SURFACES
from tests.bench.to_archive import labels
from tests.bench.world import MAIN, PARTITIONS, Sent, World

AIM = 5_000.0
K = 10
PREPARED = 256  # distinct features as served; their repetition compresses as real ones do
LARGEST = 40  # of an integer feature: counts and types are small


def run(world: World) -> Iterator[Figure]:
    """Put as many lists on their topic as the pipeline would ask for, and join them."""
    settings = world.named(MAIN)
    world.produce(Topics(MAIN).recommendations, _lists(world, world.sizes.serve_requests))
    yield from labels(world, settings, AIM)


def _lists(world: World, count: int) -> list[Sent]:
    """Answers served with rows that held everything that is on the log now."""
    shop, chance = world.shop, np.random.default_rng(5)
    ends = world.ends(world.user_events)
    users = [shop.user(at) for at in chance.integers(0, shop.users, count).tolist()]
    places = partitions_of([user.encode() for user in users], PARTITIONS).tolist()
    items = chance.integers(0, shop.items, (count, K)).tolist()
    longs, floats = _prepared(chance, Level.USER)
    item_longs, item_floats = _prepared(chance, Level.ITEM)
    now_ms = CLOCK.now_ms()
    made = [
        Recommendation(
            request_id=uuid.UUID(bytes=chance.bytes(16)).hex,
            user_id=user,
            event_time=now_ms,
            status=Status.OK,
            items=tuple(
                ScoredItem(
                    item_id=shop.item(item),
                    score=1.0 / (1 + place),
                    longs=item_longs[item % PREPARED],
                    floats=item_floats[item % PREPARED],
                )
                for place, item in enumerate(items[at])
            ),
            model_name="bench",
            model_version=1,
            fingerprint=CATALOG.fingerprint,
            events_partition=places[at],
            events_offset=ends[places[at]],
            user_longs=longs[at % PREPARED],
            user_floats=floats[at % PREPARED],
            surface=SURFACES[at % 3],
        )
        for at, user in enumerate(users)
    ]
    codec = Codec(world.registry, Recommendation, Topics(MAIN).recommendations)
    return [
        Sent(key=one.user_id.encode(), value=value, timestamp_ms=now_ms)
        for one, value in zip(made, codec.encode_many(made), strict=True)
    ]


def _prepared(
    chance: np.random.Generator, level: Level
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
    """Features of a level as they would be served, integers and numbers."""
    wide = {dtype: CATALOG.width(level, dtype) for dtype in ("int64", "float32")}
    longs = chance.integers(0, LARGEST, (PREPARED, wide["int64"]))
    floats = chance.random((PREPARED, wide["float32"])).astype(np.float32)
    return [tuple(row) for row in longs.tolist()], [tuple(row) for row in floats.tolist()]
