"""
Answers given over the network, put on the topic of recommendations: what users do with them
becomes examples, and drift is seen in them, as with those to requests of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from inference.answers import Answers
from inference.encoding import NO_HEADERS, AnswerWriter
from inference.gather import Bounds, Gatherer, Work
from ingest.log import Delivered, Headers, Producer
from ingest.metrics import Metrics
from schemas.errors import Overloaded, Rejected, Retryable

log = structlog.get_logger(__name__)

# Batches of answers. They linger so that callers have theirs before any of it is encoded, on a
# thread that shares the interpreter with those that answer, and so that many are encoded at once.
BOUNDS = Bounds(batch=16, waiting=256, linger_s=0.05)


@dataclass(frozen=True, slots=True)
class _Telling:
    """Answers to be sent, with headers of some, and who hears that they are there."""

    answers: Answers
    headers: Mapping[int, Headers]
    delivered: Callable[[], None]


class AnswerRecorder:
    """
    Sends answers behind their callers' backs. Soft: they are answered without the broker too.

    At least once, and not always: an answer that is not recorded gives no example, and is counted.
    """

    def __init__(
        self,
        writer: AnswerWriter,
        producer: Producer,
        metrics: Metrics,
        *,
        timeout_s: float,
    ) -> None:
        """`producer`: for this alone; the caller closes it."""
        self._writer = writer
        self._producer = producer
        self._metrics = metrics
        self._timeout_s = timeout_s
        work: Work[_Telling, list[None], None] = Work(first=self._sent, second=lambda made: made)
        self._gatherer = Gatherer("record", work, BOUNDS)

    def record(
        self,
        answers: Answers,
        headers: Mapping[int, Headers] = NO_HEADERS,
        delivered: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Queue them for their topic. Thread-safe.

        Args:
            headers: of some of the records, by place.
            delivered: called when all are there, from another thread.
        """
        try:
            self._gatherer.tell(_Telling(answers, headers, delivered))
        except Overloaded as error:
            self._missed(answers.n, error)

    def close(self) -> None:
        """Deliver what waits, take no more."""
        self._gatherer.close()

    def _sent(self, batches: Sequence[_Telling]) -> list[None]:
        delivered: list[Delivered] = []
        try:
            answers, headers = [one.answers for one in batches], [one.headers for one in batches]
            for record in self._writer.records_of(answers, headers):
                self._producer.send(record, delivered.append)
            self._producer.flush(self._timeout_s)
        except (Retryable, Rejected) as error:
            self._missed(sum(one.answers.n for one in batches) - len(delivered), error)
        else:
            for one in batches:
                one.delivered()
        return [None for _ in batches]

    def _missed(self, count: int, error: Exception) -> None:
        self._metrics.count("network.unrecorded", count)
        log.warning("network.unrecorded", answers=count, error=str(error))
