"""Metrics in memory and for Prometheus."""

from __future__ import annotations

import urllib.request
from typing import get_args

import pytest

from ingest.metrics import METRICS, MemoryMetrics, MetricName, PrometheusMetrics, prometheus_name
from tests.contracts.metrics import MetricsContract


class TestMemoryMetrics(MetricsContract):
    @pytest.fixture
    def metrics(self) -> MemoryMetrics:
        return MemoryMetrics()

    def test_observed_values_can_be_read_back(self) -> None:
        metrics = MemoryMetrics()
        metrics.observe("serve.latency_s", 0.5, stage="score")
        assert metrics.observed("serve.latency_s", stage="score") == [0.5]


class TestPrometheusMetrics(MetricsContract):
    @pytest.fixture
    def metrics(self) -> PrometheusMetrics:
        return PrometheusMetrics()


def test_every_name_is_declared_with_a_meaning() -> None:
    assert set(get_args(MetricName)) == set(METRICS)
    assert all(spec.doc for spec in METRICS.values())
    assert len({prometheus_name(name) for name in METRICS}) == len(METRICS)


def test_two_sets_of_metrics_do_not_share_numbers() -> None:
    one, other = PrometheusMetrics(), PrometheusMetrics()
    one.count("features.events")
    assert other.value("features.events") == 0


def test_a_scrape_over_http_finds_the_numbers() -> None:
    metrics = PrometheusMetrics()
    metrics.count("serve.requests", status="OK")
    with (
        metrics.served(0) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        text = answer.read().decode()
    assert 'millstream_serve_requests_total{status="OK"} 1.0' in text
