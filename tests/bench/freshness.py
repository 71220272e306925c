"""Freshness: from producing an event to its user's row holding it, at a steady load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from features.job import open_store
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.events import UserEvent
from tests.bench.figures import Figure, figure
from tests.bench.measure import CLOCK, quantiles_ms, wait_until
from tests.bench.world import FRESH, FRESH_DB, PARTITIONS, World

AIM_MS = 50.0
PER_S = 5_000  # events
WARM_S = 2.0
LOOK_S = 0.001
STEP_S = 0.002
END_S = 20.0
LINGER_MS = 5  # librdkafka's default

Passed = list[tuple[float, dict[int, int]]]  # when, and next offset by partition


def run(world: World, per_s: int = PER_S) -> Iterator[Figure]:
    """The job as a process, a producer at a steady rate, and a reader of the rows' positions."""
    world.create_topics(FRESH)
    settings = world.named(FRESH, FRESH_DB)
    values = _values(world, int(per_s * (world.sizes.paced_s + WARM_S)))
    warm = int(per_s * WARM_S)
    with world.command(settings, "features", "run"), watching(world) as watch:
        # What a process and a topic do once (connect, load, compile) is no part of the figure.
        _all_rows(world, watch, _paced(world, values[:warm], per_s))
        cores = world.cores()
        sent = _paced(world, values[warm:], per_s)
        _all_rows(world, watch, sent)
        used = cores.used()
    latencies, broker = _latencies(sent, watch.passed)
    found = quantiles_ms(latencies)
    world.samples["event to row"] = (np.asarray(latencies) * 1000, AIM_MS)
    yield figure(
        "event produced to readable row, p99",
        found["p99_ms"],
        "ms",
        aim=AIM_MS,
        smaller_is_better=True,
        limits={"acknowledged by the broker, p99": quantiles_ms(broker)["p99_ms"]},
        p50_ms=found["p50_ms"],
        max_ms=found["max_ms"],
        events=found["n"],
        events_per_s=per_s,
        busy_processors=used,
        looked_every_ms=round(watch.every_ms(), 2),
        **_profile(found, quantiles_ms(broker)),
        note="produce() of the client, linger 5 ms, until the position stored with the rows passes",
    )


def _profile(found: dict[str, float], broker: dict[str, float]) -> dict[str, list[str]]:
    """Where the time goes, if the aim is missed."""
    if found["p99_ms"] <= AIM_MS:
        return {}
    return {
        "profile": [
            f"{q}: {found[q]:.1f}, of which until the broker's acknowledgement {broker[q]:.1f}"
            for q in ("p50_ms", "p90_ms", "p99_ms")
        ]
    }


class Watch:
    """A thread that reads the positions stored with the rows, again and again."""

    def __init__(self, world: World) -> None:
        self._store = open_store(world.named(FRESH, FRESH_DB))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.passed: Passed = []
        self._looks = 0
        self._start_s = CLOCK.monotonic_s()

    def every_ms(self) -> float:
        """How long it took from one look to the next: the clock's grain."""
        return 1000 * (self.passed[-1][0] - self._start_s) / max(1, self._looks)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._store.close()

    def reached(self, ends: dict[int, int]) -> bool:
        if not self.passed:
            return False
        last = self.passed[-1][1]
        return all(last.get(p, 0) >= end for p, end in ends.items())

    def _run(self) -> None:
        last: dict[int, int] = {}
        while not self._stop.is_set():
            found = self._store.positions(range(PARTITIONS))
            now_s = CLOCK.monotonic_s()
            self._looks += 1
            at = {p: one.next_offset for p, one in found.items() if one is not None}
            if at != last:
                self.passed.append((now_s, at))
                last = at
            CLOCK.sleep(LOOK_S)


@contextmanager
def watching(world: World) -> Iterator[Watch]:
    """A watch that runs."""
    watch = Watch(world)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def _all_rows(world: World, watch: Watch, sent: list[_Sent]) -> None:
    """Wait until the rows hold all that was sent."""
    ends = world.ends(Topics(FRESH).user_events)
    wait_until(
        lambda: watch.reached(ends),
        timeout_s=END_S,
        what=f"the row of the last of {len(sent)} events",
        every_s=0.005,
    )


def _values(world: World, count: int) -> list[tuple[bytes, bytes]]:
    codec = Codec(world.registry, UserEvent, Topics(FRESH).user_events)
    events = list(world.shop.events(count, CLOCK.now_ms(), live=True))
    return [
        (event.user_id.encode(), value)
        for event, value in zip(events, codec.encode_many(events), strict=True)
    ]


class _Sent:
    """What was sent: when, when acknowledged, and where it landed."""

    __slots__ = ("acknowledged_s", "offset", "partition", "sent_s")

    def __init__(self, sent_s: float) -> None:
        self.sent_s = sent_s
        self.acknowledged_s = 0.0
        self.partition = self.offset = -1

    def __call__(self, error: object, message: object) -> None:
        if error is None:
            self.acknowledged_s = CLOCK.monotonic_s()
            self.partition, self.offset = message.partition(), message.offset()  # type: ignore[attr-defined]


def _paced(world: World, values: list[tuple[bytes, bytes]], per_s: int) -> list[_Sent]:
    """Send at a steady rate whatever comes back; what is late is sent at once."""
    topic = Topics(FRESH).user_events
    producer = world.producer(**{"linger.ms": LINGER_MS})
    sent: list[_Sent] = []
    start_s = CLOCK.monotonic_s()
    while len(sent) < len(values):
        now_s = CLOCK.monotonic_s()
        due = min(len(values), int((now_s - start_s) * per_s) + 1)
        for key, value in values[len(sent) : due]:
            one = _Sent(CLOCK.monotonic_s())
            producer.produce(topic, key=key, value=value, on_delivery=one)
            sent.append(one)
        producer.poll(0)
        CLOCK.sleep(STEP_S)
    if producer.flush(END_S):
        raise RuntimeError("not everything was delivered")
    return sent


def _latencies(sent: list[_Sent], passed: Passed) -> tuple[list[float], list[float]]:
    """Seconds from sending to the row, and to the acknowledgement, of each event."""
    when = np.array([t for t, _ in passed])
    at = {
        p: np.array([found.get(p, 0) for _, found in passed], np.int64) for p in range(PARTITIONS)
    }
    rows, acknowledged = [], []
    for one in sent:
        # The first look at which the next offset was past this event's.
        seen = int(np.searchsorted(at[one.partition], one.offset, side="right"))
        rows.append(float(when[seen]) - one.sent_s)
        acknowledged.append(one.acknowledged_s - one.sent_s)
    return rows, acknowledged
