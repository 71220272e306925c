"""
Spans to a collector: OTLP over HTTP, by OpenTelemetry's own queue and exporter. The one importer
of `opentelemetry`; import it late.

Headers (a token, say) and certificates of the collector are OpenTelemetry's own variables:
OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE. Attributes of the resource are added by
OTEL_RESOURCE_ATTRIBUTES.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext as LibraryContext
from opentelemetry.trace import SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from ingest.log import Headers
from ingest.metrics import Metrics
from ingest.trace_context import SpanContext
from ingest.tracing import Kind, Sampler, Span, Trace

log = structlog.get_logger(__name__)

TRACES_PATH: Final = "/v1/traces"
SERVICE: Final = "millstream"
_KINDS: Final = {kind: SpanKind[kind.name] for kind in Kind}
_FINE: Final = Status(StatusCode.UNSET)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPolicy:
    """Bounds of what waits and of how long it may take."""

    queue: int = 4096  # spans that wait; more are dropped
    batch: int = 512
    every_s: float = 1.0
    timeout_s: float = 3.0  # of one batch, its tries together
    close_s: float = 3.0


class OtlpTracer:
    """`Tracer` that sends spans to a collector. What the collector does not take is dropped."""

    def __init__(
        self,
        endpoint: str,
        instance: str,
        sampler: Sampler,
        metrics: Metrics,
        policy: ExportPolicy | None = None,
    ) -> None:
        """
        `endpoint`: as OTEL_EXPORTER_OTLP_ENDPOINT, without the path, or with it.

        Nothing is asked of the collector yet: it may come later, or not at all.
        """
        self._sampler = sampler
        self._policy = policy or ExportPolicy()
        self._resource = Resource.create({"service.name": SERVICE, "service.instance.id": instance})
        self._scope = InstrumentationScope("millstream")
        _listen()
        exporter = OTLPSpanExporter(
            endpoint=endpoint.removesuffix("/").removesuffix(TRACES_PATH) + TRACES_PATH,
            timeout=self._policy.timeout_s,
            compression=Compression.Gzip,
        )
        self._export = _Counted(exporter, metrics, self._policy.queue)
        self._processor = BatchSpanProcessor(
            self._export,
            max_queue_size=self._policy.queue,
            schedule_delay_millis=1000 * self._policy.every_s,
            max_export_batch_size=self._policy.batch,
        )
        self._closed = False

    @property
    def starts(self) -> bool:
        return self._sampler.starts

    def begin(self, headers: Headers) -> Trace | None:
        return self._sampler.begin(headers)

    def record(self, spans: Sequence[Span]) -> None:
        if self._export.admits(len(spans)):
            for span in spans:
                self._processor.on_end(self._readable(span))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # The processor takes no time-out: an exporter that is shut down ends its tries.
        ending = threading.Thread(target=self._processor.shutdown, name="spans-end", daemon=True)
        ending.start()
        ending.join(self._policy.close_s)
        if ending.is_alive():
            self._export.shutdown()
            ending.join(self._policy.timeout_s)

    def _readable(self, span: Span) -> ReadableSpan:
        remote = span.kind in (Kind.SERVER, Kind.CONSUMER)  # whose parent is another process's
        return ReadableSpan(
            name=span.name,
            context=_library(span.context, remote=False),
            parent=None if span.parent is None else _library(span.parent, remote=remote),
            resource=self._resource,
            attributes=span.attributes,
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else _FINE,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


def _library(context: SpanContext, *, remote: bool) -> LibraryContext:
    return LibraryContext(
        trace_id=int(context.trace_id, 16),
        span_id=int(context.span_id, 16),
        is_remote=remote,
        trace_flags=TraceFlags(context.flags),
        trace_state=TraceState.from_header([context.state]) if context.state else None,
    )


class _Counted(SpanExporter):
    """
    Counts what becomes of spans, and lets no more in than may wait.

    The processor's own queue is full without saying so to anybody who counts; it has the same
    length, and so never is.
    """

    def __init__(self, exporter: SpanExporter, metrics: Metrics, most: int) -> None:
        self._exporter, self._metrics, self._most = exporter, metrics, most
        self._lock = threading.Lock()
        self._waiting = 0
        self._over = threading.Event()

    def admits(self, count: int) -> bool:
        """Whether so many may come; else they are dropped together: half a tree is of no use."""
        with self._lock:
            fits = self._waiting + count <= self._most
            self._waiting += count if fits else 0
        if not fits:
            self._metrics.count("tracing.spans", count, outcome="queue-full")
        return fits

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            self._waiting -= len(spans)
        over = self._over.is_set()
        result = SpanExportResult.FAILURE if over else self._exporter.export(spans)
        outcome = "sent" if result is SpanExportResult.SUCCESS else "not-taken"
        self._metrics.count("tracing.spans", len(spans), outcome=outcome)
        return result

    def shutdown(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class _LibraryLog(logging.Handler):
    """
    What the library says, as structlog events: the 1st, 10th, 100th ... time that it does.

    A collector that is away would fill the log otherwise.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._times: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self._times[record.msg] += 1
        times = self._times[record.msg]
        if str(times).strip("0") == "1":
            log.warning("tracing.library", said=record.getMessage()[:500], times=times)


def _listen() -> None:
    library = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _LibraryLog) for handler in library.handlers):
        library.addHandler(_LibraryLog())
        library.propagate = False
