"""Metrics in memory and for Prometheus."""

from __future__ import annotations

import urllib.request
from typing import get_args

import numpy as np
import pytest

from ingest.metrics import METRICS, MemoryMetrics, MetricName
from ingest.prometheus import PrometheusMetrics, prometheus_name
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

    def test_buckets_hold_what_is_up_to_their_bound(self) -> None:
        metrics, name = PrometheusMetrics(), "millstream_serve_queue_age_seconds_bucket"
        metrics.observe_all("serve.queue_age_s", np.array([0.001, 0.0011, 99.0]))
        metrics.observe("serve.queue_age_s", 10.0)
        found = {le: metrics.registry.get_sample_value(name, {"le": le}) for le in BOUNDS}
        assert found == {"0.001": 1, "0.002": 2, "10.0": 3, "+Inf": 4}


BOUNDS = ("0.001", "0.002", "10.0", "+Inf")
TRACE = "ab" * 16


def scraped(metrics: PrometheusMetrics, accept: str) -> str:
    with metrics.served(0) as port:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
        asked.add_header("Accept", accept)
        with urllib.request.urlopen(asked) as answer:
            return answer.read().decode()


def test_a_trace_is_shown_with_the_bucket_of_its_value_to_who_accepts_openmetrics() -> None:
    metrics = PrometheusMetrics()
    metrics.observe("serve.latency_s", 0.004, trace_id=TRACE, stage="score")
    metrics.observe_all("serve.answer_s", np.array([0.1, 7.0]), traces={1: TRACE})
    text = scraped(metrics, "application/openmetrics-text; version=1.0.0")
    lines = [line for line in text.splitlines() if TRACE in line]
    assert lines == [
        f'millstream_serve_answer_seconds_bucket{{le="10.0"}} 2.0 # {{trace_id="{TRACE}"}} 7.0',
        'millstream_serve_latency_seconds_bucket{le="0.005",stage="score"} 1.0 '
        f'# {{trace_id="{TRACE}"}} 0.004',
    ]
    assert TRACE not in scraped(metrics, "text/plain")


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
