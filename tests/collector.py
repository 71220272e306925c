"""A collector of traces: OTLP over HTTP, in a thread."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ingest.trace_context import SAMPLED, SpanContext
from ingest.tracing import Kind, Span


@dataclass
class Collector:
    """What came."""

    url: str = ""
    status: int = 200  # what it answers
    resources: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    _spans: list[Span] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def spans(self) -> list[Span]:
        """All spans so far."""
        with self._lock:
            return list(self._spans)

    def of(self, trace_id: str) -> dict[str, Span]:
        """The spans of a trace by name; fails where two have the same."""
        found = [span for span in self.spans if span.context.trace_id == trace_id]
        by_name = {span.name: span for span in found}
        assert len(by_name) == len(found), [span.name for span in found]
        return by_name

    def take(self, path: str, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(gzip.decompress(body))
        with self._lock:
            self.paths.append(path)
            for one in request.resource_spans:
                self.resources.append(_values(one.resource.attributes))
                for scope in one.scope_spans:
                    self._spans += map(_span, scope.spans)


@contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector(status=status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.status == 200:
                collector.take(self.path, body)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _span(sent: Any) -> Span:
    def context(span_id: bytes) -> SpanContext:  # what is sent is sampled; nobody says so
        return SpanContext(sent.trace_id.hex(), span_id.hex(), SAMPLED, sent.trace_state)

    return Span(
        name=sent.name,
        kind=list(Kind)[sent.kind - 1],  # the protocol's order is OpenTelemetry's
        context=context(sent.span_id),
        parent=context(sent.parent_span_id) if sent.parent_span_id else None,
        start_ns=sent.start_time_unix_nano,
        end_ns=sent.end_time_unix_nano,
        attributes=_values(sent.attributes),
        error=sent.status.message if sent.status.code == 2 else "",
    )


def _values(pairs: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in pairs}
