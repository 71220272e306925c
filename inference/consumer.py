"""
Requests in, answers out, exactly once: the threads around the service.

The fetching thread polls and decodes. What it read waits until one of the threads that answer takes
a batch of it (`inference.lanes`), and one commits. A transaction holds the answers to a contiguous
run of offsets of each partition, and those offsets, in order:

1. dead letters of the run are flushed (a crash can repeat them: readers drop repeats)
2. the transaction begins, answers are sent
3. the offsets after the run join it, and it commits

What was not committed is discarded and read again from the group's offsets.

Nothing grows without bound: when as many wait as may, nothing is fetched, and the client fetches no
more than its own queue holds. A consumer that stays full pauses its partitions and still polls,
since a member that does not is taken for dead.

Producers take turns: a broker is not done with a transaction when its end is acknowledged, and
makes the same producer's next one wait.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import structlog

from inference.answers import Answers
from inference.batcher import BatchPolicy
from inference.commits import Commits, Ends, GroupWord, Step, Written
from inference.cost_model import CostModel, TogetherCost
from inference.lanes import Lanes
from inference.requests import Asked, Bad, Entry
from inference.trail import Trail
from ingest.clock import Clock
from ingest.log import (
    RecordBatch,
    TopicPartition,
)
from ingest.metrics import Metrics
from schemas.errors import PositionMoved, Retryable

log = structlog.get_logger(__name__)

T = TypeVar("T")
IDLE_S = 0.1  # how long a thread waits before it looks whether to stop
FULL_S = 0.002  # how long the fetching thread waits for room: a fraction of a batch
# A pause throws away what the client has fetched already: not for a moment's fullness.
PAUSE_AFTER_S = 1.0
# While a batch is worked on, requests gather in the client, since many are polled and read in less
# time than a few at a time; but not for so long that the last of them are read too late.
GATHER_S = 0.005
READ_S = 0.004  # for a large batch
LEAST_S = 0.001  # of a wait: do not spin


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPolicy:
    """Sizes and patience of the pipeline."""

    batch: BatchPolicy
    lanes: int = 2  # threads that answer batches
    commit_batches: int = 8  # batches in one transaction, at most
    commit_tries: int = 5
    drain_s: float = 5.0  # how long a rebalance waits for what is under way


class Steps(Protocol):
    """
    What is done with a batch: `inference.set_router.SetRouter`, or one `Service` by itself.

    What one step hands to the next is their own business. `prepare` and `score` are called by
    several threads at once, `finish` by one at a time.
    """

    def prepare(self, asked: Sequence[Asked]) -> Any: ...

    def score(self, prepared: Any) -> Any: ...

    def modelled(self, scored: Any) -> int:
        """How many of the requests a model was asked for: what the step took is for these."""

    def finish(self, scored: Any) -> Answers: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """How long the steps take. They outlive a consumer: the next one need not learn them anew."""

    prepare: CostModel
    score: CostModel
    finish: CostModel
    deliver: CostModel  # from being made to being committed

    @classmethod
    def unknown(cls, sizes: Sequence[int]) -> Costs:
        """Nothing is known yet of calls that are padded to these sizes; nothing else is padded."""
        whole = range(1, sizes[-1] + 1)
        return cls(
            prepare=CostModel(whole),
            score=CostModel(sizes),
            finish=CostModel(whole),
            deliver=CostModel(whole),
        )


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
        costs: Costs,
        metrics: Metrics,
    ) -> None:
        """`costs`: of the steps, as far as they are known from an earlier life."""
        self._ends = ends
        self._steps = steps
        self._policy = policy
        self._clock = clock
        self._costs = costs
        self._over = threading.Event()  # no more work: the threads leave
        answering = TogetherCost(costs.prepare, costs.score, costs.finish)
        self._lanes = Lanes[Entry](policy.batch, answering, clock, self._over)
        self._finishing = threading.Lock()
        self._to_commit: queue.Queue[Step[Written]] = queue.Queue(policy.commit_batches)
        self._error: BaseException | None = None
        self._settled = threading.Condition()
        self._under_way = 0  # entries read and not yet committed
        self._rebalances = 0
        self._told_at = 0  # the rebalance after which the group's metadata was passed on
        self._full_since_s: float | None = None
        self._group = GroupWord()
        self._trail = ends.trail or Trail(clock, metrics)
        self._commits = Commits(ends, self._group, policy.commit_tries, self._over, metrics)
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
                *(("answer", self._answer),) * self._policy.lanes,
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
        """Poll once, and let what came wait."""
        room = self._lanes.room
        # Without room nothing is fetched, unless a commit waits to hear of the group.
        if room or self._group.wanted or self._long_full():
            batch = self._poll(min(room, self._policy.batch.max_size))
            if batch is not None and len(batch):
                entries = self._insistently(lambda: self._ends.reader.read(batch))
                with self._settled:
                    self._under_way += len(entries)
                self._lanes.add(entries, self._due_by())
        else:
            self._clock.sleep(FULL_S)
        self._trail.look(self._ends.source)

    def _long_full(self) -> bool:
        """Whether there has been no room for long."""
        now_s = self._clock.monotonic_s()
        if self._full_since_s is None:
            self._full_since_s = now_s
        return now_s - self._full_since_s >= PAUSE_AFTER_S

    def _poll(self, max_records: int) -> RecordBatch | None:
        """
        The next batch, and after a rebalance the group's metadata for commits.

        The metadata is used only if the poll after it brought no rebalance: a member that the
        group has just thrown out gets metadata that no broker checks, and hears of it by the poll.
        """
        if max_records:
            self._full_since_s = None
            self._gather()
        before = self._rebalances
        wanted = self._told_at != before or self._group.wanted
        metadata = self._ends.source.group_metadata() if wanted else None  # takes 0.2 ms
        try:
            batch = self._ends.source.poll(max_records, IDLE_S)
        except Retryable as error:
            log.warning("serve.unreachable", error=str(error))
            self._clock.sleep(IDLE_S)
            return None
        if metadata is not None and before == self._rebalances:
            self._told_at = before
            self._group.tell(metadata)
        return batch

    def _gather(self) -> None:
        """Wait while nothing that comes could be taken yet."""
        spare_s = min(self._lanes.free_in_s() - READ_S, GATHER_S)
        if spare_s > LEAST_S:
            self._clock.sleep(spare_s)

    def _due_by(self) -> Callable[[Entry], float | None]:
        """
        When an entry that came now must be answered, on the monotonic clock: by its deadline, or
        else by the objective, both counted from Kafka's timestamp. None: a bad one, at leisure.

        Early enough to be committed by then: nobody sees an answer sooner.
        """
        now_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        deliver_s = self._costs.deliver.predict(1)
        objective_s = self._policy.batch.objective_s

        def due_s(entry: Entry) -> float | None:
            if isinstance(entry, Bad):
                return None
            passed_s = (now_ms - entry.timestamp_ms) / 1000
            given_ms = entry.request.deadline_ms
            if given_ms is None:  # a clock that is ahead gives nobody more time
                return now_s + objective_s - max(0.0, passed_s) - deliver_s
            return now_s + given_ms / 1000 - passed_s - deliver_s

        return due_s

    def _insistently(self, call: Callable[[], T]) -> T:
        """A registry or broker that does not answer makes requests wait; it loses none."""
        while not self._over.is_set() and self._error is None:
            try:
                return call()
            except Retryable as error:
                log.warning("serve.unreachable", error=str(error))
                self._clock.sleep(IDLE_S)
        raise self._error or PositionMoved(
            "stopped while the registry or the broker was unreachable"
        )

    def _on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._rebalances += 1
        log.info("serve.assigned", partitions=[p.partition for p in partitions])
        memory, places = self._ends.memory, [p.partition for p in partitions]
        if memory is not None:
            self._insistently(lambda: memory.learn(places))
        self.assigned.set()

    def _on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Finish what was taken from them, while they are still ours."""
        self._rebalances += 1
        log.info("serve.revoked", partitions=[p.partition for p in partitions])
        if not self._over.is_set() and not self._drain():
            # Unfinished answers must never be committed after somebody else took over.
            self._fail(PositionMoved("a rebalance came before all answers were committed"))

    def _drain(self) -> bool:
        """Let all that waits be answered, and wait until it is committed. False: not in time."""
        self._lanes.force(True)
        try:
            with self._settled:
                self._settled.wait_for(
                    lambda: not self._under_way or self._error is not None, self._policy.drain_s
                )
                return not self._under_way
        finally:
            self._lanes.force(False)

    # --- the answering threads -------------------------------------------------------------------

    def _answer(self) -> None:
        while (turn := self._lanes.begin()) is not None:
            self._trail.dispatched(turn.values, turn.cause)
            asked = [one for one in turn.values if isinstance(one, Asked)]
            written = self._written(asked, turn.since_s)
            if not self._lanes.done(turn):
                return
            if self._ends.memory is not None:
                records = self._ends.memory.recalled(asked, written.records)
                written = replace(written, records=records)
            self._hand_on(Step(turn.values, written))
            self._lanes.leave()

    def _written(self, asked: Sequence[Asked], since_s: float) -> Written:
        """The answers to a batch that was begun `since_s`; learns what its steps take."""
        steps, costs, clock = self._steps, self._costs, self._clock
        prepared = steps.prepare(asked)
        prepared_s = clock.monotonic_s()
        scored = steps.score(prepared)
        scored_s = clock.monotonic_s()
        with self._finishing:
            answers = steps.finish(scored)
            headers = self._trail.answered(asked, answers)
            records = self._insistently(partial(self._ends.writer.records, answers, headers))
        made_s = clock.monotonic_s()
        if asked:
            costs.prepare.observe(len(asked), prepared_s - since_s)
            costs.finish.observe(len(asked), made_s - scored_s)
        if rows := steps.modelled(scored):
            costs.score.observe(rows, scored_s - prepared_s)
        return Written(records, answers.dead, made_s)

    # --- the committing thread -------------------------------------------------------------------

    def _commit(self) -> None:
        while (first := self._next_made()) is not None:
            run = [first]
            while len(run) < self._policy.commit_batches and not self._to_commit.empty():
                run.append(self._to_commit.get())
            since_s = self._clock.monotonic_s()
            self._commits.commit(run)
            self._trail.committed(run, since_s)
            now_s = self._clock.monotonic_s()
            for part in run:
                self._costs.deliver.observe(len(part.entries), now_s - part.made.made_s)
            with self._settled:
                self._under_way -= sum(len(part.entries) for part in run)
                self._settled.notify_all()

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

    def _hand_on(self, step: Step[Written]) -> None:
        while not self._over.is_set():
            try:
                self._to_commit.put(step, timeout=IDLE_S)
            except queue.Full:
                continue
            return

    def _next_made(self) -> Step[Written] | None:
        """None when there is no more work."""
        while not self._over.is_set():
            try:
                return self._to_commit.get(timeout=IDLE_S)
            except queue.Empty:
                continue
        return None
