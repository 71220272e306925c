"""
Answers and offsets on their way to the broker: one run after the other, each wholly or not at all.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import structlog

from inference.answer_memory import AnswerMemory
from inference.encoding import AnswerWriter
from inference.requests import Bad, Entry, RequestReader, next_offset, place
from ingest.dead_letter import DeadLetters
from ingest.log import GroupSource, Outgoing, TopicPartition, TransactionalProducer
from ingest.metrics import Metrics
from schemas.errors import PositionMoved, Retryable

if TYPE_CHECKING:
    from inference.trail import Trail

log = structlog.get_logger(__name__)

T = TypeVar("T")
GROUP_S: Final = 1.0  # how long a commit waits to hear of the group


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """A run of entries, and what became so far of those that are requests."""

    entries: Sequence[Entry]
    made: T


@dataclass(frozen=True, slots=True)
class Written:
    """Answers as they are sent, and the requests that were poison."""

    records: Sequence[Outgoing]
    dead: Sequence[Bad]
    made_s: float  # when, on the monotonic clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where the pipeline starts and ends."""

    source: GroupSource
    producers: Sequence[TransactionalProducer]  # one or more, each with an id of its own
    dead_letters: DeadLetters
    reader: RequestReader
    writer: AnswerWriter
    requests_topic: str
    memory: AnswerMemory | None = None  # of what was answered: for delivery at least once
    trail: Trail | None = None  # None: metrics are told, and nothing is traced


class GroupWord:
    """What the group last said of us: told by the thread that polls, carried by commits."""

    def __init__(self) -> None:
        self.metadata: object | None = None
        self._wanted, self._given = threading.Event(), threading.Event()

    @property
    def wanted(self) -> bool:
        """Whether a commit waits for it."""
        return self._wanted.is_set()

    def tell(self, metadata: object) -> None:
        """The group knows us by this."""
        self.metadata = metadata
        self._wanted.clear()
        self._given.set()

    def ask(self) -> None:
        """Wait a while for newer word."""
        self._given.clear()
        self._wanted.set()
        self._given.wait(GROUP_S)


class Commits:
    """Sends runs of answers with the offsets that they answer. Owned by one thread."""

    def __init__(
        self, ends: Ends, group: GroupWord, tries: int, over: threading.Event, metrics: Metrics
    ) -> None:
        """`over`: no more tries."""
        self._ends = ends
        self._group = group
        self._tries = tries
        self._over = over
        self._metrics = metrics
        self._producers = itertools.cycle(ends.producers)

    def commit(self, run: Sequence[Step[Written]]) -> None:
        """
        Dead letters, answers and offsets of these batches, in this order.

        Raises:
            PositionMoved: somebody else took over.
            Retryable: the broker refused too often.
        """
        bad: list[Bad] = [one for part in run for one in part.entries if isinstance(one, Bad)]
        for one in [*bad, *(dead for part in run for dead in part.made.dead)]:
            self._ends.dead_letters.add(one.batch, one.index, one.rejected)
        records = [record for part in run for record in part.made.records]
        positions = {place(one): next_offset(one) for part in run for one in part.entries}
        for tries_left in reversed(range(self._tries)):
            try:
                self._ends.dead_letters.flush()
                self._transact(records, positions)
            except (Retryable, PositionMoved) as error:
                # A group that only counted its members again refuses the old count once. Where a
                # newer producer or member took over, `begin` or the next try says so.
                if not tries_left or self._over.is_set():
                    raise
                log.warning("serve.commit_again", error=str(error))
                self._metrics.count("loop.retries", loop="serve", error=type(error).__name__)
                self._group.ask()
            else:
                return

    def _transact(
        self, records: Sequence[Outgoing], positions: Mapping[TopicPartition, int]
    ) -> None:
        if self._group.metadata is None:
            self._group.ask()
        producer = next(self._producers)
        producer.begin()
        for record in records:
            producer.send(record)
        if self._group.metadata is None:
            producer.abort()
            raise PositionMoved("the group has not answered yet")
        producer.commit(positions, self._group.metadata)
