"""
Requests in, answers out, exactly once: the threads around the service.

The fetching thread polls, decodes and batches. Three threads take the steps of the service, each
with a batch of its own, and one commits. A transaction holds the answers to a contiguous run of
offsets of each partition, and those offsets, in order:

1. dead letters of the run are flushed (a crash can repeat them: readers drop repeats)
2. the transaction begins, answers are sent
3. the offsets after the run join it, and it commits

What was not committed is discarded and read again from the group's offsets.

Producers take turns: a broker is not done with a transaction when its end is acknowledged, and
makes the same producer's next one wait.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import structlog

from inference.answers import Answers
from inference.batcher import Batcher, BatchPolicy
from inference.encoding import AnswerWriter
from inference.requests import Asked, Bad, Entry, RequestReader, next_offset, place
from ingest.clock import Clock
from ingest.dead_letter import DeadLetters
from ingest.log import (
    GroupSource,
    Outgoing,
    RecordBatch,
    TopicPartition,
    TransactionalProducer,
)
from schemas.errors import PositionMoved, Retryable

log = structlog.get_logger(__name__)

T = TypeVar("T")
IDLE_S = 0.1  # how long a thread waits before it looks whether to stop
FULL_S = 0.002  # how long the fetching thread waits for the scoring thread: a fraction of a batch
GROUP_S = 1.0  # how long a commit waits to hear of the group
RESERVE = 64  # room that is kept for polls that only serve the group


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPolicy:
    """Sizes and patience of the pipeline."""

    batch: BatchPolicy
    ahead: int = 2  # batches that may wait for each of the threads
    commit_batches: int = 8  # batches in one transaction, at most
    commit_tries: int = 5
    drain_s: float = 5.0  # how long a rebalance waits for what is under way


class Steps(Protocol):
    """
    What is done with a batch: `inference.set_router.SetRouter`, or one `Service` by itself.

    What one step hands to the next is their own business.
    """

    def prepare(self, asked: Sequence[Asked]) -> Any: ...

    def score(self, prepared: Any) -> Any: ...

    def finish(self, scored: Any) -> Answers: ...


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where the pipeline starts and ends."""

    source: GroupSource
    producers: Sequence[TransactionalProducer]  # one or more, each with an id of its own
    dead_letters: DeadLetters
    reader: RequestReader
    writer: AnswerWriter
    requests_topic: str


class Consumer:
    """
    One life of the pipeline: from joining the group to the first refusal of a commit.

    After PositionMoved, open new ends (which fences the old ones) and make a new Consumer.
    """

    def __init__(
        self,
        ends: Ends,
        steps: Steps,
        policy: ConsumerPolicy,
        clock: Clock,
    ) -> None:
        self._ends = ends
        self._steps = steps
        self._policy = policy
        self._clock = clock
        self._batcher: Batcher[Entry] = Batcher(policy.batch, clock)
        self._to_prepare: queue.Queue[list[Entry]] = queue.Queue(policy.ahead)
        self._to_score: queue.Queue[Step[Any]] = queue.Queue(policy.ahead)
        self._to_finish: queue.Queue[Step[Any]] = queue.Queue(policy.ahead)
        self._to_commit: queue.Queue[Step[Written]] = queue.Queue(policy.commit_batches)
        self._producers = itertools.cycle(ends.producers)
        self._over = threading.Event()  # no more work: the threads leave
        self._error: BaseException | None = None
        self._settled = threading.Condition()
        self._under_way = 0  # entries handed to the threads and not yet committed
        self._unscored = 0  # batches handed to the scoring thread and not yet scored
        self._rebalances = 0
        self._group: object | None = None  # what commits carry; see _poll
        self._group_wanted = threading.Event()
        self._group_given = threading.Event()
        self.assigned = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """
        Serve until told to stop; what is under way then is finished first.

        Raises:
            PositionMoved: somebody else took over; what was not committed is theirs.
            Misconfigured: too many bad records, or a person must act.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (
                ("prepare", self._prepare),
                ("score", self._score),
                ("finish", self._finish),
                ("commit", self._commit),
            )
        ]
        for thread in threads:
            thread.start()
        try:
            self._ends.source.subscribe(
                [self._ends.requests_topic], self._on_assigned, self._on_revoked
            )
            while not stop.is_set() and self._error is None:
                self._fetch()
            if self._error is None:
                self._drain()
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    # --- the fetching thread ---------------------------------------------------------------------

    def _fetch(self) -> None:
        """Poll once, and hand on what is due."""
        spare = self._batcher.room - RESERVE
        # A full batcher stops the fetching, unless a commit waits to hear of the group.
        records = 1 if spare < 1 and self._group_wanted.is_set() and self._batcher.room else spare
        if records > 0:
            batch = self._poll(min(records, self._policy.batch.max_size))
            if batch is not None and len(batch):
                self._batcher.add(self._insistently(lambda: self._ends.reader.read(batch)))
        else:
            self._clock.sleep(FULL_S)
        while self._may_hand_on() and (entries := self._batcher.take()):
            self._hand_on(entries)

    def _poll(self, max_records: int) -> RecordBatch | None:
        """
        The next batch, and the group's metadata for commits.

        The metadata is used only if the poll after it brought no rebalance: a member that the
        group has just thrown out gets metadata that no broker checks, and hears of it by the poll.
        """
        due_in_s = self._batcher.due_in_s()
        wait_s = IDLE_S if due_in_s is None else min(due_in_s, IDLE_S)
        if due_in_s is not None and not self._may_hand_on():
            wait_s = FULL_S  # what is due cannot leave yet: do not spin
        before, metadata = self._rebalances, self._ends.source.group_metadata()
        try:
            batch = self._ends.source.poll(max_records, wait_s)
        except Retryable as error:
            log.warning("serve.unreachable", error=str(error))
            self._clock.sleep(IDLE_S)
            return None
        if before == self._rebalances and before:
            self._group = metadata
            self._group_wanted.clear()
            self._group_given.set()
        return batch

    def _may_hand_on(self) -> bool:
        """
        Full batches wait for the next thread in its queue, others here: they still grow.

        A call costs as much for 1 row as for 30, so batches cut early would make it fall behind.
        """
        if len(self._batcher) >= self._policy.batch.max_size:
            return not self._to_prepare.full()
        return not self._unscored

    def _hand_on(self, entries: list[Entry]) -> None:
        with self._settled:
            self._under_way += len(entries)
            self._unscored += 1
        self._put(self._to_prepare, entries)

    def _insistently(self, call: Callable[[], T]) -> T:
        """A registry that does not answer makes requests wait; it loses none."""
        while not self._over.is_set() and self._error is None:
            try:
                return call()
            except Retryable as error:
                log.warning("serve.registry_unreachable", error=str(error))
                self._clock.sleep(IDLE_S)
        raise PositionMoved("stopped while the registry was unreachable")

    def _on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._rebalances += 1
        log.info("serve.assigned", partitions=[p.partition for p in partitions])
        self.assigned.set()

    def _on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish what was taken from them, while they are still ours."""
        self._rebalances += 1
        log.info("serve.revoked", partitions=[p.partition for p in partitions])
        if not self._over.is_set() and not self._drain():
            # Unfinished answers must never be committed after somebody else took over.
            self._fail(PositionMoved("a rebalance came before all answers were committed"))

    def _drain(self) -> bool:
        """Hand on all that waits, and wait until it is committed. False: it was not in time."""
        while entries := self._batcher.take(force=True):
            self._hand_on(entries)
        with self._settled:
            self._settled.wait_for(
                lambda: not self._under_way or self._error is not None, self._policy.drain_s
            )
            return not self._under_way

    # --- the threads of the steps ----------------------------------------------------------------

    def _prepare(self) -> None:
        while (entries := self._get(self._to_prepare)) is not None:
            asked = [one for one in entries if isinstance(one, Asked)]
            self._put(self._to_score, Step(entries, self._steps.prepare(asked)))

    def _score(self) -> None:
        while (step := self._get(self._to_score)) is not None:
            scored = self._steps.score(step.made)
            with self._settled:
                self._unscored -= 1
            self._put(self._to_finish, Step(step.entries, scored))

    def _finish(self) -> None:
        while (step := self._get(self._to_finish)) is not None:
            answers = self._steps.finish(step.made)
            records = self._insistently(partial(self._ends.writer.records, answers))
            self._put(self._to_commit, Step(step.entries, Written(records, answers.dead)))

    # --- the committing thread -------------------------------------------------------------------

    def _commit(self) -> None:
        while (first := self._get(self._to_commit)) is not None:
            run = [first]
            while len(run) < self._policy.commit_batches and not self._to_commit.empty():
                run.append(self._to_commit.get())
            self._commit_run(run)
            with self._settled:
                self._under_way -= sum(len(part.entries) for part in run)
                self._settled.notify_all()

    def _commit_run(self, run: Sequence[Step[Written]]) -> None:
        bad: list[Bad] = [one for part in run for one in part.entries if isinstance(one, Bad)]
        for one in [*bad, *(dead for part in run for dead in part.made.dead)]:
            self._ends.dead_letters.add(one.batch, one.index, one.rejected)
        records = [record for part in run for record in part.made.records]
        positions = {place(one): next_offset(one) for part in run for one in part.entries}
        for tries_left in reversed(range(self._policy.commit_tries)):
            try:
                self._ends.dead_letters.flush()
                self._transact(records, positions)
            except (Retryable, PositionMoved) as error:
                # A group that only counted its members again refuses the old count once. Where a
                # newer producer or member took over, `begin` or the next try says so.
                if not tries_left or self._over.is_set():
                    raise
                log.warning("serve.commit_again", error=str(error))
                self._ask_for_group()
            else:
                return

    def _ask_for_group(self) -> None:
        """Wait a while for the fetching thread to hear from the group."""
        self._group_given.clear()
        self._group_wanted.set()
        self._group_given.wait(GROUP_S)

    def _transact(self, records: Sequence[Outgoing], positions: dict[TopicPartition, int]) -> None:
        if self._group is None:
            self._ask_for_group()
        producer = next(self._producers)
        producer.begin()
        for record in records:
            producer.send(record)
        if self._group is None:
            producer.abort()
            raise PositionMoved("the group has not answered yet")
        producer.commit(positions, self._group)

    # --- between them ----------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a thread's work; its error ends the pipeline."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._settled:
            self._error = self._error or error
            self._over.set()
            self._settled.notify_all()

    def _put(self, to: queue.Queue[T], value: T) -> None:
        while not self._over.is_set():
            try:
                to.put(value, timeout=IDLE_S)
            except queue.Full:
                continue
            return

    def _get(self, of: queue.Queue[T]) -> T | None:
        """The next value; None when there is no more work."""
        while not self._over.is_set():
            try:
                return of.get(timeout=IDLE_S)
            except queue.Empty:
                continue
        return None
