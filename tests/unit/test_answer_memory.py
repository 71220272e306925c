"""What was answered is answered again, word for word, as far back as memory reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from inference.answer_memory import ENTRY_BYTES, AnswerMemory, DeliveredAnswers, Name
from inference.requests import Asked
from ingest.log import Outgoing
from ingest.memory import MemoryLog, MemorySource
from ingest.reading import tail
from schemas.codec import Codec
from schemas.errors import BrokerUnavailable
from schemas.events import Recommendation, Status
from schemas.registry import MemoryRegistry
from tests.serving import World, request


@dataclass
class Delivered:
    """Answers that were delivered, by partition."""

    answers: dict[int, list[tuple[str, bytes]]] = field(default_factory=dict)

    def read(self, partitions: Sequence[int]) -> list[tuple[Name, bytes]]:
        return [((b"ann", i), v) for p in partitions for i, v in self.answers.get(p, [])]


def asked(*ids: str) -> list[Asked]:
    return World().asked(*(request("ann", request_id=i) for i in ids))


def records(*values: bytes) -> list[Outgoing]:
    return [Outgoing(topic="answers", key=b"ann", value=value) for value in values]


def told(memory: AnswerMemory, ids: Sequence[str], *values: bytes) -> list[bytes | None]:
    return [record.value for record in memory.recalled(asked(*ids), records(*values))]


def test_the_first_answer_stays() -> None:
    memory = AnswerMemory(Delivered())
    assert told(memory, ["a", "b", "a"], b"1", b"2", b"3") == [b"1", b"2", b"1"]
    assert told(memory, ["b", "c"], b"4", b"5") == [b"2", b"5"]


def test_nobody_gets_an_answer_that_was_another_users() -> None:
    memory = AnswerMemory(Delivered({0: [("a", b"of ann")]}))
    memory.learn([0])
    asked = World().asked(request("bob", request_id="a"), request("ann", request_id="a"))
    answers = [Outgoing(topic="t", key=k, value=v) for k, v in [(b"bob", b"1"), (b"ann", b"2")]]
    assert [one.value for one in memory.recalled(asked, answers)] == [b"1", b"of ann"]


def test_requests_without_an_id_repeat_nothing() -> None:
    memory = AnswerMemory(Delivered())
    assert told(memory, ["", ""], b"1", b"2") == [b"1", b"2"]
    assert len(memory) == 0


def test_what_was_delivered_before_the_partition_came_is_known() -> None:
    memory = AnswerMemory(Delivered({0: [("a", b"old")], 1: [("b", b"elsewhere")]}))
    memory.learn([0])
    assert told(memory, ["a", "b"], b"1", b"2") == [b"old", b"2"]
    memory.learn([1])
    assert told(memory, ["b"], b"3") == [b"2"]  # ours was the first that it knew of


def test_the_oldest_answers_make_room() -> None:
    memory = AnswerMemory(Delivered(), max_bytes=2 * ENTRY_BYTES + 10)
    told(memory, ["a", "b", "c"], b"12345", b"12345", b"12345")
    assert len(memory) == 2
    assert told(memory, ["c", "a"], b"x", b"y") == [b"12345", b"y"]


def test_delivered_answers_are_the_newest_of_each_partition() -> None:
    log, registry = MemoryLog(), MemoryRegistry()
    log.create_topic("answers", 3)
    codec = Codec(registry, Recommendation, "answers")
    for number in range(30):
        answer = Recommendation(
            request_id=f"r{number}", user_id="ann", event_time=1, status=Status.OK
        )
        value = codec.encode(answer)
        log.append(Outgoing(topic="answers", key=b"ann", value=value, partition=number % 2))
    found = DeliveredAnswers(log, MemorySource(log), registry, "answers").read([1, 2])
    assert [name for name, _ in found] == [(b"ann", f"r{n}") for n in range(1, 30, 2)]
    assert codec.decode(found[-1][1]).request_id == "r29"
    newest = [b.values for b in tail(log, MemorySource(log), "answers", [0, 1, 2], 2)]
    assert [codec.decode(v).request_id for values in newest for v in values] == [
        *("r26", "r28", "r27", "r29")
    ]


def test_a_topic_that_gives_nothing_is_an_error() -> None:
    class Silent(MemorySource):
        def poll(self, max_records: int, timeout_s: float) -> None:
            return None

    log = MemoryLog()
    log.create_topic("answers", 1)
    log.append(Outgoing(topic="answers", key=b"ann", value=b"x", partition=0))
    with pytest.raises(BrokerUnavailable, match=r"answers\[0\] gave nothing"):
        list(tail(log, Silent(log), "answers", [0], 5, timeout_s=0.2))
