"""
Two servers under load while versions change every few seconds: every request answered once, by a
model, and memory flat. `make soak ONLY=inference MINUTES=10` writes out/soak/inference.json.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest

from features.hashing import hash_ids
from inference import operator
from ingest.clock import SystemClock
from ingest.log import TopicPartition
from schemas.columns import ColumnReader
from schemas.events import Recommendation
from tests.published import publish
from tests.serving_process import ITEMS, PARTITIONS, Place, Server, settings_for
from tests.untrained import export_untrained

pytestmark = [pytest.mark.kafka, pytest.mark.valkey, pytest.mark.tf, pytest.mark.chaos]

OUT = Path(__file__).parents[2] / "out" / "soak" / "inference.json"
SWAP_EVERY_S = 5.0
PER_S = 400
MOST_GROWTH = 0.01  # of the resident set, between the first and the last fifth
SHORT_S = 20.0
VERSIONS = 3
WAIT_S = 120.0
Eventually = Callable[..., None]


@pytest.fixture
def place(
    kafka: Any, valkey: Any, registry: Any, unique_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Place]:
    made = Place(settings_for(kafka, valkey, registry, unique_name("soak"), tmp_path))
    yield made
    made.close()


class Told:
    """Who was answered how often, and by which versions; the answers themselves are not kept."""

    def __init__(self, place: Place) -> None:
        self._source = place.new_source()
        self._source.assign(
            {TopicPartition(place.topics.recommendations, p): 0 for p in range(PARTITIONS)}
        )
        self._reader = ColumnReader(place.registry, Recommendation)
        self.requests: Counter[str] = Counter()
        self.versions: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()

    def read(self) -> int:
        """Take in what came; how many answers there are in all."""
        columns = ("request_id", "model_version", "fallback_reason")
        while batch := self._source.poll(10_000, 0.05):
            frame = self._reader.read(batch.values, columns).frame
            self.requests.update(frame["request_id"].to_list())
            self.versions.update(frame["model_version"].to_list())
            self.reasons.update(r for r in frame["fallback_reason"].to_list() if r is not None)
        return self.requests.total()

    def close(self) -> None:
        self._source.close()


class Load:
    """Requests at a steady rate until stopped."""

    def __init__(self, place: Place) -> None:
        self.sent = 0
        self._place = place
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(20 / PER_S):
            self._place.ask(range(self.sent, self.sent + 20))
            self.sent += 20


def publish_versions(place: Place, folder: Path) -> None:
    """
    Three versions of a small two-tower model: one more than are kept in memory, each with weights
    and an index of its own, and all with one graph.
    """
    for seed in range(1, VERSIONS + 1):
        export_untrained(folder / str(seed), hash_ids(ITEMS), seed=seed)
        publish(place.settings, folder / str(seed))


def swapped(
    place: Place, servers: list[Server], for_s: float, told: Told, *, patient: bool
) -> dict[str, Any]:
    """
    Swap to and fro under load; what was seen of memory.

    patient: to the next version only once the last one has answered, until all had their turn.
    """
    clock, load = SystemClock(), Load(place)
    samples: list[dict[str, float]] = []
    start_s = swap_s = clock.monotonic_s()
    swaps, before = 0, -1

    def awaited() -> bool:
        """Whether the version that was promoted last is still to answer."""
        return patient and told.versions[swaps % VERSIONS + 1] <= before

    try:
        while (now_s := clock.monotonic_s()) < start_s + for_s or (
            patient and (swaps < VERSIONS or awaited())
        ):
            assert now_s < start_s + for_s + WAIT_S, "a version does not answer"
            if now_s >= swap_s and not awaited():
                before = told.versions[(swaps + 1) % VERSIONS + 1]
                operator.promote(place.settings, (swaps + 1) % VERSIONS + 1, "to be swapped")
                swaps, swap_s = swaps + 1, swap_s + SWAP_EVERY_S
            told.read()
            resident = {
                str(at): psutil.Process(one.pid).memory_info().rss / 1e6
                for at, one in enumerate(servers)
            }
            samples.append({"at_s": now_s - start_s, **resident})
            clock.sleep(0.5)
    finally:
        load.stop()
    return {"seconds": for_s, "swaps": swaps, "sent": load.sent, "samples": samples}


def growth(samples: list[dict[str, float]], server: str) -> float:
    """Share by which the resident set grew from the second to the last fifth."""
    fifth = max(1, len(samples) // 5)
    before = median(one[server] for one in samples[fifth : 2 * fifth])
    return median(one[server] for one in samples[-fifth:]) / before - 1


def answered(
    place: Place, tmp_path: Path, for_s: float, eventually: Eventually, *, patient: bool
) -> tuple[dict[str, Any], Told]:
    """Two servers through it all."""
    publish_versions(place, tmp_path / "model")
    operator.promote(place.settings, 1, "first")
    (tmp_path / "logs").mkdir()
    servers = [Server(place.settings, tmp_path / "logs", str(at)) for at in range(2)]
    told = Told(place)
    try:
        for server in servers:
            eventually(server.ready, timeout_s=WAIT_S)
        found = swapped(place, servers, for_s, told, patient=patient)
        eventually(lambda: told.read() >= found["sent"], timeout_s=WAIT_S)
        for server in servers:
            assert server.stop() == 0
    finally:
        for server in servers:
            server.close()
    told.read()
    told.close()
    return found, told


def assert_once(found: dict[str, Any], told: Told) -> None:
    """Every request once, and by all versions."""
    wanted = Counter({f"r{n}": 1 for n in range(found["sent"])})
    assert told.requests == wanted
    assert not told.reasons
    assert min(told.versions[version + 1] for version in range(VERSIONS)) > 0


def test_two_servers_answer_everybody_once_while_versions_change(
    place: Place, tmp_path: Path, eventually: Eventually
) -> None:
    found, told = answered(place, tmp_path, SHORT_S, eventually, patient=True)
    assert_once(found, told)
    assert found["swaps"] >= VERSIONS


@pytest.mark.soak
def test_swaps_for_minutes_leave_memory_as_it_was(
    place: Place, tmp_path: Path, eventually: Eventually
) -> None:
    minutes = float(os.environ.get("MINUTES", "10"))  # noqa: TID251
    found, told = answered(place, tmp_path, 60 * minutes, eventually, patient=False)
    grown = {server: round(growth(found["samples"], server), 4) for server in ("0", "1")}
    lost = found["sent"] - len(told.requests)
    report = {
        **found,
        "answers": told.requests.total(),
        "lost": lost,
        "doubled": told.requests.total() - len(told.requests),
        "by_version": dict(told.versions),
        "fallbacks": dict(told.reasons),
        "growth": grown,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(report, indent=2) + "\n")
    assert_once(found, told)
    assert max(grown.values()) < MOST_GROWTH, grown
