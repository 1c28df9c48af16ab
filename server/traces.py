"""Traces of requests: W3C trace context in and out, and spans to an OTLP collector where a server is told of one.

Formats: W3C Trace Context (https://www.w3.org/TR/trace-context/); names of attributes by OpenTelemetry's semantic
conventions for HTTP and generative AI.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from server.errors import EngineStartError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_EXPORT_SECONDS = 5.0  # that a collector has to take spans, also when the server ends
Attribute = str | int | float | bool | Sequence[str]


@dataclass(frozen=True)
class Span:
    """A part of a request. ``start`` and ``end``: seconds of ``time.perf_counter``."""

    name: str
    start: float
    end: float
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


_parts: ContextVar[list[Span] | None] = ContextVar("parts of the request", default=None)


@contextmanager
def collecting(wanted: bool) -> Iterator[list[Span]]:
    """What ``part`` tells of in this context and in tasks that are begun in it; nothing unless ``wanted``."""
    parts: list[Span] = []
    token = _parts.set(parts if wanted else None)
    try:
        yield parts
    finally:
        _parts.reset(token)


@contextmanager
def part(name: str) -> Iterator[dict[str, Attribute]]:
    """What is done here is a part of the request that it is done for, if it is; yields a place for attributes."""
    parts, start = _parts.get(), time.perf_counter()
    attributes: dict[str, Attribute] = {}
    try:
        yield attributes
    except Exception as error:
        attributes["error.type"] = type(error).__name__
        raise
    finally:
        if parts is not None:
            parts.append(Span(name, start, time.perf_counter(), attributes))


class Trace(Protocol):
    """The trace of one request."""

    @property
    def header(self) -> str:
        """The traceparent of its answer; "" for none."""

    @property
    def id(self) -> str:
        """The trace's id; "" for none."""

    @property
    def is_recording(self) -> bool:
        """Whether ``end`` sends anything."""

    def end(self, whole: Span, parts: Sequence[Span], error: str) -> None:
        """The request has ended, with the code of its ``error`` or ""."""


class Traces(Protocol):
    """Where traces begin."""

    def begin(self, headers: Mapping[str, str]) -> Trace:
        """That of a request, part of the one that its ``headers`` name."""

    def close(self) -> None:
        """Send what is left."""


@dataclass(frozen=True)
class _Passed:
    """A trace that others keep."""

    header: str = ""
    id: str = ""
    is_recording: bool = False

    def end(self, whole: Span, parts: Sequence[Span], error: str) -> None:
        """Nothing."""


class PassedTraces(Traces):
    """Sends no spans; who names a trace gets it back, with an id for what was done here."""

    @override
    def begin(self, headers: Mapping[str, str]) -> Trace:
        found = _TRACEPARENT.fullmatch(headers.get(TRACEPARENT, ""))
        return _Passed() if found is None else _Passed(f"00-{found[1]}-{token_hex(8)}-{found[3]}", found[1])

    @override
    def close(self) -> None:
        pass


class OtlpTraces(Traces):
    """Sends the spans of a share ``ratio`` of the traces that begin here, and of those that others sample.

    ``endpoint`` is the collector's URL for traces over HTTP, such as http://localhost:4318/v1/traces. Raises
    EngineStartError where the packages for it are not installed.
    """

    def __init__(self, endpoint: str, ratio: float, service: Mapping[str, str]) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        except ImportError as error:
            raise EngineStartError(
                "--otlp-traces-endpoint needs OpenTelemetry's SDK: pip install 'hotswap[tracing]'"
            ) from error
        logging.getLogger("opentelemetry").setLevel(logging.WARNING)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)
        self._provider: TracerProvider = TracerProvider(
            resource=Resource.create(dict(service)), sampler=ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer("hotswap", service.get("service.version"))

    @override
    def begin(self, headers: Mapping[str, str]) -> Trace:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        given = {name: headers[name] for name in (TRACEPARENT, TRACESTATE) if name in headers}
        parent = TraceContextTextMapPropagator().extract(given)
        return _Recorded(self._tracer, self._tracer.start_span("request", parent, kind=SpanKind.SERVER))

    @override
    def close(self) -> None:
        self._provider.shutdown()


class _Recorded:
    """A trace whose spans are sent, if it is sampled."""

    def __init__(self, tracer: Tracer, span: OtelSpan) -> None:
        self._tracer = tracer
        self._span = span
        self.is_recording = span.is_recording()
        context = span.get_span_context()
        self.id = f"{context.trace_id:032x}"
        self.header = f"00-{self.id}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, whole: Span, parts: Sequence[Span], error: str) -> None:
        """Name the request's span, give it its parts, and send all."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        zero = time.time_ns() - int(time.perf_counter() * 1e9)
        self._span.update_name(whole.name)
        self._span.set_attributes(dict(whole.attributes))
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        context = set_span_in_context(self._span)
        for part in parts:
            attributes: dict[str, Any] = dict(part.attributes)
            start = zero + int(part.start * 1e9)
            child = self._tracer.start_span(part.name, context, attributes=attributes, start_time=start)
            child.end(zero + int(part.end * 1e9))
        self._span.end(zero + int(whole.end * 1e9))
