"""
Answers given over the network, put on the topic of recommendations: what users do with them
becomes examples, and drift is seen in them, as with those to requests of the log.
"""

from __future__ import annotations

import threading

import structlog

from inference.answers import Answers
from inference.encoding import AnswerWriter
from ingest.log import Producer
from ingest.metrics import Metrics
from schemas.errors import Rejected, Retryable

log = structlog.get_logger(__name__)


class AnswerRecorder:
    """Sends answers as they are made. Soft: the caller is answered without the broker too."""

    def __init__(self, writer: AnswerWriter, producer: Producer, metrics: Metrics) -> None:
        """The caller closes the producer, which delivers what is under way."""
        self._writer = writer
        self._producer = producer
        self._metrics = metrics
        self._writing = threading.Lock()

    def record(self, answers: Answers) -> None:
        """Queue them for their topic; what cannot be recorded is counted. Thread-safe."""
        try:
            with self._writing:
                records = self._writer.records(answers)
            for record in records:
                self._producer.send(record)
        except (Retryable, Rejected) as error:
            self._metrics.count("network.unrecorded", answers.n)
            log.warning("network.unrecorded", answers=answers.n, error=str(error))
