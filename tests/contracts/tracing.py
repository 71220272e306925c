"""What tracers promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ingest.metrics import MemoryMetrics
from ingest.tracing import Span, Tracer

CALLER = "00-" + "ab" * 16 + "-" + "cd" * 8
SAMPLED = (("traceparent", f"{CALLER}-01".encode()), ("tracestate", b"vendor=1,other=2"))
UNSAMPLED = (("traceparent", f"{CALLER}-00".encode()),)


@dataclass
class Traces:
    """A tracer, and the spans that left it."""

    tracer: Tracer
    spans: Callable[[], list[Span]]  # closes the tracer first
    metrics: MemoryMetrics = field(default_factory=MemoryMetrics)


class TracerContract:
    @pytest.fixture
    def open(self) -> Callable[[float], Traces]:
        raise NotImplementedError("override with what opens the implementation for a ratio")

    def test_a_request_of_a_sampled_caller_is_followed_in_the_callers_trace(self, open) -> None:
        trace = open(0.0).tracer.begin(SAMPLED)
        assert trace.sampled
        assert trace.parent.traceparent == f"{CALLER}-01"
        for own in (trace.own, trace.out):
            assert (own.trace_id, own.flags, own.state) == ("ab" * 16, 1, "vendor=1,other=2")
        assert len({trace.own.span_id, trace.out.span_id, "cd" * 8}) == 3

    def test_a_caller_that_does_not_sample_is_passed_on_unchanged(self, open) -> None:
        traces = open(1.0)
        trace = traces.tracer.begin(UNSAMPLED)
        assert not trace.sampled
        assert trace.out.headers() == UNSAMPLED

    def test_without_a_caller_the_ratio_decides(self, open) -> None:
        assert not open(0.0).tracer.starts
        assert open(0.0).tracer.begin(()) is None
        begun = open(1.0).tracer.begin(())
        assert begun.sampled
        assert begun.parent is None

    def test_a_malformed_caller_is_counted_and_as_none(self, open) -> None:
        traces = open(0.0)
        assert traces.tracer.begin((("traceparent", b"00-x"),)) is None
        assert (
            traces.tracer.begin(
                (*SAMPLED[:1], ("tracestate", b"=")),
            ).out.state
            == ""
        )
        malformed = {
            header: traces.metrics.value("tracing.malformed", header=header)
            for header in ("traceparent", "tracestate")
        }
        assert malformed == {"traceparent": 1, "tracestate": 1}

    def test_what_is_recorded_comes_out_as_it_was(self, open) -> None:
        traces = open(0.0)
        trace = traces.tracer.begin(SAMPLED)
        trace.child("read", (5_000, 7_000), {"rows": 3, "stale": True, "share": 0.5, "arm": "A"})
        trace.child("score", (7_000, 6_000), {}, "no-model")
        traces.tracer.record(trace.children)
        assert traces.spans() == trace.children
        assert [(span.start_ns, span.end_ns) for span in trace.children] == [
            (5_000, 7_000),
            (7_000, 7_000),
        ]

    def test_closing_twice_is_closing_once(self, open) -> None:
        tracer = open(0.0).tracer
        tracer.close()
        tracer.close()
