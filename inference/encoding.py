"""Answers as records for Kafka; one that cannot be sent becomes one that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from inference.answers import Answered, Answers
from ingest.log import Headers, Outgoing
from schemas.codec import Codec
from schemas.column_writer import ColumnWriter
from schemas.errors import Rejected
from schemas.events import Recommendation, Status
from schemas.stacked import stacked

log = structlog.get_logger(__name__)

NO_HEADERS: Final[Mapping[int, Headers]] = {}


class AnswerWriter:
    """Writes answers to their topic's format. One thread at a time."""

    def __init__(self, codec: Codec[Recommendation], max_answer_bytes: int = 900_000) -> None:
        """`max_answer_bytes`: under the broker's limit, with room for key and headers."""
        self._codec = codec
        self._columns = ColumnWriter(codec, Recommendation)
        self._max_bytes = max_answer_bytes

    def records(
        self, answers: Answers, headers: Mapping[int, Headers] = NO_HEADERS
    ) -> list[Outgoing]:
        """
        The records of a batch's answers, in the order of its requests.

        `headers`: of some of them, by place.

        Raises:
            RegistryUnavailable: the schema could not be registered.
        """
        return self.records_of([answers], [headers])

    def records_of(
        self, batches: Sequence[Answers], headers: Sequence[Mapping[int, Headers]]
    ) -> list[Outgoing]:
        """The same of several batches: in one go, which a batch of few gains most by."""
        written = self._written([part for answers in batches for _, part in answers.parts])
        found: list[Outgoing] = []
        for answers, given in zip(batches, headers, strict=True):
            own = {i: self._record(answer) for i, answer in answers.closed.items()}
            for index, _ in answers.parts:
                own.update(zip(index, next(written), strict=True))
            for i, pairs in given.items():
                own[i] = replace(own[i], headers=pairs)
            found += [own[i] for i in range(answers.n)]
        return found

    def _written(self, parts: Sequence[Answered]) -> Iterator[Sequence[Outgoing]]:
        """Each part's records: all at once; if one of them cannot be written, each by itself."""
        values = self._encoded(parts) if parts else None
        if values is None and len(parts) > 1:
            for part in parts:
                yield from self._written([part])
            return
        topic = self._codec.topic
        for part in parts:
            if values is None:
                yield [self._record(answer) for answer in part.recommendations()]
                continue
            yield [
                Outgoing(topic=topic, key=one.request.user_id.encode(), value=next(values))
                for one in part.batch.asked
            ]

    def _encoded(self, parts: Sequence[Answered]) -> Iterator[bytes] | None:
        """A value each; None: they cannot be written together."""
        if len({part.features.fingerprint for part in parts}) > 1:
            return None  # their features differ in number
        sizes = [len(part) for part in parts]
        columns = [part.columns() for part in parts]
        try:
            one = columns[0] if len(columns) == 1 else stacked(columns, sizes)
            values = self._columns.encode(one, sum(sizes))
        except Rejected:
            return None
        return None if max(map(len, values), default=0) > self._max_bytes else iter(values)

    def _record(self, answer: Recommendation) -> Outgoing:
        try:
            value = self._codec.encode(answer)
            problem = f"{len(value)} bytes" if len(value) > self._max_bytes else ""
        except Rejected as rejected:
            problem = str(rejected)
        if problem:
            log.error("serve.unsendable", request_id=answer.request_id, problem=problem)
            excuse = Recommendation(
                request_id=answer.request_id,
                user_id=answer.user_id,
                event_time=answer.event_time,
                status=Status.INVALID,
                message=f"the answer cannot be sent: {problem}; ask for fewer items",
            )
            value = self._codec.encode(excuse)
        return Outgoing(topic=self._codec.topic, key=answer.user_id.encode(), value=value)
