"""What is taken from the client and then interrupted by an error is not lost."""

from __future__ import annotations

from contextlib import closing

import confluent_kafka as ck
import pytest

from ingest.kafka.consumer import Reader
from ingest.log import TopicPartition
from schemas.errors import BrokerUnavailable

NOWHERE = {"bootstrap.servers": "127.0.0.1:9", "group.id": "none", "log_level": 0}
TP = TopicPartition("t", 0)


class Interrupted:
    """A client that fails each time when more is asked for after a first message."""

    def __init__(self) -> None:
        self.offset = 0

    def consume(self, count: int, timeout: float) -> list[ck.Message]:
        if timeout == 0:
            raise ck.KafkaException(ck.KafkaError(ck.KafkaError._TRANSPORT))
        self.offset += 1
        return [
            ck.Message(topic="t", partition=0, offset=self.offset - 1, value=b"v", timestamp=(1, 0))
        ]

    def close(self) -> None:
        pass


def test_a_message_that_came_before_an_error_is_handed_out_by_the_next_poll() -> None:
    with closing(Reader(NOWHERE, 1.0)) as reader:
        reader.consumer.close()
        reader.consumer = Interrupted()
        reader.place({TP: 0})
        for offset in (0, 1):
            with pytest.raises(BrokerUnavailable):
                reader.poll(10, 0.1)
            batch = reader.poll(10, 0.1)
            assert batch is not None
            assert (batch.start_offset, batch.offsets.tolist()) == (offset, [offset])
