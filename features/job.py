"""The feature job put together from settings: split, publisher and rebuild."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from features.catalog import CATALOG, feature_set
from features.declare import FeatureSet, declared
from features.disk import place
from features.feature_sets import open_sets
from features.hot_rows import HotRows
from features.outlets import KafkaOutlets
from features.past_log import PastLog, PastSource
from features.publish import Publisher, PublisherThread, PublishTarget
from features.redis_store import RedisStore
from features.refold import RebuildParts
from features.split import Split, SplitParts
from features.worker import FeatureWorker, FoldRules
from ingest.clock import SystemClock
from ingest.dead_letter import DeadLetters
from ingest.kafka import KafkaLog, KafkaProducer, KafkaSource, KafkaTransactionalProducer
from ingest.metrics import Metrics
from ingest.settings import Settings
from ingest.topics import Topics, check_partitions
from schemas.codec import Codec
from schemas.columns import ColumnReader
from schemas.events import DeadLetter, ItemFeatures, UserEvent
from schemas.registry import RemoteRegistry

# An answer to a fetch waits at most this long for this much: the freshness of a quiet topic against
# folding a few events at a time.
FETCH_OPTIONS = {"fetch.min.bytes": 4_096, "fetch.wait.max.ms": 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """What a split folds. Travels with the pipeline, so it holds no connections."""

    settings: Settings
    partitions: tuple[int, ...]
    declaration: str  # of the feature set
    from_earliest: bool = False
    publish: bool = False  # send item partials to item-features

    @property
    def features(self) -> FeatureSet:
        """The set that is folded."""
        return feature_set(self.declaration)

    @property
    def name(self) -> str:
        """Of the split in the pool: the same partitions of the same log, store and feature set."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def split(self, splits: int) -> list[JobConfig]:
        """
        The same job shared out.

        >>> job = JobConfig(settings=Settings(), partitions=(0, 1, 2), declaration="")
        >>> [part.partitions for part in job.split(2)]
        [(0, 2), (1,)]
        """
        shares = (self.partitions[at::splits] for at in range(splits))
        return [replace(self, partitions=share) for share in shares if share]


def job_config(
    settings: Settings,
    features: FeatureSet = CATALOG,
    *,
    from_earliest: bool = False,
    publish: bool = False,
) -> JobConfig:
    """
    The job over all partitions.

    Raises:
        Misconfigured: the topics keyed by user have unequal partition counts.
    """
    log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    partitions = check_partitions(log, Topics(settings.topic_prefix))
    return JobConfig(
        settings=settings,
        partitions=tuple(range(partitions)),
        declaration=declared(features),
        from_earliest=from_earliest,
        publish=publish,
    )


def open_store(settings: Settings, features: FeatureSet = CATALOG) -> RedisStore:
    """The rows of a feature set."""
    return RedisStore(
        settings.redis_url,
        features.fingerprint,
        lifetime_ms=features.row.lifetime_ms,
        timeout_s=settings.timeout_s,
    )


def open_split(config: JobConfig, metrics: Metrics | None = None) -> Split:
    """The live parts of a split, not yet claimed."""
    settings, features = config.settings, config.features
    with closing(open_sets(settings)) as sets:
        sets.declare(features)
    topics = Topics(settings.topic_prefix)
    clock = SystemClock()
    log = KafkaLog(settings.bootstrap_servers, settings.timeout_s)
    store = open_store(settings, features)
    rows = HotRows(store)
    producer = _producer(settings)
    registry = RemoteRegistry(settings.registry_url, settings.timeout_s)
    worker = FeatureWorker(
        rows,
        ColumnReader(registry, UserEvent),
        _outlets(settings, registry, producer, metrics),
        FoldRules(features=features, partitions=log.partitions(topics.user_events)),
    )
    return Split(
        SplitParts(
            topic=topics.user_events,
            partitions=config.partitions,
            source=KafkaSource(
                settings.bootstrap_servers, timeout_s=settings.timeout_s, options=FETCH_OPTIONS
            ),
            log=log,
            writer=rows,
            reader=store,
            worker=worker,
            clock=clock,
            metrics=metrics,
            from_earliest=config.from_earliest,
            beside=partial(_publishing, settings, features) if config.publish else None,
            closing=(producer, store),
        )
    )


def _publishing(settings: Settings, features: FeatureSet, split: Split) -> PublisherThread:
    """Only once the partitions are ours may an older publisher of theirs be fenced."""
    publisher = open_publisher(settings, split.owns, features)
    thread = PublisherThread(publisher, split.partitions, split.fail)
    thread.start()
    return thread


def open_publisher(
    settings: Settings, owns: Callable[[int], bool], features: FeatureSet = CATALOG
) -> Publisher:
    """Sends changed partials to `item-features`."""
    topic = Topics(settings.topic_prefix).item_features
    registry = RemoteRegistry(settings.registry_url, settings.timeout_s)
    target = PublishTarget(
        topic=topic,
        fingerprint=features.fingerprint,
        codec=Codec(registry, ItemFeatures, topic),
        open_producer=lambda name: KafkaTransactionalProducer(
            settings.bootstrap_servers, name, timeout_s=settings.timeout_s
        ),
    )
    return Publisher(open_store(settings, features), target, owns)


def rebuild_parts(settings: Settings, features: FeatureSet = CATALOG) -> RebuildParts:
    """What compares and replaces the live rows."""
    registry = RemoteRegistry(settings.registry_url, settings.timeout_s)
    topics = Topics(settings.topic_prefix)
    log = PastLog(
        KafkaLog(settings.bootstrap_servers, settings.timeout_s),
        place(settings.archive_dir),
        topics,
    )
    return RebuildParts(
        topic=topics.user_events,
        log=log,
        store=open_store(settings, features),
        features=features,
        open_source=lambda: PastSource(
            KafkaSource(settings.bootstrap_servers, timeout_s=settings.timeout_s), log
        ),
        open_reader=lambda: ColumnReader(registry, UserEvent),
        open_outlets=lambda: _outlets(settings, registry, _producer(settings), None),
        clock=SystemClock(),
        timeout_s=settings.timeout_s,
    )


def _producer(settings: Settings) -> KafkaProducer:
    return KafkaProducer(settings.bootstrap_servers, timeout_s=settings.timeout_s)


def _outlets(
    settings: Settings, registry: RemoteRegistry, producer: KafkaProducer, metrics: Metrics | None
) -> KafkaOutlets:
    topic = Topics(settings.topic_prefix).dead_letters
    codec = Codec(registry, DeadLetter, topic)
    letters = DeadLetters(producer, codec, topic, SystemClock(), metrics=metrics)
    return KafkaOutlets(letters, producer, settings.timeout_s)
