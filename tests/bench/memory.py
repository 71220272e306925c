"""Memory: the resident set of `features run` while it folds many more events than fit in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import psutil

from features.hot_rows import MAX_BYTES
from features.job import open_store
from features.split import MAX_RECORDS
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.events import UserEvent
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, wait_until
from tests.bench.world import MEMORY_DB, PARTITIONS, Sent, World

PREFIX = "memory-"
AIM_PERCENT = 2.0  # growth after the warm-up, at most
TIMES = 17  # as many events as the other parts together, about: 20 million at full size
WARM_SHARE = 0.1  # of all events
LOOKS = 20  # at the resident set, at least
CHUNK = 100_000  # events between two looks, at most
AHEAD = 4  # chunks on the log that are not folded yet, at most
STEP_MS = 40 * 3_600_000  # event time of a chunk: a month has passed when the warm-up ends
USERS = 2_000  # their rows are full by then, the tiles of all days too: what grows then is no row
WAIT_S = 300.0
MIB = 2**20


def run(world: World) -> Iterator[Figure]:
    """Produce in chunks, never far ahead of the job, and look at its resident set after each."""
    world.create_topics(PREFIX)
    settings = world.named(PREFIX, MEMORY_DB)
    total = TIMES * world.sizes.events
    chunk = min(CHUNK, total // LOOKS)
    chunks = total // chunk
    resident: list[tuple[int, int]] = []  # events folded, bytes
    with world.command(settings, "features", "run"):
        (job,) = (p for p in world.supervisor.children() if p.name.startswith("features"))
        process, start_s = psutil.Process(job.pid), CLOCK.monotonic_s()
        start_ms = CLOCK.now_ms() - chunks * STEP_MS
        for at in range(chunks):
            _produce(world, at, chunk, start_ms + at * STEP_MS)
            folded = _folded_up_to(settings, (at + 1 - AHEAD) * chunk)
            resident.append((folded, process.memory_info().rss))
        folded = _folded_up_to(settings, chunks * chunk)
        resident.append((folded, process.memory_info().rss))
        taken_s = CLOCK.monotonic_s() - start_s
    warm = [size for events, size in resident if events >= WARM_SHARE * folded]
    # A look may fall into a large batch: medians of the first and the last sixth.
    sixth = max(1, len(warm) // 6)
    before, after = median(warm[:sixth]), median(warm[-sixth:])
    world.curves["resident"] = {events: size / MIB for events, size in resident}
    yield figure(
        "resident set of `features run`, growth after its first tenth",
        100 * (after / before - 1),
        "%",
        aim=AIM_PERCENT,
        smaller_is_better=True,
        events=folded,
        users=USERS,
        events_per_s=round(folded / taken_s),
        after_warm_up_mib=round(before / MIB),
        at_the_end_mib=round(after / MIB),
        largest_mib=round(max(size for _, size in resident) / MIB),
        bounds={
            "hot rows and partials, MiB": MAX_BYTES // MIB,
            "records of a batch": MAX_RECORDS,
            "librdkafka's queue, KiB a partition": 65_536,
        },
    )


def _produce(world: World, at: int, count: int, start_ms: int) -> None:
    """The chunk's own events, later than those of the chunk before."""
    topic = Topics(PREFIX).user_events
    shop = replace(world.shop, users=USERS, seed=world.shop.seed + at, span_ms=STEP_MS)
    events = list(shop.events(count, start_ms + STEP_MS))
    values = Codec(world.registry, UserEvent, topic).encode_many(events)
    world.produce(
        topic,
        [
            Sent(key=e.user_id.encode(), value=v, timestamp_ms=e.event_time)
            for e, v in zip(events, values, strict=True)
        ],
    )


def _folded_up_to(settings: Settings, least: int) -> int:
    """Events that the rows hold, as soon as there are so many."""
    store = open_store(settings)
    held = 0

    def reached() -> bool:
        nonlocal held
        found = store.positions(range(PARTITIONS)).values()
        held = sum(p.next_offset for p in found if p is not None)
        return held >= least

    wait_until(reached, timeout_s=WAIT_S, what=f"the fold of {least} events", every_s=0.02)
    store.close()
    return held
