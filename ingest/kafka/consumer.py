"""Reading: batches of one partition, cut from what librdkafka hands over."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from types import NoneType
from typing import Any, Final

import confluent_kafka as ck
import numpy as np
from numpy.typing import NDArray

from ingest.batches import Columns, empty, groups, part
from ingest.kafka.client import (
    Options,
    client_settings,
    library_partitions,
    mapped,
    mapping,
)
from ingest.log import Headers, RecordBatch, TopicPartition
from schemas.errors import BrokerUnavailable, MillstreamError, Misconfigured

_EOF = ck.KafkaError._PARTITION_EOF


class Reader:
    """A consumer's positions, and the batches that it has cut and not yet handed out."""

    def __init__(self, settings: dict[str, Any], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._down: ck.KafkaError | None = None
        self._fault: MillstreamError | None = None
        self._fatal: Misconfigured | None = None
        self._pending: deque[RecordBatch] = deque()
        self._seen: set[str] = set()  # topics known to be there
        self._paused: set[TopicPartition] = set()
        self.positions: dict[TopicPartition, int] = {}
        with mapping("open a consumer"):
            self.consumer = ck.Consumer({**settings, "error_cb": self._on_error})

    def place(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read these too, from there."""
        self.positions.update(positions)

    def drop(self, partitions: Sequence[TopicPartition]) -> None:
        """Forget these: no batch of theirs comes out any more."""
        gone = set(partitions)
        for tp in gone:
            self.positions.pop(tp, None)
        self._paused -= gone
        self._pending = deque(
            b for b in self._pending if TopicPartition(b.topic, b.partition) not in gone
        )
        self._fault = None

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        self._pause(set() if max_records else set(self.positions))
        if not max_records:
            self._fetch(1, timeout_s)  # serves the group; a record that was under way is kept
            return None
        if not self._pending:
            self._fetch(max_records, timeout_s)
        if not self._pending:
            return None
        batch = self._pending.popleft()
        if len(batch) > max_records:
            self._pending.appendleft(part(batch, max_records, len(batch)))
            return part(batch, 0, max_records)
        return batch

    def unread(self) -> dict[TopicPartition, int]:
        """How far each partition's position is behind its end, as the last fetches told."""
        found = {}
        for tp, position in self.positions.items():
            try:
                _, end = self.consumer.get_watermark_offsets(ck.TopicPartition(*tp), cached=True)
            except ck.KafkaException:  # the client has not heard of it yet
                continue
            if end >= 0:  # else it was never fetched from
                found[tp] = max(0, end - position)
        for batch in self._pending:  # cut, and not handed out
            tp = TopicPartition(batch.topic, batch.partition)
            if tp in found:
                found[tp] += batch.next_offset - batch.start_offset
        return found

    def close(self) -> None:
        self._pending.clear()
        with mapping("close the consumer"):
            self.consumer.close()

    def _pause(self, wanted: set[TopicPartition]) -> None:
        """Fetch nothing of these, and all of the others."""
        if wanted == self._paused:
            return
        with mapping("pause"):
            self.consumer.resume([ck.TopicPartition(*tp) for tp in self._paused - wanted])
            self.consumer.pause([ck.TopicPartition(*tp) for tp in wanted - self._paused])
        self._paused = wanted

    def _fetch(self, max_records: int, timeout_s: float) -> None:
        if self._fatal is not None:
            raise self._fatal
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        with mapping("poll"):
            # `consume(n, wait)` would block for the whole wait unless n records came.
            first = self.consumer.consume(1, timeout_s)
        if first:
            self._down = None
            with uncollected():
                self._drain(first, max_records - 1)
        else:
            self._nothing_came()

    def _drain(self, first: list[ck.Message], more: int) -> None:
        """Take in what is there by now. All messages are given up when this returns."""
        messages = first
        try:
            if more > 0:
                with mapping("poll"):
                    messages = first + self.consumer.consume(more, 0)
        finally:  # the client has moved over the first, whatever becomes of the others
            self._take_in(messages)

    def _take_in(self, messages: list[ck.Message]) -> None:
        errors = list(map(ck.Message.error, messages))
        ends: dict[TopicPartition, int] = {}
        # By type: the library's errors cannot be compared with None.
        if {*map(type, errors)} != {NoneType}:
            ends = self._events(messages, errors)
            messages = [m for m, e in zip(messages, errors, strict=True) if e is None]
        batches = self._cut(messages) if messages else []
        for batch in batches:
            tp = TopicPartition(batch.topic, batch.partition)
            self.positions[tp] = batch.next_offset
            self._seen.add(tp.topic)
            self._pending.append(batch)
        for tp, end in ends.items():
            start = self.positions.get(tp, end)
            if start < end:  # transaction markers, or aborted records, before the end
                self.positions[tp] = end
                self._pending.append(empty(tp, start, end))

    def _cut(self, messages: list[ck.Message]) -> Iterator[RecordBatch]:
        # Column by column through C: each Python step a record would cost as much as the record.
        n = len(messages)
        timestamps = chain.from_iterable(map(ck.Message.timestamp, messages))  # (kind, ms) each
        headers = list(map(ck.Message.headers, messages))
        columns = Columns(
            np.fromiter(map(ck.Message.offset, messages), np.int64, n),
            np.fromiter(timestamps, np.int64, 2 * n)[1::2].copy(),
            list(map(ck.Message.key, messages)),
            list(map(ck.Message.value, messages)),
            {}
            if headers.count(None) == n
            else {i: _headers(h) for i, h in enumerate(headers) if h is not None},
        )
        partitions: list[Any] = list(map(ck.Message.partition, messages))
        topics: list[Any] | None = None
        if self._several_topics():
            topics = list(map(ck.Message.topic, messages))
        for tp, index in _by_partition(topics, partitions, messages):
            start = self.positions.get(tp)
            if start is None:  # revoked while these were under way
                continue
            yield columns.batch(tp, start, index)

    def _several_topics(self) -> bool:
        return len({tp.topic for tp in self.positions}) > 1

    def _events(
        self, messages: list[ck.Message], errors: list[ck.KafkaError | None]
    ) -> dict[TopicPartition, int]:
        """Ends that were reached. A true error is raised by the next poll that finds no batch."""
        ends = {}
        for message, error in zip(messages, errors, strict=True):
            if error is None:
                continue
            tp = TopicPartition(message.topic() or "", message.partition() or 0)
            if error.code() == _EOF:
                ends[tp] = message.offset() or 0
            elif error.code() == ck.KafkaError._FATAL:
                self._on_error(error)
            else:
                place = f"poll {tp.topic}[{tp.partition}] at {self.positions.get(tp)}"
                self._fault = mapped(error, place)
        return ends

    def _nothing_came(self) -> None:
        """Say why, if there is a reason: a topic that is not there gives no error by itself."""
        for topic in {tp.topic for tp in self.positions} - self._seen:
            with mapping(f"look for topic {topic}"):
                found = self.consumer.list_topics(topic, self._timeout_s).topics[topic]
            if found.error is not None:
                raise BrokerUnavailable(f"topic {topic} is not there (yet): {found.error.str()}")
            wanted = {tp.partition for tp in self.positions if tp.topic == topic}
            if not wanted <= found.partitions.keys():
                raise Misconfigured(
                    f"topic {topic} has {len(found.partitions)} partitions, asked for {wanted}"
                )
            self._seen.add(topic)
        if self._down is not None:
            down, self._down = self._down, None
            raise mapped(down, "poll")

    def _on_error(self, error: ck.KafkaError) -> None:
        if error.code() == ck.KafkaError._ALL_BROKERS_DOWN:
            self._down = error
        elif error.code() == ck.KafkaError._FATAL:
            # A consumer has one: another member has taken its instance id. It reads no more.
            self._fatal = Misconfigured(
                f"another process has taken this member's place in its group: {error.str()}. "
                "Stop one of the two, or give each an --instance of its own"
            )
        elif error.code() == ck.KafkaError._AUTHENTICATION:
            self._fault = mapped(error, "poll")


@contextmanager
def uncollected() -> Iterator[None]:
    """
    No search for garbage in here.

    Thousands of new messages would set off dozens of searches, and none of them is garbage: a third
    of the time that reading takes.
    """
    wanted = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if wanted:
            gc.enable()


def _by_partition(
    topics: list[str] | None, partitions: list[int], messages: list[ck.Message]
) -> Iterator[tuple[TopicPartition, NDArray[np.int64] | None]]:
    if topics is None or len(set(topics)) == 1:
        topic = str(messages[0].topic())
        for partition, index in groups(partitions):
            yield TopicPartition(topic, partition), index
        return
    pairs = list(zip(topics, partitions, strict=True))
    codes = {pair: code for code, pair in enumerate(sorted(set(pairs)))}
    names = list(codes)
    for code, index in groups([codes[pair] for pair in pairs]):
        yield TopicPartition(*names[code]), index


def _headers(found: Any) -> Headers:
    return tuple((name, value or b"") for name, value in found)


def consumer_settings(read_committed: bool) -> dict[str, Any]:
    """What all our consumers have in common, for librdkafka."""
    return {
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,  # the position moves over markers at the end
        "auto.offset.reset": "error",  # a position outside the log is never guessed around
        "isolation.level": "read_committed" if read_committed else "read_uncommitted",
        "allow.auto.create.topics": False,
        # How long an idle fetch hangs; a seek waits for it.
        "fetch.wait.max.ms": 100,
        # A full queue is looked at again after 10 ms, not after a second: it empties in 50.
        "fetch.queue.backoff.ms": 10,
        "queued.max.messages.kbytes": 65_536,
    }


# For readers that need not be quick: few large answers to a fetch instead of many small ones, of
# which each costs the broker and the reader about the same.
GATHERED: Final[Options] = {"fetch.min.bytes": 131_072, "fetch.wait.max.ms": 800}


class KafkaSource:
    """`Source` on a consumer that is told what to read; no group decides."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        timeout_s: float = 10.0,
        read_committed: bool = True,
        group_id: str = "millstream",
        options: Options | None = None,
    ) -> None:
        settings = client_settings(bootstrap_servers, timeout_s)
        settings |= consumer_settings(read_committed) | {"group.id": group_id, **(options or {})}
        self._reader = Reader(settings, timeout_s)
        self._closed = False

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._reader.drop(list(self._reader.positions))
        self._reader.place(positions)
        with mapping("assign"):
            self._reader.consumer.assign(library_partitions(positions))

    def poll(self, max_records: int, timeout_s: float) -> RecordBatch | None:
        return self._reader.poll(max_records, timeout_s)

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Show positions to lag dashboards. Does not wait; nothing reads them back."""
        with mapping("commit"):
            self._reader.consumer.commit(offsets=library_partitions(positions), asynchronous=True)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._reader.close()
