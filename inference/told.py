"""What callers over the network are told of an answer: no features, which stay on the log."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET, Struct, UnsetType

from inference.answers import Answered, Answers
from schemas.errors import Reason, Rejected
from schemas.events import Recommendation, Status


class ItemAnswer(Struct):
    """One recommended item."""

    item_id: str
    score: float
    title: str | UnsetType = UNSET


class LatencyAnswer(Struct):
    """Microseconds of each stage."""

    queue: int
    read: int
    assemble: int
    score: int


class RecommendAnswer(Struct):
    """The answer, and what it was made from."""

    request_id: str
    user_id: str
    event_time: int
    status: str
    items: list[ItemAnswer]
    model_name: str
    model_version: int
    arm: str
    rollout_id: str
    fallback_reason: str | None
    stale: bool
    fingerprint: str
    events_partition: int
    events_offset: int
    row_age_ms: int
    latency_us: LatencyAnswer


def told(answers: Answers) -> list[RecommendAnswer | Exception]:
    """
    [n] in the order of the requests; an error for one that was not scored: TimeoutError where its
    deadline had passed, else Rejected.

    From the columns, since most answers are nothing else: an object for each answer and item as the
    log has them would take as long as the features of all of them.
    """
    found: dict[int, RecommendAnswer | Exception] = {
        i: _error(answer) for i, answer in answers.closed.items()
    }
    for index, part in answers.parts:
        found.update(zip(index, _told(part), strict=True))
    return [found[i] for i in range(answers.n)]


def _error(answer: Recommendation) -> Exception:
    message = answer.message or answer.status.value
    if answer.status is Status.EXPIRED:
        return TimeoutError(message)
    return Rejected(Reason.OUT_OF_RANGE, message)


def _told(part: Answered) -> Iterator[RecommendAnswer]:
    source, times, fingerprint = part.found, part.times, part.features.fingerprint
    columns = zip(
        part.batch.asked,
        part.served,
        part.reasons(),
        part.batch.context.now_ms.tolist(),
        source.stale.tolist(),
        source.partitions.tolist(),
        source.offsets.tolist(),
        part.row_ages().tolist(),
        times.queue,
        strict=True,
    )
    for one, got, reason, now_ms, stale, partition, offset, age_ms, queue_us in columns:
        pick = got.pick
        yield RecommendAnswer(
            request_id=one.request.request_id,
            user_id=one.request.user_id,
            event_time=now_ms,
            status=(Status.FALLBACK if reason else Status.OK).value,
            items=[*map(ItemAnswer, pick.ids, pick.scores.tolist())],
            model_name=got.ref.name,
            model_version=got.ref.version,
            arm=got.arm.value,
            rollout_id=got.rollout_id,
            fallback_reason=reason or None,
            stale=stale,
            fingerprint=fingerprint,
            events_partition=partition,
            events_offset=offset,
            row_age_ms=age_ms,
            latency_us=LatencyAnswer(queue_us, times.read, times.assemble, times.score),
        )
