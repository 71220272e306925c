"""
Kafka: the one package that imports confluent_kafka.

Every error of the library leaves here as one of ours (`ingest.kafka.errors`), every call has a
time-out, and what librdkafka logs goes to structlog.
"""

from ingest.kafka.admin import KafkaAdmin, KafkaLog
from ingest.kafka.consumer import GATHERED, KafkaSource
from ingest.kafka.group_source import KafkaGroupSource
from ingest.kafka.groups import KafkaGroups
from ingest.kafka.producer import KafkaProducer, KafkaTransactionalProducer

__all__ = [
    "GATHERED",
    "KafkaAdmin",
    "KafkaGroupSource",
    "KafkaGroups",
    "KafkaLog",
    "KafkaProducer",
    "KafkaSource",
    "KafkaTransactionalProducer",
]
