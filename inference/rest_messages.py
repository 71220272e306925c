"""Bodies of the REST API, as msgspec reads and writes them and as OpenAPI describes them."""

from __future__ import annotations

import itertools
import uuid
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from features.validate import FIRST_MS, LAST_MS, MAX_ID_BYTES
from schemas.errors import Reason, Rejected
from schemas.events import (
    Attribute,
    EventType,
    Offset,
    RecommendationRequest,
    UserEvent,
)

_LIFE: Final = uuid.uuid4().hex  # of this process
_numbers = itertools.count()
Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES)]
Word = Annotated[str, Meta(max_length=512)]
TimeMs = Annotated[int, Meta(ge=FIRST_MS, le=LAST_MS, description="milliseconds since 1970, UTC")]
EventName = Annotated[
    str, Meta(extra_json_schema={"enum": [one.name for one in EventType if one.value]})
]
Version = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class OffsetBody(Struct, forbid_unknown_fields=True):
    """A place in user-events, as `POST /v1/events` tells it."""

    partition: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    offset: Annotated[int, Meta(ge=0, le=2**63 - 2)]


class RecommendBody(Struct, forbid_unknown_fields=True):
    """Ask for k items for a user."""

    user_id: Id
    request_id: Id | None = None  # made up if it is not given
    event_time: TimeMs | None = None
    k: Annotated[int, Meta(ge=1, le=2**31 - 1)] = 10
    candidates: tuple[Id, ...] = ()
    exclude: tuple[Id, ...] = ()
    deadline_ms: Annotated[int, Meta(ge=1, le=3_600_000)] | None = None
    after_offset: OffsetBody | None = None
    surface: Word | None = None
    device: Word | None = None
    country: Word | None = None
    titles: bool = False

    def request(self) -> RecommendationRequest:
        """As those on the log."""
        after = self.after_offset
        return RecommendationRequest(
            request_id=self.request_id or _new_id(),
            user_id=self.user_id,
            event_time=self.event_time,
            k=self.k,
            candidates=self.candidates,
            exclude=self.exclude,
            deadline_ms=self.deadline_ms,
            after_offset=Offset(partition=after.partition, offset=after.offset) if after else None,
            surface=self.surface,
            device=self.device,
            country=self.country,
        )


class AttributeBody(Struct, forbid_unknown_fields=True):
    """A static attribute of the user, with PROFILE."""

    name: Id
    value: Word


class EventBody(Struct, forbid_unknown_fields=True):
    """Something a user did. With an `event_id` of its own, it can be sent again and counts once."""

    user_id: Id
    event_type: EventName
    event_id: Id | None = None  # made up if it is not given
    event_time: TimeMs | None = None  # now if it is not given
    item_id: Id | None = None
    value: float | None = None
    request_id: Id | None = None
    position: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    surface: Word | None = None
    device: Word | None = None
    country: Word | None = None
    profile: Annotated[tuple[AttributeBody, ...], Meta(max_length=100)] = ()

    def event(self, now_ms: int) -> UserEvent:
        """
        As it goes to the log.

        Raises:
            Rejected: there is no such type of event.
        """
        kind = EventType.__members__.get(self.event_type)
        if not kind:
            known = ", ".join(one.name for one in EventType if one.value)
            detail = f"event_type is {self.event_type[:40]!r}, expected one of {known}"
            raise Rejected(Reason.OUT_OF_RANGE, detail)
        return UserEvent(
            event_id=self.event_id or _new_id(),
            user_id=self.user_id,
            item_id=self.item_id,
            event_type=kind,
            event_time=now_ms if self.event_time is None else self.event_time,
            value=self.value,
            request_id=self.request_id,
            position=self.position,
            surface=self.surface,
            device=self.device,
            country=self.country,
            profile=tuple(Attribute(name=one.name, value=one.value) for one in self.profile),
        )


class EventAnswer(Struct):
    """Where the event landed."""

    event_id: str
    partition: int
    offset: int


class PredictBody(Struct, forbid_unknown_fields=True):
    """Tensors by rows (`instances`) or by columns (`inputs`)."""

    signature_name: Annotated[str, Meta(min_length=1, max_length=200)] = "serving_default"
    instances: list[Any] | UnsetType = UNSET
    inputs: Any = UNSET


class PredictHead(Struct, forbid_unknown_fields=True):
    """The same, tensors unread: how they are read depends on the signature."""

    signature_name: Annotated[str, Meta(min_length=1, max_length=200)] = "serving_default"
    instances: Raw | UnsetType = UNSET
    inputs: Raw | UnsetType = UNSET


class FailureAnswer(Struct):
    """Why there is no answer."""

    error: str  # for people
    reason: str  # for programs


class ProbeAnswer(Struct):
    """How this instance is."""

    status: str


class StatusAnswer(Struct):
    """What TensorFlow Serving says of a version that is well."""

    error_code: str
    error_message: str


class VersionAnswer(Struct):
    """One version of the release."""

    version: str
    state: str
    status: StatusAnswer
    labels: list[str]


class ModelAnswer(Struct):
    """The versions of the release."""

    model_version_status: list[VersionAnswer]


def _new_id() -> str:
    """An id that nobody else makes. A UUID each would cost a system call each."""
    return f"{_LIFE}-{next(_numbers)}"


def read(kind: type[Struct], body: bytes) -> Any:
    """
    The body as such a message.

    Raises:
        Rejected: it is not; the message says where and what was expected.

    >>> read(OffsetBody, b'{"partition": "1", "offset": 2}')
    Traceback (most recent call last):
    schemas.errors.Rejected: undecodable: Expected `int`, got `str` - at `$.partition`
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        detail = str(error) if isinstance(error, msgspec.MsgspecError) else "the body is not JSON"
        raise Rejected(Reason.UNDECODABLE, detail) from error
