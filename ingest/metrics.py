"""
Metrics: a closed set of names, each with its kind, labels and meaning.

A name that is not here does not type-check; a label that is not declared raises.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["counter", "gauge", "histogram"]

# Seconds, from a cache hit to a stuck broker.
LATENCY_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# Seconds, from a slow network to a phone that was switched off for a week.
DELAYS_S: Final = (1.0, 10.0, 60.0, 300.0, 900.0, 3_600.0, 6 * 3_600.0, 86_400.0, 7 * 86_400.0)
# Sizes: records of a batch, rows of a model call.
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


NO_TRACES: Final[Mapping[int, str]] = {}


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a metric is."""

    kind: Kind
    doc: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = LATENCY_S  # of a histogram


MetricName = Literal[
    "audit.answers",
    "audit.items",
    "audit.skipped",
    "audit.smape",
    "audit.values",
    "audit.wrong_answers",
    "audit.wrong_items",
    "dead_letters.records",
    "features.corrupt_rows",
    "features.duplicates",
    "features.events",
    "features.freshness_s",
    "features.late",
    "features.misplaced",
    "join.closed_idle",
    "join.examples",
    "join.late_label_s",
    "join.late_labels",
    "join.skipped",
    "join.unmatched",
    "archive.records",
    "loop.batch_records",
    "loop.moved",
    "loop.position",
    "loop.records",
    "loop.retries",
    "monitor.alerts",
    "monitor.statistic",
    "network.latency_s",
    "network.refused",
    "network.requests",
    "network.tensor_rows",
    "network.unrecorded",
    "serve.answer_s",
    "serve.answers",
    "serve.batch_rows",
    "serve.batches",
    "serve.experiment_requests",
    "serve.expired_in_queue",
    "serve.fallbacks",
    "serve.index_items",
    "serve.index_probes",
    "serve.index_recall",
    "serve.latency_s",
    "serve.model_faults",
    "serve.model_version",
    "serve.padded_rows",
    "serve.queue_age_s",
    "serve.remote_calls",
    "serve.remote_retries",
    "serve.requests",
    "serve.row_age_s",
    "serve.rows_missing",
    "serve.stale",
    "serve.unread",
    "serve.versions_refused",
    "serve.swap_stall_s",
    "tracing.limited",
    "tracing.malformed",
    "tracing.spans",
]

METRICS: Final[Mapping[MetricName, MetricSpec]] = {
    "audit.answers": MetricSpec("counter", "answers compared with the log"),
    "audit.items": MetricSpec("counter", "items of answers compared with the log"),
    "audit.skipped": MetricSpec("counter", "answers or items not compared", ("reason",)),
    "audit.smape": MetricSpec("gauge", "error of a feature as served, 0 to 2", ("feature",)),
    "audit.values": MetricSpec(
        "counter",
        "features compared: equal, within, different, missing, extra",
        ("feature", "outcome"),
    ),
    "audit.wrong_answers": MetricSpec("counter", "answers with features that are not the log's"),
    "audit.wrong_items": MetricSpec("counter", "items with features out of tolerance"),
    "dead_letters.records": MetricSpec("counter", "records refused", ("topic", "reason")),
    "features.corrupt_rows": MetricSpec("counter", "rows read as empty: corrupt or foreign"),
    "features.duplicates": MetricSpec("counter", "events dropped: their id was in the ring"),
    "features.events": MetricSpec("counter", "events folded into rows"),
    "features.freshness_s": MetricSpec(
        "histogram", "from an event's record timestamp to its row being readable"
    ),
    "features.late": MetricSpec("counter", "events dropped: older than the horizon"),
    "features.misplaced": MetricSpec("counter", "events sent on to the partition of their key"),
    "join.closed_idle": MetricSpec("counter", "lists closed by wall clock: nothing came any more"),
    "join.examples": MetricSpec("counter", "examples written"),
    "join.late_label_s": MetricSpec(
        "histogram",
        "how long the event of a late label was under way: what `lateness` would have to be",
        buckets=DELAYS_S,
    ),
    "join.late_labels": MetricSpec("counter", "labels that came after their list was closed"),
    "join.skipped": MetricSpec("counter", "answers that give no example", ("reason",)),
    "join.unmatched": MetricSpec("counter", "events that name a request and became no label"),
    "archive.records": MetricSpec("counter", "records archived", ("topic",)),
    "loop.batch_records": MetricSpec(
        "histogram", "records of a batch", ("loop",), buckets=tuple(map(float, SIZES))
    ),
    "loop.moved": MetricSpec("counter", "times a sink's position was not ours", ("loop",)),
    "loop.position": MetricSpec(
        "gauge", "next offset, as stored by the sink", ("loop", "topic", "partition")
    ),
    "loop.records": MetricSpec("counter", "records handled and written", ("loop",)),
    "loop.retries": MetricSpec("counter", "waits for something unavailable", ("loop", "error")),
    "monitor.alerts": MetricSpec("counter", "drift alerts raised", ("severity",)),
    "monitor.statistic": MetricSpec("gauge", "evidence of drift", ("stream",)),
    "network.latency_s": MetricSpec(
        "histogram", "from the head of a call to its answer", ("protocol", "route")
    ),
    "network.refused": MetricSpec("counter", "calls refused", ("protocol", "reason")),
    "network.requests": MetricSpec("counter", "calls answered", ("protocol", "route", "code")),
    "network.tensor_rows": MetricSpec(
        "histogram", "rows of a call of a signature", buckets=tuple(map(float, SIZES))
    ),
    "network.unrecorded": MetricSpec("counter", "answers that did not get to their topic"),
    "serve.answer_s": MetricSpec(
        "histogram", "from a request's record timestamp to the commit of its answer"
    ),
    "serve.answers": MetricSpec(
        "counter", "answers with items, by the version and arm that gave them", ("version", "arm")
    ),
    "serve.batch_rows": MetricSpec(
        "histogram", "rows of a model call", buckets=tuple(map(float, SIZES))
    ),
    "serve.batches": MetricSpec(
        "counter", "batches handed on to be scored, by why they were", ("cause",)
    ),
    "serve.experiment_requests": MetricSpec(
        "counter", "requests in an experiment's arm", ("experiment", "arm")
    ),
    "serve.expired_in_queue": MetricSpec(
        "counter", "requests that were read in time, and not scored in time"
    ),
    "serve.fallbacks": MetricSpec("counter", "answers without the model", ("reason",)),
    "serve.index_items": MetricSpec("gauge", "items in a version's index", ("version",)),
    "serve.index_probes": MetricSpec(
        "gauge", "lists of the index that a query looks into; 0: it sees every item", ("version",)
    ),
    "serve.index_recall": MetricSpec(
        "gauge", "share of the best 50 items that the index finds, as measured", ("version",)
    ),
    "serve.latency_s": MetricSpec(
        "histogram",
        "time of a stage: queue, of each request; read, assemble and score, of each batch; "
        "commit, of each transaction",
        ("stage",),
    ),
    "serve.model_faults": MetricSpec("counter", "model calls that failed", ("version",)),
    "serve.model_version": MetricSpec("gauge", "version that serves", ("arm",)),
    "serve.padded_rows": MetricSpec("counter", "rows that models computed for nobody"),
    "serve.queue_age_s": MetricSpec(
        "histogram", "how long the first request of a batch was on the log when it was handed on"
    ),
    "serve.remote_calls": MetricSpec(
        "counter", "tries of calls to the remote model server, by gRPC status", ("status",)
    ),
    "serve.remote_retries": MetricSpec(
        "counter", "calls made again because the remote model server was not there"
    ),
    "serve.requests": MetricSpec("counter", "requests answered", ("status",)),
    "serve.row_age_s": MetricSpec(
        "histogram",
        "from the newest event of a user's row to the request that was answered with it",
        buckets=DELAYS_S,
    ),
    "serve.rows_missing": MetricSpec("counter", "requests scored with default features"),
    "serve.stale": MetricSpec("counter", "answers older than the event asked for"),
    "serve.unread": MetricSpec(
        "gauge", "requests on the log that were not read yet: the lag", ("partition",)
    ),
    "serve.versions_refused": MetricSpec(
        "counter", "versions that must not serve: refused at loading"
    ),
    "serve.swap_stall_s": MetricSpec("histogram", "how long a swap of versions held up answers"),
    "tracing.limited": MetricSpec(
        "counter", "requests of sampled traces that were not followed: too many in a second"
    ),
    "tracing.malformed": MetricSpec("counter", "trace headers that were ignored", ("header",)),
    "tracing.spans": MetricSpec(
        "counter", "spans of traces: sent, queue-full, or not-taken by the collector", ("outcome",)
    ),
}


class Metrics(Protocol):
    """
    Where numbers go. Thread-safe, and cheap enough to call once a batch.

    Implementations must pass `tests.contracts.metrics.MetricsContract`.
    """

    def count(self, name: MetricName, n: float = 1, **labels: str) -> None:
        """Add to a counter."""

    def observe(self, name: MetricName, value: float, *, trace_id: str = "", **labels: str) -> None:
        """Put a value into a histogram. `trace_id`: of a sampled trace that shows such a value."""

    def observe_all(
        self,
        name: MetricName,
        values: NDArray[np.float64],
        *,
        traces: Mapping[int, str] = NO_TRACES,
        **labels: str,
    ) -> None:
        """
        Put n values into a histogram, at about the price of one.

        `traces`: ids of sampled traces, by place among the values.
        """

    def gauge(self, name: MetricName, value: float, **labels: str) -> None:
        """Set a gauge."""


class MemoryMetrics:
    """
    Numbers to look at in a test or a report.

    >>> metrics = MemoryMetrics()
    >>> metrics.count("features.events", 3)
    >>> metrics.value("features.events")
    3.0
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[MetricName, tuple[str, ...]], float] = {}
        self._observed: dict[tuple[MetricName, tuple[str, ...]], list[float]] = {}
        self._exemplars: dict[tuple[MetricName, tuple[str, ...]], list[str]] = {}

    def count(self, name: MetricName, n: float = 1, **labels: str) -> None:
        key = (name, checked_labels(name, "counter", labels))
        if n < 0:
            raise ValueError(f"{name} only grows, got {n}")
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + n

    def observe(self, name: MetricName, value: float, *, trace_id: str = "", **labels: str) -> None:
        traces = {0: trace_id} if trace_id else NO_TRACES
        self.observe_all(name, np.array([value]), traces=traces, **labels)

    def observe_all(
        self,
        name: MetricName,
        values: NDArray[np.float64],
        *,
        traces: Mapping[int, str] = NO_TRACES,
        **labels: str,
    ) -> None:
        key = (name, checked_labels(name, "histogram", labels))
        with self._lock:
            self._observed.setdefault(key, []).extend(values.tolist())
            self._exemplars.setdefault(key, []).extend(traces.values())

    def gauge(self, name: MetricName, value: float, **labels: str) -> None:
        key = (name, checked_labels(name, "gauge", labels))
        with self._lock:
            self._values[key] = float(value)

    def value(self, name: MetricName, **labels: str) -> float:
        """A counter or gauge (0 if never touched), or the number of values of a histogram."""
        spec = METRICS[name]
        key = (name, checked_labels(name, spec.kind, labels))
        with self._lock:
            if spec.kind == "histogram":
                return float(len(self._observed.get(key, ())))
            return self._values.get(key, 0.0)

    def observed(self, name: MetricName, **labels: str) -> list[float]:
        """All values put into a histogram."""
        with self._lock:
            return list(self._observed.get((name, checked_labels(name, "histogram", labels)), ()))

    def exemplars(self, name: MetricName, **labels: str) -> list[str]:
        """Ids of all traces that were named with values of a histogram."""
        with self._lock:
            return list(self._exemplars.get((name, checked_labels(name, "histogram", labels)), ()))


def checked_labels(name: MetricName, kind: Kind, labels: Mapping[str, str]) -> tuple[str, ...]:
    """
    The labels' values in declared order: for those who implement Metrics.

    Raises:
        ValueError: the metric is of another kind, or has other labels.
    """
    spec = METRICS[name]
    if spec.kind != kind or set(labels) != set(spec.labels):
        raise ValueError(
            f"{name} is a {spec.kind} with labels {list(spec.labels)}, "
            f"used as a {kind} with {sorted(labels)}"
        )
    return tuple(labels[label] for label in spec.labels)


if set(get_args(MetricName)) != set(METRICS):
    raise RuntimeError("MetricName and METRICS must name the same metrics")
