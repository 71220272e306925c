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
    with closing(KafkaSource(servers, timeout_s=timeout_s)) as source:
        parts = BackfillParts(
            log=KafkaLog(servers, timeout_s),
            source=source,
            registry=RemoteRegistry(settings.registry_url, timeout_s),
            topics=Topics(settings.topic_prefix),
            features=features,
            root=place(settings.archive_dir),
        )
        manifest = backfill_log(parts, BackfillPolicy.of_interactions(), onward=True)
    return manifest.records
