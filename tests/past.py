"""A past for backfill tests: a log in memory with users, items, hours, repeats and late events."""

from __future__ import annotations

import random
from collections.abc import Sequence

from features.catalog import CATALOG
from features.history import History, HistoryReader, read_history
from ingest.log import Outgoing, TopicPartition
from ingest.memory import MemoryLog, MemoryProducer, MemorySource
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.events import Attribute, EventType, Item, UserEvent
from schemas.registry import MemoryRegistry

T0 = 1_700_000_000_000
HOUR_MS = 3_600_000
TOPIC = "user-events"
KINDS = (EventType.IMPRESSION, EventType.CLICK, EventType.VIEW, EventType.LIKE)
ITEMS = [
    Item(item_id=f"i{n}", title=f"Item {n}", categories=(f"c{n % 3}",), published_at=T0)
    for n in range(6)
]

# (user, event or None for an erasure, record timestamp)
Story = list[tuple[str, UserEvent | None, int]]


def story(n: int, seed: int = 0, users: int = 5) -> Story:
    """n events over some days, in nearly their order; every 40th erases its user."""
    chance = random.Random(seed)
    told: Story = []
    now = T0
    for i in range(n):
        now += chance.choice((0, 1_000, 60_000, 600_000, HOUR_MS))
        user = f"u{chance.randrange(users)}"
        if i % 40 == 39:
            told.append((user, None, now))
            continue
        late = chance.choice((0, 0, 0, 0, 30_000, 2 * HOUR_MS))
        number = chance.randrange(i + 1) if chance.random() < 0.05 else i
        kind = chance.choice(KINDS)
        told.append((user, event(number, user, now - late, kind, chance), now))
    return told


def event(number: int, user: str, at_ms: int, kind: EventType, chance: random.Random) -> UserEvent:
    """One event; some set the user's profile instead."""
    if chance.random() < 0.05:
        return UserEvent(
            event_id=f"e{number}",
            user_id=user,
            event_type=EventType.PROFILE,
            event_time=at_ms,
            profile=(Attribute(name="gender", value=chance.choice("fm")),),
        )
    return UserEvent(
        event_id=f"e{number}",
        user_id=user,
        item_id=f"i{chance.randrange(8)}",  # two are not in the catalogue
        event_type=kind,
        event_time=at_ms,
        surface=chance.choice(("home", "search", None)),
    )


def logged(told: Story, partitions: int = 2) -> tuple[MemoryLog, MemoryRegistry]:
    """The story on a log."""
    log, registry = MemoryLog(), MemoryRegistry()
    log.create_topic(TOPIC, partitions)
    producer, codec = MemoryProducer(log), Codec(registry, UserEvent, TOPIC)
    for user, value, at_ms in told:
        data = None if value is None else codec.encode(value)
        producer.send(Outgoing(topic=TOPIC, key=user.encode(), value=data, timestamp_ms=at_ms))
    return log, registry


def history(told: Story, partitions: int = 2, batch: int = 1_000, turn: int = 1) -> History:
    """The story, read from its log in batches, partitions in this or the other order."""
    log, registry = logged(told, partitions)
    reader = HistoryReader(ColumnReader(registry, UserEvent), partitions, CATALOG.row.future_ms)
    source = MemorySource(log)
    order: Sequence[int] = range(partitions)[::turn]
    source.assign({TopicPartition(TOPIC, p): 0 for p in order})

    return read_history(iter(lambda: source.poll(batch, 0.0), None), reader)
