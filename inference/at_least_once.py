"""The producer for those who want answers sooner."""

from __future__ import annotations

from collections.abc import Mapping

from ingest.log import GroupSource, Outgoing, Producer, TopicPartition


class AtLeastOnce:
    """
    Implements TransactionalProducer without its promise: answers, then offsets.

    A crash between the two repeats the answers of a run; `inference.answer_memory` makes sure that
    they are the same.
    """

    def __init__(self, producer: Producer, source: GroupSource, timeout_s: float) -> None:
        self._producer, self._source, self._timeout_s = producer, source, timeout_s

    def begin(self) -> None:
        """Nothing: records go as they come."""

    def send(self, record: Outgoing) -> None:
        self._producer.send(record)

    def commit(self, positions: Mapping[TopicPartition, int], group: object | None) -> None:
        self._producer.flush(self._timeout_s)
        self._source.commit(positions)

    def abort(self) -> None:
        """What was sent stays sent: its requests are read again."""

    def close(self) -> None:
        self._producer.close()
