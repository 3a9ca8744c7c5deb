"""Traces, as OpenTelemetry has them: a span for each step of what one call has set going, whoever takes the step.

A trace goes with calls, in their metadata, and with the jobs that a call makes: the coordinator stores it with the job,
its message carries it, and the worker goes on with it. A program that has set up no SDK records nothing.

No span holds a passage, a prompt or an answer, nor the text of an error, which may quote one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = "traceparent"
"""The W3C's name for a span, where it stands in metadata and headers."""
_PUBLIC = "rookery.v1."
_WATCHES = "Watch"
"""Methods that wait for events, perhaps for hours, are called so."""
_PROPAGATOR = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("rookery")


def current_trace() -> str:
    """The current span as a `traceparent`; empty without one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(TRACEPARENT, "")


@contextmanager
def step(
    name: str, *, after: str = "", kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, str | int] | None = None
) -> Iterator[Span]:
    """A span of the current trace, or of the one with the span that `after` names. Without a trace there is none.

    An exception that leaves the block is the span's status, by its class.
    """
    parent = _read(after)
    if not _is_traced(parent):
        yield trace.INVALID_SPAN
        return
    with _started(name, parent, kind, attributes) as span:
        try:
            yield span
        except Exception as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise


@contextmanager
def answering(method: str, *, after: str) -> Iterator[Span]:
    """The span of a call that is being answered, by its full name, "/rookery.v1.RunService/GetRun".

    `after` is what its caller sent. A trace begins with a call of the public API, but no watch, that came without.
    """
    parent = _read(after)
    if not _is_traced(parent) and not _begins_trace(method):
        yield trace.INVALID_SPAN
        return
    with _started(method.removeprefix("/"), parent, SpanKind.SERVER, _attributes(method)) as span:
        yield span


def set_code(span: Span, code: grpc.StatusCode, *, failed: bool) -> None:
    """How a call has ended."""
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if failed:
        span.set_status(StatusCode.ERROR)


class TracedCalls(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Gives each call a span and sends that along. A watch has none, nor has what no trace asks the services for."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._call(continuation, details, request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._call(continuation, details, request)

    def _call(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        method = details.method
        if _is_watch(method) or not (_is_traced(None) or _begins_trace(method)):
            return continuation(details, request)
        span = _TRACER.start_span(method.removeprefix("/"), kind=SpanKind.CLIENT, attributes=_attributes(method))
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span))
        if not carrier:  # nobody records
            return continuation(details, request)
        metadata = (*(details.metadata or ()), *carrier.items())
        sent = _Details(
            method, details.timeout, metadata, details.credentials, details.wait_for_ready, details.compression
        )
        started = continuation(sent, request)
        started.add_done_callback(partial(_end, span))
        return started


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Details(_CallDetails, grpc.ClientCallDetails):
    pass


def _end(span: Span, call: Any) -> None:
    code = call.code() or grpc.StatusCode.OK
    set_code(span, code, failed=code is not grpc.StatusCode.OK)
    span.end()


def _read(traceparent: str) -> Context | None:
    """None for the current context."""
    return _PROPAGATOR.extract({TRACEPARENT: traceparent}) if traceparent else None


def _is_traced(context: Context | None) -> bool:
    return trace.get_current_span(context).get_span_context().is_valid


def _begins_trace(method: str) -> bool:
    return method.removeprefix("/").startswith(_PUBLIC) and not _is_watch(method)


def _is_watch(method: str) -> bool:
    return method.rpartition("/")[2].startswith(_WATCHES)


def _started(
    name: str, parent: Context | None, kind: SpanKind, attributes: Mapping[str, str | int] | None
) -> AbstractContextManager[Span]:
    return _TRACER.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    )


def _attributes(method: str) -> Mapping[str, str | int]:
    service, _, name = method.removeprefix("/").partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
