"""Whose traces requests belong to, and the spans that leave."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ingest.clock import ManualClock, SystemClock
from ingest.metrics import MemoryMetrics
from ingest.otlp import ExportPolicy, OtlpTracer
from ingest.settings import Settings
from ingest.trace_context import Malformed, SpanContext, carried, read
from ingest.tracing import (
    CountedIds,
    Limit,
    MemoryTracer,
    NoTracer,
    RandomIds,
    Sampler,
    Span,
    Timeline,
    Tracer,
    open_tracer,
)
from tests.collector import Collector, collecting
from tests.contracts.tracing import CALLER, SAMPLED, UNSAMPLED, TracerContract, Traces

TRACE, SPAN = "ab" * 16, "cd" * 8


class TestMemoryTracer(TracerContract):
    @pytest.fixture
    def open(self) -> Callable[[float], Traces]:
        def opened(ratio: float) -> Traces:
            metrics = MemoryMetrics()
            tracer = MemoryTracer(ratio, metrics)
            return Traces(tracer, lambda: tracer.spans, metrics)

        return opened


class TestOtlpTracer(TracerContract):
    @pytest.fixture
    def collector(self) -> Iterator[Collector]:
        with collecting() as collector:
            yield collector

    @pytest.fixture
    def open(self, collector: Collector) -> Iterator[Callable[[float], Traces]]:
        opened: list[Tracer] = []

        def open_(ratio: float) -> Traces:
            metrics = MemoryMetrics()
            sampler = Sampler(ratio, RandomIds(), metrics)
            tracer = OtlpTracer(collector.url, "test", sampler, metrics)
            opened.append(tracer)

            def spans() -> list[Span]:
                tracer.close()
                return collector.spans

            return Traces(tracer, spans, metrics)

        yield open_
        for tracer in opened:
            tracer.close()

    def test_the_collector_hears_who_speaks(self, open, collector: Collector) -> None:
        traces = open(1.0)
        record(traces.tracer, 3)
        assert len(traces.spans()) == 3
        assert collector.paths == ["/v1/traces"]
        assert collector.resources[0]["service.name"] == "millstream"
        assert collector.resources[0]["service.instance.id"] == "test"
        assert traces.metrics.value("tracing.spans", outcome="sent") == 3


def record(tracer: Tracer, count: int) -> None:
    trace = tracer.begin(SAMPLED)
    for _ in range(count):
        trace.child("step", (1, 2))
    tracer.record(trace.children)


def otlp(url: str, metrics: MemoryMetrics, **policy) -> OtlpTracer:
    sampler = Sampler(0.0, CountedIds(), metrics)
    return OtlpTracer(url, "test", sampler, metrics, ExportPolicy(**policy))


@pytest.fixture
def refusing() -> Iterator[str]:
    """An address that refuses connections: bound, and not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_an_unreachable_collector_costs_its_spans_and_nothing_else(refusing, eventually) -> None:
    metrics = MemoryMetrics()
    tracer = otlp(refusing, metrics, queue=10, batch=5, every_s=0.05, timeout_s=0.2, close_s=0.5)
    for _ in range(50):
        record(tracer, 4)  # neither waits nor raises
    tracer.close()
    lost = [metrics.value("tracing.spans", outcome=o) for o in ("queue-full", "not-taken")]
    assert lost[0] > 0
    assert sum(lost) == 200
    assert metrics.value("tracing.spans", outcome="sent") == 0


def test_a_collector_that_is_there_again_gets_what_comes_then(eventually) -> None:
    metrics = MemoryMetrics()
    with collecting(status=400) as collector:
        tracer = otlp(collector.url, metrics, every_s=0.02, timeout_s=0.5)
        record(tracer, 2)
        eventually(lambda: metrics.value("tracing.spans", outcome="not-taken") == 2)
        collector.status = 200
        record(tracer, 3)
        eventually(lambda: len(collector.spans) == 3)
        tracer.close()


def test_a_collector_that_never_answers_does_not_hold_up_the_end(eventually) -> None:
    metrics, clock = MemoryMetrics(), SystemClock()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracer = otlp(url, metrics, batch=2, every_s=60, timeout_s=0.3, close_s=0.1)
        for _ in range(50):
            record(tracer, 2)
        since_s = clock.monotonic_s()
        tracer.close()
        # Fifty batches of 0.3 s each would be 15 s: the bound is on all of them.
        assert clock.monotonic_s() - since_s < 10
        eventually(lambda: metrics.value("tracing.spans", outcome="not-taken") == 100, 5)


def test_what_was_sent_makes_room(eventually) -> None:
    metrics = MemoryMetrics()
    with collecting() as collector:
        tracer = otlp(collector.url, metrics, queue=4, batch=4, every_s=0.02)
        for count in range(4, 24, 4):
            record(tracer, 4)
            eventually(lambda count=count: len(collector.spans) == count)
        tracer.close()
    assert metrics.value("tracing.spans", outcome="queue-full") == 0


def test_a_path_of_the_endpoint_may_be_given() -> None:
    with collecting() as collector:
        tracer = otlp(f"{collector.url}/v1/traces/", MemoryMetrics())
        record(tracer, 1)
        tracer.close()
    assert collector.paths == ["/v1/traces"]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xfe",
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN.upper()}-01".encode(),
        f"00-{TRACE[:-1]}-{SPAN}-01".encode(),
        f"00-{TRACE}0-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN[:-1]}-01".encode(),
        f"00-{TRACE}-{SPAN}-1".encode(),
        f"00-{TRACE}-{SPAN}".encode(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"0-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01-more".encode(),
        f"00-{TRACE}-{SPAN}-0g".encode(),
        f" 00-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01\n".encode(),
    ],
)
def test_a_malformed_traceparent_is_ignored(value: bytes) -> None:
    assert read((("traceparent", value),)) == (None, [Malformed("traceparent")])


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    for later in (f"cc-{TRACE}-{SPAN}-ff-more-of-it", f"01-{TRACE}-{SPAN}-ff"):
        found, ignored = read((("traceparent", later.encode()),))
        assert ignored == []
        assert found.traceparent == f"00-{TRACE}-{SPAN}-03"


def test_two_callers_are_none() -> None:
    assert read(SAMPLED[:1] * 2) == (None, [Malformed("traceparent")])


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ([b"a=1"], "a=1"),
        ([b"a=1, b=2,,", b"t@v=3"], "a=1,b=2,t@v=3"),
        ([b"a=1,a=2"], None),
        ([b"A=1"], None),
        ([b"a"], None),
        ([b"a=\xff"], None),
        ([b"a=" + b"x" * 600], None),
        ([b",".join(b"k%d=1" % i for i in range(33))], None),
    ],
)
def test_a_tracestate_is_passed_on_whole_or_not_at_all(values, state) -> None:
    found, ignored = read((SAMPLED[0], *(("tracestate", value) for value in values)))
    assert found.state == (state or "")
    assert ignored == ([] if state is not None else [Malformed("tracestate")])


def test_a_state_without_a_caller_means_nothing() -> None:
    assert read((("tracestate", b"a=1"),)) == (None, [])


def test_only_headers_about_traces_are_taken_from_a_call_and_no_baggage() -> None:
    pairs = [("TraceParent", CALLER + "-01"), ("baggage", "user=ann"), ("tracestate", b"a=1")]
    assert carried(pairs) == (("traceparent", f"{CALLER}-01".encode()), ("tracestate", b"a=1"))


def test_a_share_of_traces_is_about_the_ratio() -> None:
    sampler = Sampler(0.25, RandomIds(), MemoryMetrics())
    begun = sum(sampler.begin(()) is not None for _ in range(4_000))
    assert 800 < begun < 1200  # 6 standard deviations


def test_callers_that_sample_too_much_are_passed_on_unfollowed() -> None:
    clock, metrics = ManualClock(), MemoryMetrics()
    sampler = Sampler(1.0, CountedIds(), metrics, Limit(2, clock))
    begun = [sampler.begin(SAMPLED) for _ in range(4)]
    assert [one.sampled for one in begun] == [True, True, False, False]
    assert begun[3].out.headers() == SAMPLED
    assert sampler.begin(()) is None
    assert metrics.value("tracing.limited") == 3
    clock.advance(0.5)
    assert sampler.begin(SAMPLED).sampled
    assert not sampler.begin(SAMPLED).sampled
    clock.advance(60)
    assert sum(sampler.begin(SAMPLED).sampled for _ in range(5)) == 2  # saved up for no longer


def test_without_an_endpoint_a_callers_trace_goes_through_and_nothing_is_loaded() -> None:
    metrics = MemoryMetrics()
    tracer = open_tracer(Settings(), "0", ManualClock(), metrics)
    assert isinstance(tracer, NoTracer)
    for headers in (SAMPLED, UNSAMPLED):
        trace = tracer.begin(headers)
        assert not trace.sampled
        assert trace.out.headers() == headers
    assert tracer.begin((("traceparent", b"?"),)) is None
    assert metrics.value("tracing.malformed", header="traceparent") == 1
    program = (
        "import sys, ingest.tracing, inference.server\n"
        "sys.exit('loaded' if 'ingest.otlp' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_times_of_one_trace_are_in_order_whatever_the_wall_clock_says() -> None:
    clock = ManualClock(now_ms=5_000)
    clock.advance(1.0)
    line = Timeline(clock)
    assert line.ns(1.0) == 6_000 * 1_000_000
    assert line.ns(0.25) == 5_250 * 1_000_000


def test_all_spans_of_a_trace_are_on_one_timeline() -> None:
    """Two looks at a wall clock of milliseconds may lie a millisecond apart."""
    clock = ManualClock(now_ms=5_000)
    trace = MemoryTracer(1.0, MemoryMetrics()).begin(SAMPLED)
    assert trace is not None
    line = trace.on(clock)
    clock.advance(0.0009)
    assert trace.on(clock) is line


def test_a_span_does_not_end_before_it_starts() -> None:
    with pytest.raises(ValueError, match="ends before it starts: -1 ns"):
        Span(name="x", context=SpanContext(TRACE, SPAN), start_ns=2, end_ns=1)
