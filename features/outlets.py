"""Where the records of user-events go that are not folded here."""

from __future__ import annotations

from typing import Protocol

from ingest.dead_letter import DeadLetters
from ingest.log import Outgoing, Producer, RecordBatch
from schemas.errors import Rejected


class Outlets(Protocol):
    """Where records go that are not folded. `flush` returns when they are on the log."""

    def dead(self, batch: RecordBatch, index: int, rejected: Rejected) -> None: ...

    def send_on(self, record: Outgoing) -> None: ...

    def flush(self) -> None: ...


class KafkaOutlets:
    """Dead letters and misplaced records, on their topics."""

    def __init__(self, dead_letters: DeadLetters, producer: Producer, timeout_s: float) -> None:
        self._dead_letters = dead_letters
        self._producer = producer
        self._timeout_s = timeout_s
        self._sent = False

    def dead(self, batch: RecordBatch, index: int, rejected: Rejected) -> None:
        self._dead_letters.add(batch, index, rejected)
        self._sent = True

    def send_on(self, record: Outgoing) -> None:
        self._producer.send(record)
        self._sent = True

    def flush(self) -> None:
        if self._sent:
            self._dead_letters.flush()
            self._producer.flush(self._timeout_s)
            self._sent = False


class NoOutlets:
    """For a rebuild: the live worker has sent them already."""

    def dead(self, batch: RecordBatch, index: int, rejected: Rejected) -> None:
        pass

    def send_on(self, record: Outgoing) -> None:
        pass

    def flush(self) -> None:
        pass
