"""
The shop's past: what the simulated shoppers did on their own before the demo began.

The same shoppers, with the same tastes, come back live later. Without a past every one of them
would be unknown to the first model.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.log import Outgoing, Producer
from ingest.simulator import Faults, Simulator, SimulatorPolicy
from ingest.tastes import WorldPolicy
from ingest.topics import Topics
from schemas.codec import Codec
from schemas.events import Item, UserEvent
from schemas.registry import Registry

STEP_MS = 1_000
FLUSH_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopPast:
    """How many shoppers, and how much of their past."""

    shoppers: int
    catalogue: int  # items
    hours: float = 1.0
    sessions_per_hour: float = 6.0  # of one shopper


def send_past(
    past: ShopPast, end_ms: int, producer: Producer, registry: Registry, topics: Topics
) -> tuple[int, int]:
    """
    Put the shop's catalogue and its past on the log; event times end before `end_ms`.

    Returns:
        Items and events sent.
    """
    policy = SimulatorPolicy(
        world=WorldPolicy(shoppers=past.shoppers, items=past.catalogue),
        sessions_per_hour=past.sessions_per_hour,
        rhythm=0.0,  # whatever the time of day, the demo's traffic is the same
        organic=0.9,  # nobody recommends anything yet: what is found is found alone
        faults=Faults(duplicate=0.0, late=0.0, malformed=0.0),
    )
    items, events = (
        Codec(registry, Item, topics.item_updates),
        Codec(registry, UserEvent, topics.user_events),
    )
    start_ms = end_ms - round(past.hours * 3_600_000)
    shop = Simulator(policy, start_ms)
    sent_items = sent_events = 0
    for now_ms in range(start_ms, end_ms, STEP_MS):
        actions = shop.step(now_ms)
        for item in actions.items:
            key = item.item_id.encode()
            producer.send(Outgoing(topic=topics.item_updates, key=key, value=items.encode(item)))
        for event in actions.events:
            producer.send(
                Outgoing(
                    topic=topics.user_events,
                    key=event.user_id.encode(),
                    value=events.encode(event),
                    timestamp_ms=event.event_time,
                )
            )
        sent_items += len(actions.items)
        sent_events += len(actions.events)
    producer.flush(FLUSH_S)
    return sent_items, sent_events
