"""
Repeated requests get the answer that was given: for delivery at least once.

After a crash the group's offsets stand before answers that were delivered already. Their requests
are read again, and so are requests that a client repeats. Scored again they could be answered
otherwise, since the user's row has moved on. So what was answered lately is kept, by user and id,
and read back from the topic of answers whenever a partition is assigned.

By user too, since ids are made by clients: nobody may get an answer that was another user's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol, TypeAlias

from inference.requests import Asked
from ingest.log import Log, Outgoing, Source
from ingest.reading import tail
from schemas.columns import ColumnReader
from schemas.events import Recommendation
from schemas.registry import Registry

# Of each partition: more than a commit's run can hold, so none of an unfinished run is missed.
TAIL: Final = 4_096
MAX_BYTES: Final = 64 * 2**20
ENTRY_BYTES: Final = 400  # of an answer in memory beside its text: a name, three strings, a slot


# Of a request: the user, and its id. A plain tuple: those of strings alone are left out of the
# search for garbage; named ones are looked through again and again, and there are ten thousands.
Name: TypeAlias = tuple[bytes | None, str]


class Answered(Protocol):
    """Where answers are found that were delivered."""

    def read(self, partitions: Sequence[int]) -> list[tuple[Name, bytes]]:
        """Names and answers of the newest TAIL records of each partition, oldest first."""


class DeliveredAnswers:
    """Reads them from their topic."""

    def __init__(self, log: Log, source: Source, registry: Registry, topic: str) -> None:
        self._log, self._source, self._topic = log, source, topic
        self._reader = ColumnReader(registry, Recommendation)

    def read(self, partitions: Sequence[int]) -> list[tuple[Name, bytes]]:
        """
        As `Answered.read`.

        Raises:
            BrokerUnavailable: the topic could not be read to its end.
        """
        found: list[tuple[Name, bytes]] = []
        for batch in tail(self._log, self._source, self._topic, partitions, TAIL):
            decoded = self._reader.read(batch.values, ("request_id",))
            ids = decoded.frame["request_id"].to_list()
            for at, request_id in zip(decoded.index.tolist(), ids, strict=True):
                if (value := batch.values[at]) is not None:
                    found.append(((batch.keys[at], request_id), value))
        return found


class AnswerMemory:
    """
    The newest answers by user and request id, up to `max_bytes`; one thread learns, one recalls.

    It holds what this process answered and, of each partition, what was delivered before it was
    assigned. A request that is repeated later than that, or that has no id, is scored anew.
    """

    def __init__(self, delivered: Answered, max_bytes: int = MAX_BYTES) -> None:
        self._delivered = delivered
        self._max_bytes = max_bytes
        self._answers: OrderedDict[Name, bytes] = OrderedDict()
        self._bytes = 0
        self._learnt: list[tuple[Name, bytes]] = []

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
        for name, value in learnt:
            self._keep(name, value)
        found = []
        for one, record in zip(asked, records, strict=True):
            name = (record.key, one.request.request_id)
            known = self._answers.get(name)
            if known is None and record.value is not None:
                self._keep(name, record.value)
                known = record.value
            found.append(record if known is record.value else replace(record, value=known))
        return found

    def _keep(self, name: Name, value: bytes) -> None:
        """The first answer stays; the oldest make room."""
        if name in self._answers or not name[1]:
            return
        self._answers[name] = value
        self._bytes += ENTRY_BYTES + len(value)
        while self._bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= ENTRY_BYTES + len(oldest)
