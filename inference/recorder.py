"""
Answers given over the network, put on the topic of recommendations: what users do with them
becomes examples, and drift is seen in them, as with those to requests of the log.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from inference.answers import Answers
from inference.encoding import AnswerWriter
from inference.gather import Bounds, Gatherer, Work
from ingest.log import Delivered, Producer
from ingest.metrics import Metrics
from schemas.errors import Overloaded, Rejected, Retryable

log = structlog.get_logger(__name__)

BOUNDS = Bounds(batch=16, waiting=256)  # batches of answers


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
        work: Work[Answers, list[None], None] = Work(first=self._sent, second=lambda made: made)
        self._gatherer = Gatherer("record", work, BOUNDS)

    def record(self, answers: Answers) -> None:
        """Queue them for their topic. Thread-safe."""
        try:
            self._gatherer.tell(answers)
        except Overloaded as error:
            self._missed(answers.n, error)

    def close(self) -> None:
        """Deliver what waits, take no more."""
        self._gatherer.close()

    def _sent(self, batches: Sequence[Answers]) -> list[None]:
        delivered: list[Delivered] = []
        try:
            for answers in batches:
                for record in self._writer.records(answers):
                    self._producer.send(record, delivered.append)
            self._producer.flush(self._timeout_s)
        except (Retryable, Rejected) as error:
            self._missed(sum(answers.n for answers in batches) - len(delivered), error)
        return [None for _ in batches]

    def _missed(self, count: int, error: Exception) -> None:
        self._metrics.count("network.unrecorded", count)
        log.warning("network.unrecorded", answers=count, error=str(error))
