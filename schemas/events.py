"""
The records that cross topics, as frozen values. `avro/*.avsc` holds their wire form.

Field order here equals field order in the schema; times are milliseconds since the epoch (UTC).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final


class EventType(IntEnum):
    """What a user did. The number is the Avro enum's index: order is for ever."""

    UNKNOWN = 0
    IMPRESSION = 1
    VIEW = 2
    CLICK = 3
    LIKE = 4
    DISLIKE = 5
    SHARE = 6
    CART = 7
    PURCHASE = 8
    RATING = 9
    PROFILE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A static user attribute, sent with PROFILE."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserEvent:
    """Something a user did. Key: user_id. A null value erases the user."""

    event_id: str
    user_id: str
    item_id: str | None = None
    event_type: EventType
    event_time: int
    value: float | None = None
    request_id: str | None = None
    position: int | None = None
    surface: str | None = None
    device: str | None = None
    country: str | None = None
    profile: tuple[Attribute, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item of the catalogue. Key: item_id. Compacted: the newest version counts."""

    item_id: str
    title: str
    categories: tuple[str, ...] = ()
    creator: str | None = None
    published_at: int | None = None
    price: float | None = None
    image: bytes | None = None
    image_uri: str | None = None
    available: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFeatures:
    """Absolute partial aggregates of one item over one partition of user-events.

    Key: item id, 0x00, partition in ASCII, 0x00, the first 8 digits of the fingerprint. `partial`
    is the stored form that `features.partials` alone can read. Readers add up an item's partials;
    a repeat replaces its predecessor.
    """

    item_id: str
    partition: int
    fingerprint: str
    events_offset: int  # next offset of user-events when the partial was written
    partial: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """A place in user-events: the record at `offset` of `partition`."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendationRequest:
    """Ask for k items for a user. Key: user_id."""

    request_id: str
    user_id: str
    event_time: int | None = None  # "now" of windows and join; default: the record's timestamp
    k: int = 10
    candidates: tuple[str, ...] = ()  # rank these; empty: retrieve from the catalogue
    exclude: tuple[str, ...] = ()
    deadline_ms: int | None = None  # wall clock, counted from the record's timestamp
    after_offset: Offset | None = None
    surface: str | None = None
    device: str | None = None
    country: str | None = None


class Status(StrEnum):
    """How a request ended."""

    UNKNOWN = "UNKNOWN"
    OK = "OK"
    FALLBACK = "FALLBACK"  # items are there, but not from the model that should have answered
    INVALID = "INVALID"  # the request's fault; `message` says what was expected
    EXPIRED = "EXPIRED"  # its deadline had passed before it was scored


class Arm(StrEnum):
    """Which version of the model answered."""

    NONE = "NONE"
    STABLE = "STABLE"
    CANARY = "CANARY"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredItem:
    """One recommended item with its features as served, in the catalog's order."""

    item_id: str
    score: float
    longs: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """What the shadow version would have answered."""

    version: int
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    latency_us: int
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLatency:
    """Wall time of each stage, microseconds."""

    queue: int = 0  # record timestamp to taken up
    read: int = 0
    assemble: int = 0
    score: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The answer to one request, with everything needed to learn from it and to audit it."""

    request_id: str
    user_id: str
    event_time: int
    status: Status
    message: str | None = None
    items: tuple[ScoredItem, ...] = ()
    model_name: str = ""
    model_version: int = 0
    arm: Arm = Arm.NONE
    rollout_id: str = ""
    experiments: tuple[Attribute, ...] = ()
    fallback_reason: str | None = None
    stale: bool = False
    fingerprint: str = ""
    events_partition: int = -1  # partition of user-events that holds the user
    events_offset: int = -1  # next offset the row had been folded up to when it was read
    row_age_ms: int = -1  # event_time minus the newest event in the row; -1: no row
    latency_us: StageLatency = field(default_factory=StageLatency)
    user_longs: tuple[int, ...] = ()
    user_floats: tuple[float, ...] = ()
    shadow: Shadow | None = None
    surface: str | None = None
    device: str | None = None
    country: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """One Kafka header of a dead letter's original."""

    name: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A refused record. Identity: (topic, partition, offset); readers drop repeats."""

    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A named number that led to a decision."""

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftAlert:
    """An alarm of the drift monitor. Key: model name. Every number that led to it is here."""

    alert_id: str
    model_name: str
    severity: str  # WARN, ACT, CLEAR, DATA_QUALITY, LABELS_UNTRUSTED
    stream: str  # features, labels, quality
    subject: str  # the feature or counter that contributed most
    window_start: int
    window_end: int
    detected_at: int
    profile: str
    fingerprint: str
    model_version: int
    surface: str
    measures: tuple[Measure, ...]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainTrigger:
    """An order to train. Key: model name. `idempotency_key` makes it single-flight."""

    trigger_id: str
    model_name: str
    reason: str  # SCHEDULE, DRIFT, OPERATOR
    idempotency_key: str
    issued_at: int
    train_from: int  # event time, ms
    train_until: int
    profile: str
    alert_ids: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentArm:
    """What some of an experiment's users get."""

    name: str
    version: int
    weight: int = 1  # its part of the experiment's users, in proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Versions compared on users: each user gets one arm's, or both in one list."""

    name: str  # salts the choice of users
    arms: tuple[ExperimentArm, ...]  # the first is what the others are compared with
    share: int = 10_000  # basis points of users, 0..10000
    interleaved: bool = False  # two arms, drafted into one list
    started_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What serves. Key: model name. 0 means no such version. Signed; generation only grows."""

    model_name: str
    generation: int
    stable: int
    previous: int = 0
    canary: int = 0
    canary_share: int = 0  # basis points of users, 0..10000
    shadow: int = 0
    rollout_id: str = ""
    experiments: tuple[Experiment, ...] = ()
    profile: str = "production"
    issued_at: int = 0
    reason: str = ""
    key_id: str = ""
    signature: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseTransition:
    """One step of a release's life, hash-chained to the step before."""

    model_name: str
    sequence: int
    from_state: str
    to_state: str
    version: int
    generation: int
    at: int
    reason: str
    measures: tuple[Measure, ...] = ()
    previous_hash: bytes = b""
    hash: bytes = b""


USER_EVENTS: Final = "user-events"
ITEM_UPDATES: Final = "item-updates"
ITEM_FEATURES: Final = "item-features"
REQUESTS: Final = "recommendation-requests"
RECOMMENDATIONS: Final = "recommendations"
DEAD_LETTERS: Final = "dead-letters"
DRIFT_ALERTS: Final = "drift-alerts"
RETRAIN_TRIGGERS: Final = "retrain-triggers"
MODEL_RELEASES: Final = "model-releases"
RELEASE_LOG: Final = "release-log"

RECORD_OF_TOPIC: Final[dict[str, type]] = {
    USER_EVENTS: UserEvent,
    ITEM_UPDATES: Item,
    ITEM_FEATURES: ItemFeatures,
    REQUESTS: RecommendationRequest,
    RECOMMENDATIONS: Recommendation,
    DEAD_LETTERS: DeadLetter,
    DRIFT_ALERTS: DriftAlert,
    RETRAIN_TRIGGERS: RetrainTrigger,
    MODEL_RELEASES: Release,
    RELEASE_LOG: ReleaseTransition,
}
