"""What metrics promise."""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np
import pytest

from ingest.metrics import MetricName, Metrics


class Readable(Metrics, Protocol):
    def value(self, name: MetricName, **labels: str) -> float: ...


class MetricsContract:
    @pytest.fixture
    def metrics(self) -> Readable:
        raise NotImplementedError("override with the implementation")

    def test_counters_add_up_by_label(self, metrics: Readable) -> None:
        metrics.count("serve.requests", status="OK")
        metrics.count("serve.requests", 2, status="OK")
        metrics.count("serve.requests", status="INVALID")
        assert metrics.value("serve.requests", status="OK") == 3
        assert metrics.value("serve.requests", status="INVALID") == 1
        assert metrics.value("serve.requests", status="EXPIRED") == 0

    def test_a_gauge_holds_the_last_value(self, metrics: Readable) -> None:
        metrics.gauge("serve.model_version", 3, arm="STABLE")
        metrics.gauge("serve.model_version", 2, arm="STABLE")
        assert metrics.value("serve.model_version", arm="STABLE") == 2

    def test_a_histogram_counts_its_values(self, metrics: Readable) -> None:
        for value in (0.001, 100.0):
            metrics.observe("features.freshness_s", value)
        assert metrics.value("features.freshness_s") == 2

    def test_histograms_are_kept_apart_by_label(self, metrics: Readable) -> None:
        for stage, count in (("score", 2), ("read", 1)):
            for _ in range(count):
                metrics.observe("serve.latency_s", 0.01, stage=stage)
        assert metrics.value("serve.latency_s", stage="score") == 2
        assert metrics.value("serve.latency_s", stage="read") == 1

    def test_many_values_count_as_many_single_ones(self, metrics: Readable) -> None:
        metrics.observe_all("serve.latency_s", np.array([0.001, 5.0, 50.0]), stage="queue")
        metrics.observe_all("serve.latency_s", np.zeros(0), stage="queue")
        metrics.observe("serve.latency_s", 1.0, stage="queue")
        assert metrics.value("serve.latency_s", stage="queue") == 4

    def test_a_counter_does_not_go_back(self, metrics: Readable) -> None:
        with pytest.raises(ValueError, match=r"-1|negative|increment"):
            metrics.count("features.events", -1)

    def test_another_kind_or_another_label_raises(self, metrics: Readable) -> None:
        with pytest.raises(ValueError, match=r"features\.events is a counter"):
            metrics.gauge("features.events", 1)
        with pytest.raises(ValueError, match=r"with labels \['status'\]"):
            metrics.count("serve.requests", reason="x")
        with pytest.raises(ValueError, match=r"with labels \['status'\]"):
            metrics.count("serve.requests")

    def test_nothing_is_lost_between_threads(self, metrics: Readable) -> None:
        def work() -> None:
            for _ in range(1000):
                metrics.count("features.events")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert metrics.value("features.events") == 4000
