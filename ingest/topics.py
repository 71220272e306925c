"""The ten topics: their names, what each keeps and for how long, and how they come to be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from ingest.log import Log, TopicPartition
from schemas import events
from schemas.errors import Misconfigured, PositionForeign

DAY_MS: Final = 86_400_000
FOR_EVER: Final = -1
# A replay's records carry old timestamps: Kafka would roll a segment for each stretch of them.
TEN_YEARS_MS: Final = 3650 * DAY_MS
# Keyed by user with one placement (law 2): their partition counts must be equal, for ever.
KEYED_BY_USER: Final = (events.USER_EVENTS, events.REQUESTS, events.RECOMMENDATIONS)
# Few records, read as a whole by every process.
SINGLE: Final = (
    events.DRIFT_ALERTS,
    events.RETRAIN_TRIGGERS,
    events.MODEL_RELEASES,
    events.RELEASE_LOG,
)
COMPACTED: Final = (events.ITEM_UPDATES, events.ITEM_FEATURES, events.MODEL_RELEASES)
# A topic that is there once the topics of its prefix have been repartitioned into the next.
MOVED: Final = "moved"
# A dead letter holds a whole record and what is wrong with it.
DEAD_LETTER_BYTES: Final = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic as it should be."""

    name: str
    partitions: int
    cleanup: Literal["delete", "compact"] = "delete"
    retention_ms: int = 7 * DAY_MS  # by record timestamp; FOR_EVER: never deleted
    segment_ms: int = 7 * DAY_MS
    max_record_bytes: int = 1_048_588  # Kafka's own default
    replication: int = -1  # -1: the cluster's default
    config: Mapping[str, str] = field(default_factory=dict)  # any further setting of Kafka

    def __post_init__(self) -> None:
        if self.partitions < 1:
            raise ValueError(f"{self.name}: partitions must be at least 1, got {self.partitions}")

    def settings(self) -> dict[str, str]:
        """
        Kafka's names for it.

        >>> TopicSpec(name="t", partitions=1).settings()["cleanup.policy"]
        'delete'
        """
        return {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms),
            "segment.ms": str(self.segment_ms),
            "max.message.bytes": str(self.max_record_bytes),
            **self.config,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicState:
    """A topic as it is."""

    name: str
    topic_id: str
    partitions: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRow:
    """One line of `millstream topics describe`."""

    name: str
    exists: bool
    partitions: int
    cleanup: str
    retention: str
    records: int  # offsets in use: transaction markers and compacted records count


class Admin(Protocol):
    """
    Creating and describing topics.

    Implementations must pass `tests.contracts.log.AdminContract`.
    """

    def topics(self, names: Sequence[str]) -> dict[str, TopicState]:
        """Those of `names` that exist."""

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create them and wait until they can be used. One that exists is left as it is."""

    def configure_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Give existing topics the settings of their specs. Partitions stay as they are."""

    def delete_topics(self, names: Sequence[str]) -> None:
        """Delete them and wait until they are gone. One that does not exist is no error."""


class Groups(Protocol):
    """
    Offsets of consumer groups, as seen from outside.

    Implementations must pass `tests.contracts.log.GroupsContract`.
    """

    def offsets(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> next offset of the group; those it has none of are left out."""

    def move(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Give a group without members these offsets."""


class Topics:
    """
    Full names of the ten topics.

    >>> Topics("demo-").user_events
    'demo-user-events'
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.user_events = prefix + events.USER_EVENTS
        self.item_updates = prefix + events.ITEM_UPDATES
        self.item_features = prefix + events.ITEM_FEATURES
        self.requests = prefix + events.REQUESTS
        self.recommendations = prefix + events.RECOMMENDATIONS
        self.dead_letters = prefix + events.DEAD_LETTERS
        self.drift_alerts = prefix + events.DRIFT_ALERTS
        self.retrain_triggers = prefix + events.RETRAIN_TRIGGERS
        self.model_releases = prefix + events.MODEL_RELEASES
        self.release_log = prefix + events.RELEASE_LOG

    def names(self) -> tuple[str, ...]:
        """All ten, in the order of `schemas.events`."""
        return tuple(self.prefix + name for name in events.RECORD_OF_TOPIC)


def next_prefix(prefix: str) -> str:
    """
    The prefix of the next generation of topics, which have another number of partitions.

    >>> next_prefix(""), next_prefix("demo-"), next_prefix("demo-g2-"), next_prefix("big3-")
    ('g2-', 'demo-g2-', 'demo-g3-', 'big3-g2-')
    """
    found = re.fullmatch(r"((?:.*-)?)g(\d+)-", prefix)
    base, generation = (found[1], int(found[2])) if found else (prefix, 1)
    return f"{base}g{generation + 1}-"


def serving_group(prefix: str) -> str:
    """The consumer group that answers requests."""
    return f"{prefix}serve"


def topic_specs(prefix: str, partitions: int, *, replay: bool) -> list[TopicSpec]:
    """
    The ten topics. `replay`: they may hold records older than any retention.

    >>> [s.partitions for s in topic_specs("", 4, replay=False)]
    [4, 4, 4, 4, 4, 4, 1, 1, 1, 1]
    """
    return [_spec(prefix, name, partitions, replay) for name in events.RECORD_OF_TOPIC]


def ensure_topics(admin: Admin, specs: Sequence[TopicSpec]) -> list[str]:
    """
    Make the topics exist as specified; those that do keep their records. Returns the created ones.

    Raises:
        Misconfigured: an existing topic has another number of partitions. Nothing was created.
    """
    there = admin.topics([s.name for s in specs])
    wrong = [s for s in specs if s.name in there and there[s.name].partitions != s.partitions]
    if wrong:
        raise Misconfigured("; ".join(_unequal(s, there[s.name]) for s in wrong))
    missing = [s for s in specs if s.name not in there]
    if missing:
        admin.create_topics(missing)
    changed = [s for s in specs if s.name in there and _differs(s, there[s.name])]
    if changed:
        admin.configure_topics(changed)
    return [s.name for s in missing]


def check_partitions(log: Log, topics: Topics) -> int:
    """
    The one partition count of everything keyed by user. Asked at each start.

    Raises:
        Misconfigured: the counts differ, a topic is missing, or others have taken their place.
    """
    check_not_moved(log, topics)
    counts = {topics.prefix + name: log.partitions(topics.prefix + name) for name in KEYED_BY_USER}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {n}" for name, n in counts.items())
        raise Misconfigured(
            f"topics keyed by user must have one partition count, but {listed}. "
            f"Run: millstream topics repartition --to {max(counts.values())}"
        )
    return next(iter(counts.values()))


def check_offset(place: TopicPartition, offset: int, bounds: tuple[int, int], mend: str) -> None:
    """
    Whether a reader may go on from an offset that it stored. `mend`: what to do if not.

    Raises:
        PositionForeign: the log does not hold it.
    """
    first, end = bounds
    if not first <= offset <= end:
        raise PositionForeign(
            f"{place.topic}[{place.partition}] was read up to offset {offset}, but its log spans "
            f"{first} to {end}. {mend}"
        )


def check_not_moved(log: Log, topics: Topics) -> None:
    """
    Whether these topics are still the ones to use.

    Raises:
        Misconfigured: they were repartitioned: those of the next prefix have taken their place.
    """
    if _exists(log, topics.prefix + MOVED):
        new = next_prefix(topics.prefix)
        raise Misconfigured(
            f"the topics of prefix {topics.prefix!r} were repartitioned into those of {new!r}. "
            f"Set MILLSTREAM_TOPIC_PREFIX={new} (or give --prefix {new})"
        )


def describe(admin: Admin, log: Log, specs: Sequence[TopicSpec]) -> list[TopicRow]:
    """What there is of the specified topics, in their order."""
    there = admin.topics([s.name for s in specs])
    return [_row(log, s, there.get(s.name)) for s in specs]


def _exists(log: Log, topic: str) -> bool:
    try:
        log.partitions(topic)
    except Misconfigured:
        return False
    return True


def _spec(prefix: str, name: str, partitions: int, replay: bool) -> TopicSpec:
    compacted = name in COMPACTED
    keep = replay or compacted or name == events.RELEASE_LOG
    return TopicSpec(
        name=prefix + name,
        partitions=1 if name in SINGLE else partitions,
        cleanup="compact" if compacted else "delete",
        retention_ms=FOR_EVER if keep else 7 * DAY_MS,
        segment_ms=TEN_YEARS_MS if replay else 7 * DAY_MS,
        max_record_bytes=DEAD_LETTER_BYTES if name == events.DEAD_LETTERS else 1_048_588,
    )


def _unequal(spec: TopicSpec, there: TopicState) -> str:
    return (
        f"topic {spec.name} has {there.partitions} partitions and not {spec.partitions}: "
        f"a topic keeps its count for life. Give --partitions {there.partitions}, or run: "
        f"millstream topics repartition --to {spec.partitions}"
    )


def _differs(spec: TopicSpec, there: TopicState) -> bool:
    return any(there.settings.get(name) != value for name, value in spec.settings().items())


def _row(log: Log, spec: TopicSpec, there: TopicState | None) -> TopicRow:
    if there is None:
        return TopicRow(
            name=spec.name, exists=False, partitions=0, cleanup="", retention="", records=0
        )
    retention = int(there.settings.get("retention.ms", FOR_EVER))
    bounds = log.bounds(spec.name).values()
    return TopicRow(
        name=spec.name,
        exists=True,
        partitions=there.partitions,
        cleanup=there.settings.get("cleanup.policy", "delete"),
        retention="for ever" if retention < 0 else f"{retention / DAY_MS:g} days",
        records=sum(end - start for start, end in bounds),
    )
