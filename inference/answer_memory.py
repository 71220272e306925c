"""
Repeated requests get the answer that was given: for delivery at least once.

After a crash the group's offsets stand before answers that were delivered already. Their requests
are read again, and so are requests that a client repeats. Scored again they could be answered
otherwise, since the user's row has moved on. So what was answered lately is kept by request id, and
read back from the topic of answers whenever a partition is assigned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

from inference.requests import Asked
from ingest.log import Log, Outgoing, Source
from ingest.reading import tail
from schemas.columns import ColumnReader
from schemas.events import Recommendation
from schemas.registry import Registry

# Of each partition: more than a commit's run can hold, so none of an unfinished run is missed.
TAIL: Final = 4_096
MAX_BYTES: Final = 64 * 2**20


class Answered(Protocol):
    """Where answers are found that were delivered."""

    def read(self, partitions: Sequence[int]) -> list[tuple[str, bytes]]:
        """Request ids and answers of the newest TAIL records of each partition, oldest first."""


class DeliveredAnswers:
    """Reads them from their topic."""

    def __init__(self, log: Log, source: Source, registry: Registry, topic: str) -> None:
        self._log, self._source, self._topic = log, source, topic
        self._reader = ColumnReader(registry, Recommendation)

    def read(self, partitions: Sequence[int]) -> list[tuple[str, bytes]]:
        """
        As `Answered.read`.

        Raises:
            BrokerUnavailable: the topic could not be read to its end.
        """
        found: list[tuple[str, bytes]] = []
        for batch in tail(self._log, self._source, self._topic, partitions, TAIL):
            decoded = self._reader.read(batch.values, ("request_id",))
            values = [batch.values[at] for at in decoded.index.tolist()]
            ids = decoded.frame["request_id"].to_list()
            found += [(i, v) for i, v in zip(ids, values, strict=True) if v is not None]
        return found


class AnswerMemory:
    """
    The newest answers by request id, up to `max_bytes` of them; one thread learns, one recalls.

    It holds what this process answered and, of each partition, what was delivered before it was
    assigned. A request that is repeated later than that is scored anew.
    """

    def __init__(self, delivered: Answered, max_bytes: int = MAX_BYTES) -> None:
        self._delivered = delivered
        self._max_bytes = max_bytes
        self._answers: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._learnt: list[tuple[str, bytes]] = []

    def __len__(self) -> int:
        return len(self._answers)

    def learn(self, partitions: Sequence[int]) -> None:
        """
        Read what was delivered for these.

        Raises:
            BrokerUnavailable: it could not be read.
        """
        found = self._delivered.read(partitions)
        # Taken in by the thread that recalls; a list is exchanged as a whole.
        self._learnt = [*self._learnt, *found]

    def recalled(self, asked: Sequence[Asked], records: Sequence[Outgoing]) -> list[Outgoing]:
        """The answers `records` to `asked`, those that were given already as they were."""
        learnt, self._learnt = self._learnt, []
        for request_id, value in learnt:
            self._keep(request_id, value)
        found = []
        for one, record in zip(asked, records, strict=True):
            known = self._answers.get(one.request.request_id)
            if known is None and record.value is not None:
                self._keep(one.request.request_id, record.value)
                known = record.value
            found.append(record if known is record.value else replace(record, value=known))
        return found

    def _keep(self, request_id: str, value: bytes) -> None:
        """The first answer stays; the oldest make room."""
        if request_id in self._answers:
            return
        self._answers[request_id] = value
        self._bytes += len(value)
        while self._bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= len(oldest)
