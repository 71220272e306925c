"""
Fresh history before a training: what users did on their own becomes examples up to now.

The label join only knows what followed our own lists. When tastes change, what users look for
without a list shows where they went; a bounded backfill of the log turns it into examples.
"""

from __future__ import annotations

from contextlib import closing

from features.backfill import BackfillPolicy
from features.backfill_job import BackfillParts, backfill_log
from features.declare import FeatureSet
from features.disk import place
from features.past_log import PastLog, PastSource
from ingest.kafka import KafkaLog, KafkaSource
from ingest.settings import Settings
from ingest.topics import Topics
from schemas.registry import RemoteRegistry


def refresh_history(settings: Settings, features: FeatureSet) -> int:
    """
    Backfill the interactions since the last time. Returns the number of examples in all.

    Raises:
        Retryable: broker or archive are not to be had now.
    """
    servers, timeout_s = settings.bootstrap_servers, settings.timeout_s
    root, topics = place(settings.archive_dir), Topics(settings.topic_prefix)
    log = PastLog(KafkaLog(servers, timeout_s), root, topics)
    with closing(PastSource(KafkaSource(servers, timeout_s=timeout_s), log)) as source:
        parts = BackfillParts(
            log=log,
            source=source,
            registry=RemoteRegistry(settings.registry_url, timeout_s),
            topics=topics,
            features=features,
            root=root,
        )
        manifest = backfill_log(parts, BackfillPolicy.of_interactions(), onward=True)
    return manifest.records
