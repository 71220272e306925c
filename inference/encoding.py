"""Answers as records for Kafka; one that cannot be sent becomes one that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from inference.answers import Answered, Answers
from ingest.log import Headers, Outgoing
from schemas.codec import Codec
from schemas.column_writer import ColumnWriter
from schemas.errors import Rejected
from schemas.events import Recommendation, Status

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
        found = {i: self._record(answer) for i, answer in answers.closed.items()}
        for index, part in answers.parts:
            found.update(zip(index, self._part(part), strict=True))
        for i, given in headers.items():
            found[i] = replace(found[i], headers=given)
        return [found[i] for i in range(answers.n)]

    def _part(self, part: Answered) -> Sequence[Outgoing]:
        """All at once; if one of them cannot be written, each by itself."""
        try:
            values = self._columns.encode(part.columns(), len(part))
        except Rejected:
            return [self._record(answer) for answer in part.recommendations()]
        if max(map(len, values), default=0) > self._max_bytes:
            return [self._record(answer) for answer in part.recommendations()]
        topic = self._codec.topic
        return [
            Outgoing(topic=topic, key=one.request.user_id.encode(), value=value)
            for one, value in zip(part.batch.asked, values, strict=True)
        ]

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
