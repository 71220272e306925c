"""What every Kafka client here shares: settings, errors mapped to ours, the library's own log."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import confluent_kafka as ck
import structlog

from ingest.clock import Clock
from ingest.kafka.errors import PASSING, meaning
from ingest.log import TopicPartition
from schemas.errors import BrokerUnavailable, MillstreamError, Misconfigured

Options = Mapping[str, str | int | float | bool]
T = TypeVar("T")

# A topic is created by the controller, and known to a broker a moment later.
CHECK_EVERY_S = 0.02


class _LibraryLog:
    """
    What librdkafka says, as structlog events. It speaks when the client is polled.

    A broker that is away makes it repeat itself many times a second: of sayings that differ in
    numbers alone the 1st, 10th, 100th ... are passed on.
    """

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()

    def log(self, level: int, message: str, *args: object) -> None:
        said = message % args
        kind = re.sub(r"\d+", "", said.split("(after", maxsplit=1)[0])
        self._times[kind] += 1
        times = self._times[kind]
        if str(times).strip("0") != "1":
            return
        known = level if level in (10, 20, 30, 40, 50) else logging.WARNING
        structlog.get_logger("kafka").log(known, "kafka.library", said=said, times=times)


def client_settings(bootstrap_servers: str, timeout_s: float) -> dict[str, Any]:
    """Settings of every client. Producers and consumers add theirs."""
    timeout_ms = max(1000, int(timeout_s * 1000))
    return {
        "bootstrap.servers": bootstrap_servers,
        "client.id": "millstream",
        "socket.timeout.ms": timeout_ms,
        "socket.connection.setup.timeout.ms": timeout_ms,
        # A broker that comes back is found within a second (default: 10).
        "reconnect.backoff.max.ms": 1000,
        "logger": _LibraryLog(),
    }


def mapped(error: ck.KafkaError, doing: str) -> MillstreamError:
    """Our error for one of the library's."""
    return meaning(error.name(), f"{doing}: {error.str()} ({error.name()})")


@contextmanager
def mapping(doing: str) -> Iterator[None]:
    """Raise the library's errors as ours; `doing` begins the message."""
    try:
        yield
    except ck.KafkaException as error:
        raise mapped(error.args[0], doing) from error
    except ValueError as error:
        raise Misconfigured(f"{doing}: {error}") from error
    except RuntimeError as error:  # "Consumer closed" and its like
        raise BrokerUnavailable(f"{doing}: {error}") from error


def library_partitions(positions: Mapping[TopicPartition, int]) -> list[ck.TopicPartition]:
    """Positions as the library wants them."""
    return [ck.TopicPartition(tp.topic, tp.partition, at) for tp, at in positions.items()]


def settled(ask: Callable[[], T], clock: Clock, timeout_s: float) -> T:
    """
    The answer to a question about partitions, asked until each has a leader: new ones have none.

    Raises:
        BrokerUnavailable: one had none for `timeout_s`; or anything else, at once.
    """
    end_s = clock.monotonic_s() + timeout_s
    while True:
        try:
            return ask()
        except BrokerUnavailable as error:
            if not _passes(error) or clock.monotonic_s() >= end_s:
                raise
        clock.sleep(CHECK_EVERY_S)


def _passes(error: BrokerUnavailable) -> bool:
    cause = error.__cause__
    return isinstance(cause, ck.KafkaException) and cause.args[0].name() in PASSING
