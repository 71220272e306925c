"""The log in memory: the same promises as Kafka's, in one process, for tests and small runs."""

from ingest.memory.log import Crash, MemoryGroups, MemoryLog, Pause
from ingest.memory.producer import MemoryProducer, MemoryTransactionalProducer
from ingest.memory.source import MemoryGroupSource, MemorySource

__all__ = [
    "Crash",
    "MemoryGroupSource",
    "MemoryGroups",
    "MemoryLog",
    "MemoryProducer",
    "MemorySource",
    "MemoryTransactionalProducer",
    "Pause",
]
