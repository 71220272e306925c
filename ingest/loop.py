"""
The loop: poll, handle, write with position. Its order is on one screen.

The position lives with what was written: the sink stores both or neither, and refuses to write when
its position is not the one that the batch started from. After a restart, a refusal or an outage the
loop asks the sink where to go on. Where a batch is cut changes nothing.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import structlog

from ingest.batches import empty, part
from ingest.clock import Clock
from ingest.log import RecordBatch, Source, TopicPartition
from schemas.errors import PositionMoved, Rejected, Retryable

if TYPE_CHECKING:
    from ingest.dead_letter import DeadLetters
    from ingest.metrics import Metrics

# How soon a stop is noticed while waiting to try again.
STOP_CHECK_S = 0.2

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
E_contra = TypeVar("E_contra", contravariant=True)


class Handler(Protocol[E_co]):
    """Turns batches into effects. What it keeps between batches must be a fold of the log."""

    def resume(self, positions: Mapping[TopicPartition, int]) -> None:
        """Reading (re)starts here: forget everything that the sink does not hold."""

    def handle(self, batch: RecordBatch) -> E_co:
        """
        Effects of a batch, which may be empty: then the position moves, and nothing else.

        Raises:
            Rejected: a record is bad. The batch is cut in two until it stands alone, so a handler
                that raises must be as if it had not been called.
        """


class Sink(Protocol[E_contra]):
    """Where effects go, together with the position."""

    def positions(self) -> Mapping[TopicPartition, int]:
        """Where to read on."""

    def write(
        self, effects: E_contra, tp: TopicPartition, *, expected: int, next_offset: int
    ) -> None:
        """
        Store effects and `next_offset`, both or neither.

        Raises:
            PositionMoved: the stored position is not `expected`; nothing was written.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopPolicy:
    """Sizes and patience of a loop."""

    name: str  # label of its metrics
    max_records: int = 5000  # of a batch
    poll_s: float = 0.2  # how soon a stop is noticed while nothing comes
    max_idle_s: float | None = None  # nothing came for so long: done; None: never
    # In a row (45 s in all: a broker restarts in 20), then the error goes up, the process ends.
    max_attempts: int = 12
    backoff_s: float = 0.1  # before the first retry; doubles
    max_backoff_s: float = 10.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")


def backoff_s(policy: LoopPolicy, attempt: int, chance: float) -> float:
    """
    How long to wait before attempt + 1: doubling, at most the maximum, half of it by chance.

    >>> backoff_s(LoopPolicy(name="x", backoff_s=0.1), 3, chance=1.0)
    0.4
    >>> backoff_s(LoopPolicy(name="x", backoff_s=0.1), 3, chance=0.0)
    0.2
    """
    longest = min(policy.max_backoff_s, policy.backoff_s * float(2 ** (attempt - 1)))
    return longest * (0.5 + 0.5 * chance)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopParts:
    """What a loop works with besides its source, handler and sink."""

    dead_letters: DeadLetters
    clock: Clock
    metrics: Metrics
    chance: random.Random  # spreads the retries of many workers
    follow: Callable[[Mapping[TopicPartition, int]], None] | None = None  # lag dashboards
    idle: Callable[[], None] | None = None  # called when nothing came


class Loop(Generic[E]):
    """Reads from a source, handles, writes to a sink."""

    def __init__(
        self,
        source: Source,
        handler: Handler[E],
        sink: Sink[E],
        parts: LoopParts,
        policy: LoopPolicy,
    ) -> None:
        self._source = source
        self._handler = handler
        self._sink = sink
        self._parts = parts
        self._policy = policy
        self._positions: dict[TopicPartition, int] = {}
        self._attempts = 0
        self._resumed = False
        self._log = structlog.get_logger("loop").bind(loop=policy.name)

    def run(
        self, stop: threading.Event, until: Mapping[TopicPartition, int] | None = None
    ) -> dict[TopicPartition, int]:
        """
        Work until `stop` is set, nothing came for `max_idle_s`, or `until` is reached.

        Returns:
            The positions that the sink holds.

        Raises:
            Retryable: something stayed unavailable through all attempts.
            Misconfigured: too large a share of records is refused, or a position is foreign.
        """
        heard_s = self._parts.clock.monotonic_s()
        while not stop.is_set() and not self._reached(until):
            try:
                if self._step():
                    heard_s = self._parts.clock.monotonic_s()
                elif self._idle_since(heard_s):
                    break
            except PositionMoved as error:
                self._resumed = False
                self._again(error, "loop.moved", stop)
            except Retryable as error:
                self._resumed = False
                self._again(error, "loop.retries", stop)
        return dict(self._positions)

    def _step(self) -> bool:
        """One batch. False: none came."""
        if not self._resumed:
            self._resume()
        batch = self._source.poll(self._policy.max_records, self._policy.poll_s)
        if batch is None:
            if self._parts.idle is not None:
                self._parts.idle()
            return False
        for piece, effects in self._handled(batch):  # bisects on Rejected
            self._parts.dead_letters.flush()  # before the position moves
            tp = TopicPartition(piece.topic, piece.partition)
            self._sink.write(
                effects, tp, expected=piece.start_offset, next_offset=piece.next_offset
            )
            self._positions[tp] = piece.next_offset
            self._note(tp, piece)
        if self._parts.follow is not None:
            self._parts.follow(self._positions)
        self._attempts = 0
        return True

    def _handled(self, batch: RecordBatch) -> Iterator[tuple[RecordBatch, E]]:
        """The batch with its effects; in pieces around records that are bad."""
        try:
            effects = self._handler.handle(batch)
        except Rejected as rejected:
            if len(batch) > 1:
                middle = len(batch) // 2
                yield from self._handled(part(batch, 0, middle))
                yield from self._handled(part(batch, middle, len(batch)))
                return
            if len(batch) == 0:
                raise RuntimeError(f"a batch without records was rejected: {rejected}") from None
            self._parts.dead_letters.add(batch, 0, rejected)
            tp = TopicPartition(batch.topic, batch.partition)
            batch = empty(tp, batch.start_offset, batch.next_offset)
            effects = self._handler.handle(batch)
        yield batch, effects

    def _resume(self) -> None:
        self._positions = dict(self._sink.positions())
        self._handler.resume(self._positions)
        self._source.assign(self._positions)
        self._resumed = True

    def _again(self, error: Retryable | PositionMoved, name: str, stop: threading.Event) -> None:
        self._attempts += 1
        kind = type(error).__name__
        if name == "loop.moved":
            self._parts.metrics.count("loop.moved", loop=self._policy.name)
        else:
            self._parts.metrics.count("loop.retries", loop=self._policy.name, error=kind)
        self._log.warning("loop.again", error=kind, detail=str(error), attempt=self._attempts)
        if self._attempts >= self._policy.max_attempts:
            raise error
        left_s = backoff_s(self._policy, self._attempts, self._parts.chance.random())
        while left_s > 0 and not stop.is_set():
            self._parts.clock.sleep(min(left_s, STOP_CHECK_S))
            left_s -= STOP_CHECK_S

    def _reached(self, until: Mapping[TopicPartition, int] | None) -> bool:
        if until is None or not self._resumed:
            return False
        return all(self._positions.get(tp, 0) >= end for tp, end in until.items())

    def _idle_since(self, heard_s: float) -> bool:
        limit = self._policy.max_idle_s
        return limit is not None and self._parts.clock.monotonic_s() - heard_s >= limit

    def _note(self, tp: TopicPartition, piece: RecordBatch) -> None:
        metrics, name = self._parts.metrics, self._policy.name
        metrics.count("loop.records", len(piece), loop=name)
        metrics.observe("loop.batch_records", len(piece), loop=name)
        place = {"loop": name, "topic": tp.topic, "partition": str(tp.partition)}
        metrics.gauge("loop.position", piece.next_offset, **place)
