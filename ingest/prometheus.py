"""Metrics for Prometheus to scrape. The one importer of `prometheus_client`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import prometheus_client as prom
from numpy.typing import NDArray
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from ingest.histogram import Histogram
from ingest.metrics import METRICS, NO_TRACES, MetricName, MetricSpec, checked_labels


class PrometheusMetrics:
    """
    For Prometheus to scrape, in a registry of its own.

    >>> metrics = PrometheusMetrics()
    >>> metrics.count("serve.requests", status="OK")
    >>> metrics.value("serve.requests", status="OK")
    1.0
    """

    def __init__(self) -> None:
        self.registry = prom.CollectorRegistry()
        self._counters: dict[str, prom.Counter] = {}
        self._gauges: dict[str, prom.Gauge] = {}
        self._histograms: dict[str, _Histograms] = {}
        # Those of counters and histograms that were told of before, by labels as they were given:
        # to check them and look for them takes longer than to count.
        self._known_counters: dict[tuple[str, ...], prom.Counter] = {}
        self._known_histograms: dict[tuple[str, ...], Histogram] = {}
        for name, spec in METRICS.items():
            known = (prometheus_name(name), spec.doc, spec.labels)
            if spec.kind == "counter":
                self._counters[name] = prom.Counter(*known, registry=self.registry)
            elif spec.kind == "gauge":
                self._gauges[name] = prom.Gauge(*known, registry=self.registry)
            else:
                self._histograms[name] = _Histograms(prometheus_name(name), spec)
                self.registry.register(self._histograms[name])

    def count(self, name: MetricName, n: float = 1, **labels: str) -> None:
        key = (name, *labels, *labels.values())
        counter = self._known_counters.get(key)
        if counter is None:
            values = checked_labels(name, "counter", labels)
            counter = self._counters[name]
            counter = self._known_counters[key] = counter.labels(*values) if values else counter
        counter.inc(n)

    def observe(self, name: MetricName, value: float, *, trace_id: str = "", **labels: str) -> None:
        self._histogram(name, labels).add(value, trace_id)

    def observe_all(
        self,
        name: MetricName,
        values: NDArray[np.float64],
        *,
        traces: Mapping[int, str] = NO_TRACES,
        **labels: str,
    ) -> None:
        self._histogram(name, labels).add_all(values, traces)

    def _histogram(self, name: MetricName, labels: Mapping[str, str]) -> Histogram:
        key = (name, *labels, *labels.values())
        found = self._known_histograms.get(key)
        if found is None:
            found = self._histograms[name].of(checked_labels(name, "histogram", labels))
            self._known_histograms[key] = found
        return found

    def gauge(self, name: MetricName, value: float, **labels: str) -> None:
        values = checked_labels(name, "gauge", labels)
        gauge = self._gauges[name]
        (gauge.labels(*values) if values else gauge).set(value)

    def value(self, name: MetricName, **labels: str) -> float:
        """A counter or gauge (0 if never touched), or the number of values of a histogram."""
        spec = METRICS[name]
        checked_labels(name, spec.kind, labels)
        suffix = {"counter": "_total", "gauge": "", "histogram": "_count"}[spec.kind]
        return self.registry.get_sample_value(prometheus_name(name) + suffix, labels) or 0.0

    @contextmanager
    def served(self, port: int, host: str = "127.0.0.1") -> Iterator[int]:
        """
        Answer scrapes on `port` (0: a free one) from a thread. Yields the port.

        Exemplars are in the answer to whom accepts OpenMetrics: the older format has none.
        """
        server, thread = prom.start_http_server(port, host, registry=self.registry)
        try:
            yield int(server.server_port)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Histograms(Collector):
    """One histogram for each combination of labels, told when Prometheus asks."""

    def __init__(self, name: str, spec: MetricSpec) -> None:
        self._name, self._spec = name, spec
        self._bounds = [*map(floatToGoString, spec.buckets), "+Inf"]
        self._lock = threading.Lock()
        self._of: dict[tuple[str, ...], Histogram] = {}
        if not spec.labels:
            self.of(())  # told from the start, though there is nothing in it

    def of(self, values: tuple[str, ...]) -> Histogram:
        """The histogram with these labels."""
        found = self._of.get(values)
        if found is None:
            with self._lock:
                found = self._of.setdefault(values, Histogram(self._spec.buckets))
        return found

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._spec.doc, labels=self._spec.labels)
        with self._lock:
            children = list(self._of.items())
        for values, histogram in children:
            told = histogram.told()
            buckets = [
                (bound, count, Exemplar({"trace_id": example.trace_id}, example.value))
                if example is not None
                else (bound, count)
                for bound, count, example in zip(
                    self._bounds, told.counts, told.examples, strict=True
                )
            ]
            family.add_metric(values, buckets, told.total)
        yield family


def prometheus_name(name: str) -> str:
    """
    A metric's name without its kind's suffix.

    >>> prometheus_name("serve.latency_s")
    'millstream_serve_latency_seconds'
    """
    flat = "millstream_" + name.replace(".", "_")
    return flat.removesuffix("_s") + "_seconds" if flat.endswith("_s") else flat
