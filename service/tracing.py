"""Traces: the caller's trace id for the log; and spans for a collector, where the extra `otel` is installed.

FastAPI itself makes the span of a request. Here stands where spans go, and the ones of an image's phases below it.
"""

import re
import time
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.trace.export import SpanExporter

    from service.engine import Served

# W3C Trace Context, Sec. 3.2: version 00 ends with the flags, later ones may append; ff and ids of zeros are invalid.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


def caller_trace_id(headers: Headers) -> str | None:
    """The trace id in the header `traceparent`; None where that is missing, repeated or malformed."""
    came = headers.getlist("traceparent")
    found = _TRACEPARENT.fullmatch(came[0]) if len(came) == 1 else None
    return found[1] if found else None


def installed() -> bool:
    """Whether the extra `otel` is there."""
    try:
        for name in ("fastapi.telemetry", "opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"):
            import_module(name)
    except ImportError:
        return False
    return True


class Tracing:
    """Sends spans to an OpenTelemetry collector, in the background; one that is down costs spans, not requests.

    Args:
        endpoint: OTLP over HTTP, without the path: "http://localhost:4318".
    """

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        about = {"service.name": "unperturb", "service.version": version("unperturb")}
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(endpoint)))
        self._tracer = self._provider.get_tracer("unperturb")

    def telemetry(self) -> "TelemetryConfig":
        """For FastAPI: a span a request and nothing else, and nothing global."""
        return {
            "tracer_provider": self._provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        }

    def trace_id(self) -> str:
        """Of the request that is being answered."""
        from opentelemetry import trace

        return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)

    def answered(self, served: "Served") -> None:
        """Child spans of the request for an image that was answered just now; their lengths are the reply's timings."""
        attributes: dict[str, str | int] = {
            "unperturb.model": served.offer.model,
            "unperturb.purifier": served.offer.purifier,
            "unperturb.batch_size": served.batch_size,
            "unperturb.forward_passes": served.answer.forward_passes,
            "unperturb.backward_passes": served.answer.backward_passes,
        }
        end = time.time_ns()
        phases = {"purify": served.answer.purify_ms, "queue": served.queue_ms, "decode": served.decode_ms}
        for phase, milliseconds in phases.items():  # the last first
            start = end - int(1e6 * milliseconds)
            self._tracer.start_span(phase, start_time=start, attributes=attributes).end(end)
            end = start

    def close(self) -> None:
        """Send what is left; a collector that doesn't answer is given up on after 10 s."""
        self._provider.shutdown()


def _exporter(endpoint: str) -> "SpanExporter":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
