"""The stored rows, as a repartition of the topics sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from features.job import rebuild_parts
from features.rebuild import of_this_log, rebuild_partition
from features.refold import RebuildParts
from ingest.settings import Settings


class StoredRows:
    """`ingest.repartition.FoldedRows` on the store that the settings name."""

    def __init__(
        self, settings: Settings, open_parts: Callable[[Settings], RebuildParts] = rebuild_parts
    ) -> None:
        self._settings = settings
        self._open_parts = open_parts

    def passed(self, prefix: str) -> Mapping[int, int]:
        parts = self._parts(prefix)
        partitions = range(parts.log.partitions(parts.topic))
        passed = {}
        for partition, stored in parts.store.positions(partitions).items():
            if stored is not None and of_this_log(stored, *parts.start(partition)):
                passed[partition] = stored.next_offset
        return passed

    def rebuild(self, prefix: str, former: int) -> None:
        parts = self._parts(prefix)
        partitions = parts.log.partitions(parts.topic)
        for partition in range(partitions):
            rebuild_partition(parts, partition)
        # Fewer partitions than before: nobody owns what the others held.
        for partition, stored in parts.store.positions(range(partitions, former)).items():
            if stored is not None:
                parts.store.clear(parts.store.claim(partition, None), position=True)

    def _parts(self, prefix: str) -> RebuildParts:
        return self._open_parts(replace(self._settings, topic_prefix=prefix))
