"""A receiver of traces on loopback that understands OTLP over HTTP, or that is as slow and as rude as a test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.pace import TIMEOUT_SECONDS


@dataclass(frozen=True, kw_only=True)
class Span:
    """One span as it came over the wire; times in seconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start: float
    end: float
    attributes: dict[str, object]
    events: list[tuple[str, dict[str, object]]]
    error: str | None

    @classmethod
    def of(cls, wire: WireSpan) -> Span:
        return cls(
            trace_id=wire.trace_id.hex(),
            span_id=wire.span_id.hex(),
            parent_id=wire.parent_span_id.hex(),
            name=wire.name,
            start=wire.start_time_unix_nano / 1e9,
            end=wire.end_time_unix_nano / 1e9,
            attributes=values(wire.attributes),
            events=[(event.name, values(event.attributes)) for event in wire.events],
            error=wire.status.message if wire.status.code == Status.STATUS_CODE_ERROR else None,
        )


def values(attributes: object) -> dict[str, object]:
    pairs: list[KeyValue] = list(attributes)  # type: ignore[call-overload]
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


class OtlpReceiver:
    """`with OtlpReceiver() as receiver:` listens at `receiver.url`. With `hold_seconds` it answers that late."""

    def __init__(self, *, hold_seconds: float = 0, status: int = 200) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, object]] = []
        self.requests = 0
        self.raw = b""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests += 1
                receiver.over.wait(hold_seconds)
                if status == 200 and self.path == "/v1/traces":
                    receiver.take(body)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass

        self.over = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> OtlpReceiver:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes) -> None:
        self.raw += body
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            self.resources.append(values(resource.resource.attributes))
            self.spans += [Span.of(wire) for scope in resource.scope_spans for wire in scope.spans]

    def wait_for(self, condition: Callable[[list[Span]], bool]) -> list[Span]:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition(self.spans):
            assert time.monotonic() < deadline, [(span.name, span.attributes) for span in self.spans[-20:]]
            time.sleep(0.02)
        return self.spans

    def trace(self, trace_id: str) -> list[Span]:
        """All spans of a trace once its job's own span is there; that one is sent with the last."""
        self.wait_for(lambda spans: any(span.name == "job" and span.trace_id == trace_id for span in spans))
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.start)


def tree(spans: list[Span]) -> dict[str, list[str]]:
    """The names of each span's children, by the names of the spans."""
    names = {span.span_id: span.name for span in spans}
    children: dict[str, list[str]] = {}
    for span in spans:
        children.setdefault(names.get(span.parent_id, ""), []).append(span.name)
    return children
