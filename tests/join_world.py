"""A small world for the label join: a log in memory, workers over it, and what they wrote."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features import archive
from features.declare import Feature, FeatureSet, Level
from features.disk import Disk
from features.join import JoinPolicy
from features.join_worker import KIND, JoinParts, JoinWorker, Rotation, WorkPolicy
from ingest.clock import ManualClock
from ingest.log import Outgoing
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from ingest.metrics import MemoryMetrics
from ingest.placement import partition_of
from ingest.topics import Topics, topic_specs
from schemas.codec import Codec
from schemas.events import EventType, Recommendation, ScoredItem, Status, UserEvent
from schemas.registry import MemoryRegistry, Registry
from tests.tfexample import read_examples

T0 = 1_700_000_000_000
POLICY = JoinPolicy(window_ms=1_000, lateness_ms=100, idle_close_s=5.0)


def _unused(_: Any) -> np.ndarray:
    raise AssertionError("the join computes no feature")


def _feature(name: str, level: Level, dtype: Any, length: int = 1) -> Feature:
    return Feature(
        name=name, level=level, dtype=dtype, compute=_unused, doc="of a test", length=length
    )


FEATURES = FeatureSet(
    features=(
        _feature("recent", Level.USER, "int64", 2),
        _feature("rate", Level.USER, "float32"),
        _feature("item", Level.ITEM, "int64"),
        _feature("fresh", Level.ITEM, "float32"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One example as plain values."""

    request_id: str
    user_id: str
    item_id: str
    position: int
    event_time: int
    events_offset: int
    rate: float
    labels: tuple[tuple[int, int], ...]  # (event type, count), none of them 0


def answer(request_id: str, user_id: str, at_ms: int, **changes: Any) -> Recommendation:
    """An answer with the items a, b and c, served with a row that held no event."""
    items = changes.pop("item_ids", ("a", "b", "c"))
    given: dict[str, Any] = {
        "request_id": request_id,
        "user_id": user_id,
        "event_time": T0 + at_ms,
        "status": Status.OK,
        "items": tuple(
            ScoredItem(item_id=item, score=0.5, longs=(i,), floats=(i / 2,))
            for i, item in enumerate(items)
        ),
        "model_name": "m",
        "model_version": 3,
        "fingerprint": FEATURES.fingerprint,
        "events_partition": 0,
        "events_offset": 0,
        "user_longs": (len(user_id), 7),
        "user_floats": (0.25,),
        "surface": "home",
    }
    return Recommendation(**(given | changes))


def event(
    event_id: str, user_id: str, item_id: str | None, at_ms: int, **changes: Any
) -> UserEvent:
    """A click."""
    given: dict[str, Any] = {
        "event_id": event_id,
        "user_id": user_id,
        "item_id": item_id,
        "event_type": EventType.CLICK,
        "event_time": T0 + at_ms,
    }
    return UserEvent(**(given | changes))


class World:
    """A log with both topics, and workers over it."""

    def __init__(self, root: Path, partitions: int = 1) -> None:
        self.root = root
        self.clock = ManualClock(T0)
        self.log = MemoryLog(self.clock)
        self.topics = Topics("w-")
        self.log.create_topics(topic_specs("w-", partitions, replay=True))
        self.registry: Registry = MemoryRegistry()
        self.partitions = partitions
        self.metrics = MemoryMetrics()
        self._producer = MemoryProducer(self.log)
        self._answers = Codec(self.registry, Recommendation, self.topics.recommendations)
        self._events = Codec(self.registry, UserEvent, self.topics.user_events)

    def show(self, value: Recommendation, /, **record: Any) -> None:
        """Append an answer."""
        self._send(self.topics.recommendations, value, self._answers.encode(value), record)

    def do(self, value: UserEvent, /, **record: Any) -> None:
        """Append a user-event."""
        self._send(self.topics.user_events, value, self._events.encode(value), record)

    def _send(self, topic: str, value: Any, data: bytes, record: dict[str, Any]) -> None:
        given: dict[str, Any] = {
            "topic": topic,
            "key": value.user_id.encode(),
            "value": data,
            "timestamp_ms": value.event_time,
        }
        self._producer.send(Outgoing(**(given | record)))

    def events_end(self, user_id: str) -> int:
        """Offset of the next user-event in the user's partition."""
        return self.log.bounds(self.topics.user_events)[self.partition(user_id)][1]

    def partition(self, user_id: str) -> int:
        return partition_of(user_id.encode(), self.partitions)

    def ends(self) -> dict[int, int]:
        """Ends of the recommendations."""
        return {p: b[1] for p, b in self.log.bounds(self.topics.recommendations).items()}

    def worker(self, root: Path | None = None, disk: Disk | None = None, **work: Any) -> JoinWorker:
        parts = JoinParts(
            log=self.log,
            lists=MemorySource(self.log),
            events=MemorySource(self.log),
            registry=self.registry,
            topics=self.topics,
            features=FEATURES,
            root=root or self.root,
            clock=self.clock,
            metrics=self.metrics,
            disk=disk,
        )
        sizes: dict[str, Any] = {
            "poll_s": 0.0,
            "rotation": Rotation(max_bytes=1),
            "max_attempts": 1,
        }
        return JoinWorker(parts, POLICY, WorkPolicy(**(sizes | work)))

    def join(self, root: Path | None = None, disk: Disk | None = None, **work: Any) -> None:
        """Run a worker until every answer that is there now is dealt with."""
        self.worker(root, disk, **work).run(Stop(self.clock), self.ends())

    def rows(self, root: Path | None = None) -> list[Row]:
        """The archive's examples, read without TensorFlow."""
        return [row for p in sorted(self.by_partition(root)) for row in self.by_partition(root)[p]]

    def by_partition(self, root: Path | None = None) -> dict[int, list[Row]]:
        folder = (root or self.root) / KIND
        found: dict[int, list[Row]] = {}
        for number, manifest in archive.manifests(root or self.root, KIND).items():
            found[number] = [
                _row(record) for f in manifest.files for record in read_examples(folder / f.path)
            ]
            assert len(found[number]) == manifest.records
        return found


class Stop(threading.Event):
    """Asked once a step, it lets the clock go on; it never stops anything."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock
        self._left = 20_000

    def is_set(self) -> bool:
        self._clock.advance(0.01)
        self._left -= 1
        assert self._left, "the join does not come to its end"
        return False


def counted(*kinds: EventType) -> tuple[tuple[int, int], ...]:
    """Labels as `Row` has them."""
    return tuple(sorted((int(kind), n) for kind, n in Counter(kinds).items()))


def _row(record: dict[str, Any]) -> Row:
    labels = record["labels"]
    return Row(
        request_id=record["request_id"][0].decode(),
        user_id=record["user_id"][0].decode(),
        item_id=record["item_id"][0].decode(),
        position=record["position"][0],
        event_time=record["event_time"][0] - T0,
        events_offset=record["events_offset"][0],
        rate=record["rate"][0],
        labels=tuple((kind, n) for kind, n in enumerate(labels) if n),
    )
