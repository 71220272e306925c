"""Kafka to rows: the feature job over the whole topic, beside reading alone and storing alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import redis

from features.catalog import CATALOG
from features.counts import Counts
from features.job import job_config, open_split, open_store
from features.split import Split
from ingest.placement import partitions_of
from ingest.settings import Settings
from tests.bench.figures import Figure, figure
from tests.bench.measure import (
    CLOCK,
    TooSlow,
    own_cpu_s,
    profiled,
    rate,
    seconds,
    shares,
    wait_until,
)
from tests.bench.world import (
    BEAM_DB,
    LIMIT_DB,
    MAIN,
    PARTITIONS,
    ROWS_DB,
    Sent,
    World,
    by_partition,
)

AIM = 150_000.0
PASSES = 2
POLL_S = 1.0
QUIET_S = 20.0
PROFILED_EVENTS = 250_000
SAMPLED_BATCHES = 24
BEAM_S = 120.0
TTL_MS = 8_380_800_000


@dataclass(slots=True)
class Run:
    """One fold of the topic: mutable, owned by `folded`."""

    events: int = 0
    taken_s: float = 0.0
    cpu_s: float = 0.0  # of this process, all threads
    polled_s: float = 0.0
    handled_s: float = 0.0
    counts: Counts = field(default_factory=Counts)
    batches: list[tuple[int, int]] = field(default_factory=list)  # partition, records

    @property
    def per_s(self) -> float:
        return self.events / self.taken_s


def run(world: World, aim: float = AIM) -> Iterator[Figure]:
    """The worker in this process, then the job as a process of its own on Beam's runner."""
    topic = world.user_events
    total = sum(world.ends(topic).values())
    settings = world.named(MAIN, ROWS_DB)
    consumed, runs = [], []
    for _ in range(PASSES):
        consumed.append(total / seconds(lambda: world.consume_all(topic)))
        runs.append(folded(settings, total))
    best = sorted(runs, key=lambda one: one.per_s)[len(runs) // 2]
    _check(best, total)
    stored, described = store_limits(settings, best, by_partition(world.records, _places))
    limits = {"confluent_kafka consuming alone": float(np.median(consumed)), **stored}
    one_after_the_other = 1 / sum(1 / bound for bound in limits.values())
    world.notes["rows"] = True
    world.notes["consume_per_s"] = limits["confluent_kafka consuming alone"]
    yield figure(
        "Kafka to Redis rows, the worker",
        best.per_s,
        "events/s",
        aim=aim,
        limits=limits,
        passes=[round(one.per_s) for one in runs],
        events=total,
        bytes_per_event=round(world.notes["bytes_per_event"], 1),
        records_per_batch=round(total / len(best.batches)),
        store=described,
        all_limits_one_after_the_other=round(one_after_the_other),
        cpu_us_per_event=round(1e6 * best.cpu_s / total, 2),  # hardly moved by what else runs
        stages=shares({"poll": best.polled_s, "fold and write": best.handled_s}),
        counts=dict(best.counts.named()),
        **({} if best.per_s >= aim else {"profile": _profile(world, total)}),
    )
    yield beam(world, total, limits, best.per_s, aim)


def folded(settings: Settings, most: int) -> Run:
    """Fold from the start of the log into an emptied database, `most` records or a little more."""
    emptied(settings)
    split = open_split(job_config(settings))
    try:
        split.open()
        return _looped(split, most)
    finally:
        split.close()


def emptied(settings: Settings) -> None:
    """Nothing is left in the settings' database."""
    with redis.Redis.from_url(settings.redis_url) as client:
        client.flushdb()


def ensure_rows(world: World) -> Settings:
    """The settings of a database that holds the rows of the whole topic."""
    settings = world.named(MAIN, ROWS_DB)
    total = sum(world.ends(world.user_events).values())
    if "rows" not in world.notes:
        folded(settings, total)
        world.notes["rows"] = True
    return settings


def _looped(split: Split, most: int) -> Run:
    done = Run()
    start_s, cpu_s = CLOCK.monotonic_s(), own_cpu_s()
    heard_s = start_s
    while done.events < most:
        before_s = CLOCK.monotonic_s()
        batches = split.poll(POLL_S)
        if not batches:
            if CLOCK.monotonic_s() - heard_s > QUIET_S:
                raise TooSlow(f"the log gave nothing after {done.events} of {most} records")
            continue
        heard_s = CLOCK.monotonic_s()
        polled_s = CLOCK.monotonic_s()
        done.counts += split.handle(batches)
        done.polled_s += polled_s - before_s
        done.handled_s += CLOCK.monotonic_s() - polled_s
        sizes = [(batch.partition, len(batch)) for batch in batches if len(batch)]
        done.events += sum(size for _, size in sizes)
        done.batches += sizes
    done.taken_s, done.cpu_s = CLOCK.monotonic_s() - start_s, own_cpu_s() - cpu_s
    return done


def beam(world: World, total: int, limits: dict[str, float], alone: float, aim: float) -> Figure:
    """The job as `millstream features run` runs it: Beam's FnApiRunner, with item-features."""
    settings = world.named(MAIN, BEAM_DB)
    store = open_store(settings)

    def passed() -> int:
        found = store.positions(range(PARTITIONS)).values()
        return sum(p.next_offset for p in found if p is not None)

    with world.command(settings, "features", "run"):
        cores = world.cores()
        first, start_s = passed(), CLOCK.monotonic_s()
        end_s = wait_until(
            lambda: passed() >= total, timeout_s=BEAM_S, what="the job's end", every_s=0.05
        )
        used = cores.used()
    store.close()
    value = (total - first) / (end_s - start_s)
    return figure(
        "Kafka to Redis rows, `features run` on Beam's FnApiRunner",
        value,
        "events/s",
        aim=aim,
        limits=limits,
        peer=("the worker without Beam", alone),
        events=total - first,
        busy_processors=used,
        note="from the moment the job says it is ready; it also publishes item-features",
    )


def store_limits(
    settings: Settings, run: Run, records: list[list[Sent]]
) -> tuple[dict[str, float], dict[str, int]]:
    """Events/s if only the rows and partials of the same batches were read, and written."""
    found = list(_touched(run, records))
    sampled = found[:: max(1, len(found) // SAMPLED_BATCHES)]
    events = sum(count for _, _, count in sampled)
    with redis.Redis.from_url(settings.redis_url, protocol=2) as client:
        batches = [
            (users, items, client.mget(users), client.mget(items)) for users, items, _ in sampled
        ]

        def read() -> None:
            for users, items, _, _ in batches:
                client.mget([*users, *items])

        def write() -> None:
            for users, items, rows, partials in batches:
                pipe = client.pipeline(transaction=True)
                pipe.execute_command("MSETEX", len(users), *_flat(users, rows), "PX", TTL_MS)
                pipe.execute_command("MSET", *_flat(items, partials))
                pipe.execute()

        reads, writes = rate(events, read), rate(events, write)
    sizes = [len(row) for _, _, rows, _ in batches for row in rows if row]
    keys = sum(len(users) + len(items) for users, items, _, _ in batches)
    limits = {
        "MGET of the same rows and partials alone": reads,
        "MSETEX and MSET of the same alone": writes,
    }
    detail = {
        "row_bytes": round(float(np.mean(sizes))),
        "keys_per_batch": round(keys / len(batches)),
        "mget_keys_per_s": round(reads * keys / events),
        "msetex_keys_per_s": round(writes * keys / events),
    }
    return limits, detail


def _touched(run: Run, records: list[list[Sent]]) -> Iterator[tuple[list[str], list[str], int]]:
    """Keys of the users and of as many items that each batch touched."""
    places = [0] * PARTITIONS
    name = CATALOG.fingerprint[:8]
    for partition, count in run.batches:
        part = records[partition][places[partition] : places[partition] + count]
        places[partition] += count
        users = {f"u{name}:{{p{partition}}}:{r.key.decode()}" for r in part}
        items = {f"i{name}:{{p{partition}}}:{item}" for item in {_item(r) for r in part} if item}
        yield sorted(users), sorted(items), len(part)


def _item(record: Sent) -> str:
    """The item's id, where the datum holds one; cheaper than decoding the whole."""
    at = (record.value or b"").find(b"item-")
    return "" if at < 0 else (record.value or b"")[at : at + 10].decode()


def _flat(keys: list[str], values: list[bytes | None]) -> list[Any]:
    return [part for key, value in zip(keys, values, strict=True) if value for part in (key, value)]


def _places(keys: list[bytes]) -> Any:
    return partitions_of(keys, PARTITIONS)


def _profile(world: World, total: int) -> list[str]:
    aside = world.named(MAIN, LIMIT_DB)  # the rows are needed by later parts
    return profiled(lambda: folded(aside, min(PROFILED_EVENTS, total)))


def _check(done: Run, total: int) -> None:
    """Every record became something."""
    c = done.counts
    became = c.folded + c.duplicates + c.late + c.erased + c.dead + c.misplaced
    if c.records != total or became != total or c.dead or c.misplaced:
        raise RuntimeError(f"{total} records became {c}")
