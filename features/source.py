"""
Beam's view of user-events: an unbounded source whose elements are micro-batches.

The readers here are empty shells: Beam makes and drops them as it likes, the consumers and leases
live in `features.split.POOL`. There are no checkpoint marks, since the store knows the position.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from apache_beam import coders
from apache_beam.io.unbounded_source import UnboundedReader, UnboundedSource
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from features.job import JobConfig, open_split
from features.split import POOL
from ingest.clock import SystemClock
from ingest.log import RecordBatch

POLL_S = 0.1
# A reader without data blocks this long before it says so: every such answer is a self-checkpoint,
# of which runners keep something (FnApiRunner 1.2 MiB in 10 s at 0.2 s).
IDLE_S = 5.0


class Element(NamedTuple):
    """A micro-batch of some partitions and the split that it must be folded by."""

    split: str
    batches: tuple[RecordBatch, ...]


class EventSource(UnboundedSource):
    """User-events of some partitions; `splits` readers share them out."""

    def __init__(self, config: JobConfig, splits: int = 1, salt: int = 0) -> None:
        """`salt` only makes another key of the same source (`features.flink_keys`)."""
        self.config = config
        self.splits = splits
        self.salt = salt

    def split(self, desired_num_splits: int, options: Any = None) -> list[EventSource]:
        return [EventSource(part) for part in self.config.split(self.splits)]

    def create_reader(self, options: Any, checkpoint_mark: Any) -> EventReader:
        return EventReader(self.config)

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        return coders.PickleCoder()


class EventReader(UnboundedReader):
    """Polls the pooled split. Ends, for good, when the pool stops."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._clock = SystemClock()
        self._current: Element | None = None
        self._timestamp: Any = MIN_TIMESTAMP

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        until_s = self._clock.monotonic_s() + IDLE_S
        while not POOL.stopping.is_set():
            POOL.get(self._config.name, lambda: open_split(self._config, POOL.metrics))
            with POOL.using(self._config.name) as split:
                batches = split.poll(POLL_S)
            if batches:
                self._current = Element(self._config.name, batches)
                times_ms = [int(one.timestamps_ms[-1]) for one in batches if len(one)]
                if times_ms:
                    self._timestamp = Timestamp(micros=min(times_ms) * 1000)
                return True
            if self._clock.monotonic_s() > until_s:
                break
        return False

    def get_current(self) -> Element | None:
        return self._current

    def get_current_timestamp(self) -> Timestamp:
        return self._timestamp

    def get_watermark(self) -> Timestamp:
        return MAX_TIMESTAMP if POOL.stopping.is_set() else self._timestamp

    def get_checkpoint_mark(self) -> None:
        return None
