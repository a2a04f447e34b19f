"""One tree of spans a job, sent by OTLP where OTEL_EXPORTER_OTLP_ENDPOINT is set; otherwise nothing, not even an import.

    job                      from the insert to the end; written by the worker that ends the job
    ├── wait                 from the insert, or the time it was put off to, to the claim
    └── attempt              one for each claim
        ├── claim, prepare, gpu_wait, paint (with denoise and decode), finish
        └── deliver          with encode and upload of each image

The trace's id is the job's id without its dashes, so that who knows one knows the other; a frontend that traces by itself gives its
own in `metadata.traceparent` (W3C Trace Context) and finds the job under its span. Spans carry numbers and codes, never words or
URLs.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

NANOSECONDS = 1_000_000_000
TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")  # https://www.w3.org/TR/trace-context/

log = structlog.get_logger()

_provider: TracerProvider | None = None
_tracer: Tracer | None = None
_given_ids: ContextVar[tuple[int, int] | None] = ContextVar("given_ids", default=None)


@dataclass(frozen=True, kw_only=True)
class TraceIds:
    """Which trace a job belongs to, the id of the job's own span, and that of the span it hangs from, if it hangs from any."""

    trace: int
    job_span: int
    parent_span: int | None

    @classmethod
    def of(cls, job_id: UUID, metadata: object) -> TraceIds:
        given = metadata.get("traceparent") if isinstance(metadata, Mapping) else None
        found = TRACEPARENT.fullmatch(given) if isinstance(given, str) else None
        trace, parent = (int(found[1], 16), int(found[2], 16)) if found else (job_id.int, None)
        # a client may choose its job's id, and 0 is no id of a trace
        return cls(trace=trace or 1, job_span=job_id.int & (1 << 64) - 1 or 1, parent_span=parent)


class Attempt:
    """To be told how the attempt ended, before its span does."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self.outcome = "unknown"
        self.error_code = ""
        self.last = False

    def ended(self, outcome: str, error_code: str) -> None:
        """The job ends with it where the database says so; `finish_job` goes by the same rules."""
        self.outcome, self.error_code = outcome, error_code
        charged = outcome == "retry" or (outcome == "faulted" and self._row.get("fault_is_charged", False))
        out_of_attempts = charged and self._row.get("attempts", 0) >= self._row.get("max_attempts", 1)
        poison = outcome == "crashed" and self._row.get("crashes", 0) >= 1
        self.last = outcome in ("completed", "failed", "cancelled") or out_of_attempts or poison


class _JobIds:
    """Random ids, but for the span that is given its own."""

    def generate_span_id(self) -> int:
        given = _given_ids.get()
        return given[1] if given else secrets.randbits(64) or 1

    def generate_trace_id(self) -> int:
        given = _given_ids.get()
        return given[0] if given else secrets.randbits(128) or 1

    def is_trace_id_random(self) -> bool:
        return False


def set_up_tracing(attributes: Mapping[str, str]) -> None:
    """`attributes` describe this process. OpenTelemetry reads the rest from its own variables (OTEL_…)."""
    global _provider, _tracer
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

    class Exporter(OTLPSpanExporter):
        arrives = True

        def export(self, spans: Any) -> SpanExportResult:
            result = super().export(spans)
            if self.arrives != (arrives := result is SpanExportResult.SUCCESS):
                self.arrives = arrives
                log.warning("traces_arrive_again" if arrives else "traces_do_not_arrive")
            return result

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it would repeat itself with every batch
    _provider = TracerProvider(
        resource=Resource.create({"service.name": "sdxl-worker", **attributes}),
        id_generator=_JobIds(),  # type: ignore[arg-type]
        shutdown_on_exit=False,  # it would wait for a receiver that is away
    )
    # Spans wait in a bounded list, which a thread of its own sends: a receiver that is slow or away loses spans and nothing else.
    _provider.add_span_processor(BatchSpanProcessor(Exporter()))
    _tracer = _provider.get_tracer("ourvidz_sdxl")


def send_the_rest() -> threading.Thread:
    """Begins to; the caller waits for it as long as it likes."""
    thread = threading.Thread(target=_provider.shutdown if _provider else lambda: None, name="last-spans", daemon=True)
    thread.start()
    return thread


@contextmanager
def attempt(row: Mapping[str, Any], *, claim_seconds: float, worker_id: str) -> Iterator[Attempt]:
    """Within it, spans of this thread hang under this attempt; the job's own span is written when it ends with this attempt.

    The database's clock says how long the job waited, and this machine's when that ended: between two clocks a span could end
    before it began.
    """
    handle = Attempt(row)
    if _tracer is None:
        yield handle
        return
    from opentelemetry import trace

    ids = TraceIds.of(UUID(str(row["id"])), row.get("metadata"))
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)

    def under(span_id: int) -> Any:
        context = trace.SpanContext(ids.trace, span_id, is_remote=True, trace_flags=sampled)
        return trace.set_span_in_context(trace.NonRecordingSpan(context))

    now = time.time_ns()
    since_insert, since_due = (int(seconds * NANOSECONDS) for seconds in waited_seconds(row))
    claimed_at = now - int(claim_seconds * NANOSECONDS)
    attributes = job_attributes(row) | {"worker.id": worker_id}
    _tracer.start_span("wait", under(ids.job_span), start_time=min(now - since_due, claimed_at)).end(claimed_at)
    span = _tracer.start_span("attempt", under(ids.job_span), start_time=claimed_at, attributes=attributes)
    with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
        _tracer.start_span("claim", start_time=claimed_at).end(now)
        try:
            yield handle
        finally:
            ends = [span]
            if handle.last:
                token = _given_ids.set((ids.trace, ids.job_span))
                context = under(ids.parent_span) if ids.parent_span else trace.set_span_in_context(trace.INVALID_SPAN)
                start = min(now - since_insert, claimed_at)
                ends.append(_tracer.start_span("job", context, start_time=start, attributes=attributes))
                _given_ids.reset(token)
            for one in ends:
                one.set_attributes({"job.outcome": handle.outcome, "job.error_code": handle.error_code})
                if handle.error_code:
                    one.set_status(trace.Status(trace.StatusCode.ERROR, handle.error_code))
                one.end()


def job_attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "job_type",
        "target_worker",
        "batch_size",
        "width",
        "height",
        "steps",
        "guidance_scale",
        "attempts",
        "claims",
        "priority",
    )
    told = {f"job.{name}": row[name] for name in names if row.get(name) is not None}
    return told | {
        "job.id": str(row["id"]),
        "job.has_reference": bool(row.get("reference_image_url") or row.get("reference_image_path")),
    }


def waited_seconds(row: Mapping[str, Any]) -> tuple[float, float]:
    """From the insert to the claim, and from when the job was due to it; by the database's clock alone."""
    created, started, due = (datetime.fromisoformat(row[name]) for name in ("created_at", "started_at", "run_at"))
    return tuple(max(0.0, (started - since).total_seconds()) for since in (created, max(created, due)))  # type: ignore[return-value]


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[None]:
    if _tracer is None:
        yield
        return
    from opentelemetry.trace import Status, StatusCode

    with _tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as opened:
        try:
            yield
        except BaseException as error:
            opened.set_status(Status(StatusCode.ERROR, type(error).__name__))  # its text may quote the job
            raise


def past_span(name: str, *, seconds: float, ago_seconds: float = 0.0, **attributes: Any) -> None:
    """One that took `seconds` and ended `ago_seconds` before now."""
    if _tracer is not None:
        end = time.time_ns() - int(ago_seconds * NANOSECONDS)
        _tracer.start_span(name, start_time=end - int(seconds * NANOSECONDS), attributes=attributes).end(end)


def event(name: str, **attributes: Any) -> None:
    """On the span that this thread is in."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span

        get_current_span().add_event(name, attributes)


def trace_id() -> str | None:
    """Of the job that this thread is in, as 32 hexadecimal digits; None where traces are off."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    return f"{get_current_span().get_span_context().trace_id:032x}"
