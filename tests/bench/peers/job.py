"""
The job that every peer does: the last 50 items and the 24 h count of each type a user, in Redis.

Plain Python with fastavro and redis-py, run by the peers' own interpreter: what differs from one
peer to the next is its framework. Nothing of the product is imported here.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fastavro
import orjson
import redis

from tests.bench.peers.row import Row, empty, fold
from tests.bench.peers.task import KEY, Task

FRAME_BYTES = 5


class Job:
    """Decodes, folds, writes, and keeps the time from the first record to the last written row."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._client = redis.Redis.from_url(task.redis_url)
        # As a plain long: fastavro would make a datetime of each time, which costs 1 us.
        text = Path("schemas/avro/user_event.avsc").read_text()
        schema = json.loads(text.replace("timestamp-millis", "none"))
        self._schema = fastavro.parse_schema(schema)
        self._rows: dict[str, Row] = {}  # of "batch": what Redis holds, read once
        self._events = 0
        self._start_s = self._cpu_s = 0.0

    @property
    def done(self) -> bool:
        """Whether every event was decoded."""
        return self._events >= self._task.events

    def start(self) -> None:
        """The first record is there."""
        if not self._start_s:
            # A program of its own, without our Clock.
            self._start_s = time.monotonic()  # noqa: TID251
            self._cpu_s = time.process_time()

    def decoded(self, value: bytes) -> dict[str, Any]:
        """One event from its framed bytes."""
        self.start()
        self._events += 1
        return fastavro.schemaless_reader(io.BytesIO(value[FRAME_BYTES:]), self._schema, None)  # type: ignore[no-any-return, return-value]

    def folded(self, values: Iterable[bytes]) -> dict[str, Row]:
        """The rows that a batch changes, after it; those not seen yet are read from Redis first."""
        events = [self.decoded(value) for value in values]
        rows = self._rows
        if missing := list({e["user_id"] for e in events} - rows.keys()):
            stored = self._client.mget([KEY + user for user in missing])
            for user, row in zip(missing, stored, strict=True):  # type: ignore[arg-type]
                rows[user] = empty() if row is None else orjson.loads(row)
        for event in events:
            fold(rows[event["user_id"]], event)
        return {user: rows[user] for user in {e["user_id"] for e in events}}

    def write(self, rows: Mapping[str, Row]) -> None:
        """All rows in one command."""
        if rows:
            self._client.mset({KEY + user: orjson.dumps(row) for user, row in rows.items()})

    def report(self) -> None:
        """Say how long it took; called when everything is written."""
        taken_s = time.monotonic() - self._start_s  # noqa: TID251
        told = {
            "events": self._events,
            "taken_s": taken_s,
            "cpu_s": time.process_time() - self._cpu_s,
        }
        print(json.dumps(told), flush=True)
