"""Take a feature set out of the store that nobody needs any more: its rows, partials, positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from features.feature_sets import FeatureSets
from features.publish import item_key
from features.redis_store import RedisStore
from features.store import Position
from ingest.kafka import KafkaLog, KafkaProducer
from ingest.log import Outgoing
from ingest.settings import Settings
from ingest.topics import Topics, check_partitions

Tell = Callable[[int], None]  # partitions done


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """What was deleted."""

    fingerprint: str
    values: int  # rows, partials and marks of what was to be published
    tombstones: int  # on item-features


def retire(settings: Settings, fingerprint: str, tell: Tell) -> Retired:
    """
    Delete a set, partition by partition; a job that still folds it is fenced and ends.

    Each partition's aggregates are taken from `item-features` too, by null values. Safe to repeat
    after a failure: the set stays declared until the last partition is gone.

    Raises:
        StoreUnavailable, BrokerUnavailable: it is not all gone; run it again.
    """
    topics = Topics(settings.topic_prefix)
    partitions = check_partitions(KafkaLog(settings.bootstrap_servers, settings.timeout_s), topics)
    store = RedisStore(settings.redis_url, fingerprint, timeout_s=settings.timeout_s)
    sets = FeatureSets(settings.redis_url, settings.timeout_s)
    producer = KafkaProducer(settings.bootstrap_servers, timeout_s=settings.timeout_s)
    values = tombstones = 0
    try:
        for partition in range(partitions):
            stored = store.positions([partition])[partition]
            start = Position(cluster_id="", topic_id="", epoch=1, next_offset=0)
            lease = store.claim(partition, stored or start)
            for item in store.keys(partition).items:
                key = item_key(item, partition, fingerprint)
                producer.send(Outgoing(topic=topics.item_features, key=key, value=None))
                tombstones += 1
            producer.flush(settings.timeout_s)
            values += store.clear(lease, position=True)
            tell(partition + 1)
        sets.forget(fingerprint)
    finally:
        for part in (producer, sets, store):
            part.close()
    return Retired(fingerprint=fingerprint, values=values, tombstones=tombstones)
