"""Writing: idempotent, acknowledged by all in-sync replicas, placed by murmur2."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import confluent_kafka as ck

from ingest.clock import Clock, SystemClock
from ingest.kafka.client import Options, client_settings, library_partitions, mapped, mapping
from ingest.log import Delivered, Outgoing, TopicPartition
from schemas.errors import BrokerUnavailable, MillstreamError, PositionMoved, Reason, Rejected

OnDelivered = Callable[[Delivered], None]
# A broker refuses a whole produce batch for one record dated more than an hour ahead; the margin
# is for its clock.
MAX_AHEAD_MS = 3_540_000
# Serving delivery reports gives the interpreter's lock away: not after every record.
SENDS_A_POLL = 64
FULL_QUEUE_WAIT_S = 0.05


def _producer_settings(max_record_bytes: int, send_timeout_s: float) -> dict[str, Any]:
    return {
        "enable.idempotence": True,
        "acks": "all",
        # Two requests of a partition under way lose records: when the first is refused and the
        # second is not, librdkafka takes both for delivered. A broker takes the second when it has
        # not heard of the producer, as on a new partition (confluent-kafka-go, issue 921).
        "max.in.flight.requests.per.connection": 1,
        # Kafka's own hash; librdkafka's default is another (law 2).
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "linger.ms": 2,
        # Bounded: a producer that outruns the broker waits in `send`.
        "queue.buffering.max.messages": 100_000,
        "queue.buffering.max.kbytes": 65_536,
        "message.max.bytes": max_record_bytes,
        "delivery.timeout.ms": int(send_timeout_s * 1000),
    }


class _Sender:
    """Puts records into the library's queue, and waits while that is full."""

    def __init__(self, producer: ck.Producer, timeout_s: float, clock: Clock) -> None:
        self._producer = producer
        self._timeout_s = timeout_s
        self._clock = clock

    def send(self, record: Outgoing, report: Callable[..., None] | None) -> None:
        # As the library's positional arguments: a dictionary by name costs as much as the call.
        fields = (
            record.value,
            record.key,
            -1 if record.partition is None else record.partition,
            report,
            report,  # its two names; an explicit None as the first would hide the second
            0 if record.timestamp_ms is None else self._checked(record.timestamp_ms),
            list(record.headers) or None,
        )
        try:
            self._producer.produce(record.topic, *fields)
        except BufferError:
            self._send_when_there_is_room(record.topic, fields)
        except ck.KafkaException as error:
            raise mapped(error.args[0], f"send to {record.topic}") from error

    def _send_when_there_is_room(self, topic: str, fields: tuple[Any, ...]) -> None:
        end = self._clock.monotonic_s() + self._timeout_s
        while self._clock.monotonic_s() < end:
            self._producer.poll(FULL_QUEUE_WAIT_S)
            try:
                with mapping(f"send to {topic}"):
                    self._producer.produce(topic, *fields)
            except BufferError:
                continue
            return
        raise BrokerUnavailable(f"the queue to {topic} stayed full for {self._timeout_s:g} s")

    def _checked(self, timestamp_ms: int) -> int:
        ahead_ms = timestamp_ms - self._clock.now_ms()
        if ahead_ms > MAX_AHEAD_MS:
            minutes = ahead_ms / 60_000
            detail = f"timestamp {timestamp_ms} is {minutes:.0f} minutes ahead; Kafka takes 60"
            raise Rejected(Reason.IN_FUTURE, detail)
        return timestamp_ms


class KafkaProducer:
    """
    `Producer`. Thread-safe. Delivery callbacks run inside `send` and `flush`.

    What was not delivered is told by the next `flush`, once: then send it again, or stop.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        timeout_s: float = 10.0,
        send_timeout_s: float = 30.0,
        max_record_bytes: int = 1_000_000,
        clock: Clock | None = None,
        options: Options | None = None,
    ) -> None:
        settings = client_settings(bootstrap_servers, timeout_s)
        settings |= _producer_settings(max_record_bytes, send_timeout_s) | dict(options or {})
        with mapping("open a producer"):
            self._producer = ck.Producer(settings)
        self._timeout_s = timeout_s
        self._sender = _Sender(self._producer, send_timeout_s, clock or SystemClock())
        self._sent = itertools.count(1)
        self._lost = 0
        self._first: MillstreamError | None = None
        self._closed = False

    def send(self, record: Outgoing, on_delivered: OnDelivered | None = None) -> None:
        report = self._note if on_delivered is None else self._telling(on_delivered)
        self._sender.send(record, report)
        if next(self._sent) % SENDS_A_POLL == 0:
            self._producer.poll(0)

    def flush(self, timeout_s: float) -> None:
        with mapping("flush"):
            left = self._producer.flush(timeout_s)
        if self._first is not None:
            lost, first = self._lost, self._first
            self._lost, self._first = 0, None
            if lost > 1:
                raise BrokerUnavailable(f"{lost} records were not delivered; one of them: {first}")
            raise first
        if left:
            raise BrokerUnavailable(f"{left} records were not delivered within {timeout_s:g} s")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(ck.KafkaException):
            self._producer.flush(self._timeout_s)
            self._producer.purge()
            self._producer.close()

    def _note(self, error: ck.KafkaError | None, message: ck.Message) -> None:
        if error is not None:
            self._lost += 1
            self._first = self._first or mapped(error, f"deliver to {message.topic()}")

    def _telling(self, on_delivered: OnDelivered) -> Callable[..., None]:
        def report(error: ck.KafkaError | None, message: ck.Message) -> None:
            if error is not None:
                self._note(error, message)
                return
            place: Any = (message.topic(), message.partition(), message.offset())
            on_delivered(Delivered(*place))

        return report


class KafkaTransactionalProducer:
    """
    `TransactionalProducer`. One thread at a time.

    A commit whose outcome cannot be learned in time raises PositionMoved: open a new producer of
    the same id, which settles it one way or the other, and ask where to resume.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        transactional_id: str,
        *,
        timeout_s: float = 10.0,
        max_record_bytes: int = 1_000_000,
        clock: Clock | None = None,
        options: Options | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._timeout_s = timeout_s
        self._id = transactional_id
        self._closed = False
        settings = client_settings(bootstrap_servers, timeout_s)
        settings |= _producer_settings(max_record_bytes, timeout_s)
        settings |= {
            "transactional.id": transactional_id,
            # What a dead producer left open hides everything after it for this long, unless the
            # next producer of its id comes first.
            "transaction.timeout.ms": max(10_000, int(timeout_s * 1000)),
            # The default of 100 ms makes back-to-back transactions take 100 ms; so 9 ms.
            "retry.backoff.ms": 1,
        }
        with mapping(f"open the producer {transactional_id}"):
            self._producer = ck.Producer(settings | dict(options or {}))
        self._sender = _Sender(self._producer, timeout_s, self._clock)
        self._insist("start", self._producer.init_transactions)

    def begin(self) -> None:
        self._step("begin", self._producer.begin_transaction)

    def send(self, record: Outgoing) -> None:
        self._sender.send(record, None)

    def commit(self, positions: Mapping[TopicPartition, int], group: object | None) -> None:
        if group is not None and positions:
            offsets = library_partitions(positions)
            self._insist(
                "send offsets",
                lambda left: self._producer.send_offsets_to_transaction(offsets, group, left),
            )
        self._insist("commit", self._producer.commit_transaction, last=True)

    def abort(self) -> None:
        self._insist("abort", self._producer.abort_transaction, last=True)

    def close(self) -> None:
        """An open transaction is left to be aborted by the next producer of this id."""
        if not self._closed:
            self._closed = True
            # One that was fenced says so again: nothing to be done about it here.
            with suppress(ck.KafkaException):
                self._producer.purge()
                self._producer.close()

    def _step(self, doing: str, call: Callable[[], None]) -> None:
        try:
            call()
        except ck.KafkaException as error:
            self._fail(error, doing)

    def _insist(self, doing: str, call: Callable[[float], None], *, last: bool = False) -> None:
        """Repeat a call that the library calls retriable until it is done or time is up."""
        end = self._clock.monotonic_s() + self._timeout_s
        while True:
            try:
                call(max(0.1, end - self._clock.monotonic_s()))
            except ck.KafkaException as error:
                retriable = error.args[0].retriable()
                if retriable and self._clock.monotonic_s() < end:
                    continue
                if retriable and last:
                    raise PositionMoved(
                        f"{doing} {self._id}: no outcome within {self._timeout_s:g} s "
                        f"({error.args[0].str()}): open the producer anew"
                    ) from error
                self._fail(error, doing)
            return

    def _fail(self, error: ck.KafkaException, doing: str) -> None:
        """Raise ours; where the transaction can only be aborted, abort it first."""
        cause = error.args[0]
        ours = mapped(cause, f"{doing} {self._id}")
        if cause.fatal() and not isinstance(ours, PositionMoved):
            raise PositionMoved(f"{ours}: open the producer anew") from error
        if cause.txn_requires_abort() and doing != "abort":
            self.abort()
        raise ours from error
