"""What a process tells of itself: its logs, and the spans of the traces that it has a part in."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry import trace

from rookery_shared import log
from rookery_shared.settings import ServiceSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor


def configure(settings: ServiceSettings, *, service: str) -> None:
    """Once in a process, before it does anything."""
    log.configure(service=service, level=settings.log_level, style=settings.log_format)
    if settings.traces_url:
        send_spans(settings.traces_url, service=service, ratio=settings.traces_ratio)


def send_spans(url: str, *, service: str, ratio: float = 1.0) -> None:
    """Record what this process has a part in. `url` and `ratio` are as in `ServiceSettings`.

    A collector that is away is no error: its spans are dropped.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    resource = Resource.create(
        {
            "service.name": f"rookery-{service}",
            "service.instance.id": f"{socket.gethostname()}/{os.getpid()}",
        }
    )
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(ratio)))
    provider.add_span_processor(_to_folder(url, service) if url.startswith("file:") else _to_collector(url))
    trace.set_tracer_provider(provider)


def _to_collector(url: str) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=url, insecure=url.startswith("http:")))


def _to_folder(url: str, service: str) -> SpanProcessor:
    """A file for each process, with a line of JSON for each span as it ends."""
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    folder = Path(urlsplit(url).path)
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{service}-{os.getpid()}.jsonl").open("a")
    return SimpleSpanProcessor(ConsoleSpanExporter(out=file, formatter=lambda span: f"{span.to_json(indent=None)}\n"))
