import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError
from starlette.datastructures import Headers

from service import tracing
from service.settings import Settings

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def of(*values: str) -> str | None:
    return tracing.caller_trace_id(Headers(raw=[(b"traceparent", value.encode("latin-1")) for value in values]))


@pytest.mark.parametrize("good", [TRACEPARENT, f"00-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-01-what-comes-later"])
def test_callers_trace_id_is_read(good: str) -> None:
    assert of(good) == TRACE


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "typed",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01-",
        f"01-{TRACE}-{PARENT}-01more",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}",
        f" {TRACEPARENT}",
        f"{TRACEPARENT}\n",
    ],
)
def test_malformed_traceparent_is_none(bad: str) -> None:
    assert of(bad) is None


def test_none_or_two_are_none() -> None:
    assert of() is None
    assert of(TRACEPARENT, TRACEPARENT) is None


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What an app with an `otlp_endpoint` sends, once it has stopped."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(exporter, "shutdown", lambda: None)  # it would refuse the last ones
    monkeypatch.setattr(tracing, "_exporter", lambda endpoint: exporter)
    return exporter


SETTINGS = Settings(otlp_endpoint="http://127.0.0.1:1")


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [each for each in spans.get_finished_spans() if each.name == name]


def test_request_has_a_span_and_its_phases_below_it(run: Any, catalog: Any, png: Any, spans: Any) -> None:
    with run(SETTINGS, catalog) as api:
        api.wait_ready()
        reply = api.post("/classify?purifier=soap-rp", content=png(), headers={"traceparent": TRACEPARENT}).json()
    (request,) = named(spans, "POST /classify")
    assert (format(request.context.trace_id, "032x"), format(request.parent.span_id, "016x")) == (TRACE, PARENT)
    assert request.attributes["http.response.status_code"] == 200
    (decode,), (queue,), (purify,) = (named(spans, name) for name in ("decode", "queue", "purify"))
    for phase, field in ((decode, "decode_ms"), (queue, "queue_ms"), (purify, "purify_ms")):
        assert phase.parent.span_id == request.context.span_id
        assert (phase.end_time - phase.start_time) / 1e6 == pytest.approx(reply["timings"][field], abs=1e-3)
        assert dict(phase.attributes) == {
            "unperturb.model": "cifar10",
            "unperturb.purifier": "soap-rp",
            "unperturb.batch_size": 1,
            "unperturb.forward_passes": reply["purification"]["forward_passes"],
            "unperturb.backward_passes": reply["purification"]["backward_passes"],
        }
    assert decode.end_time == queue.start_time
    assert queue.end_time == purify.start_time
    assert purify.end_time <= request.end_time


def test_batch_request_has_phases_for_each_answered_image(run: Any, catalog: Any, png: Any, spans: Any) -> None:
    with run(SETTINGS, catalog) as api:
        api.wait_ready()
        files = [("image", png(1)), ("image", b"no image"), ("image", png(2))]
        api.post("/classify/batch?purifier=none", files=files)
    (request,) = named(spans, "POST /classify/batch")
    assert [each.parent.span_id for each in named(spans, "purify")] == 2 * [request.context.span_id]


def test_span_name_holds_the_route_only(run: Any, catalog: Any, spans: Any) -> None:
    with run(SETTINGS, catalog) as api:
        api.get("/typed")
    assert [each.name for each in spans.get_finished_spans()] == ["GET"]


def test_log_line_names_the_spans_trace(run: Any, catalog: Any, spans: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="service.middleware"), run(SETTINGS, catalog) as api:
        api.get("/livez")
    (span,) = named(spans, "GET /livez")
    assert f"trace_id={span.context.trace_id:032x} " in caplog.text


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An OTLP endpoint and what it got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", got
        finally:
            server.shutdown()
            thread.join()


def test_collector_gets_the_spans_when_the_app_stops_at_the_latest(run: Any, catalog: Any) -> None:
    with collector() as (endpoint, got):
        with run(Settings(otlp_endpoint=endpoint), catalog) as api:
            api.get("/livez")
        ((path, body),) = got
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert "unperturb" in {
        each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
    }
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["GET /livez"]


def test_missing_extra_stops_the_start_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ValidationError, match=r"otlp_endpoint\n.*pip install '\.\[otel\]'"):
        Settings(otlp_endpoint="http://localhost:4318")
    assert Settings().otlp_endpoint is None


@pytest.mark.parametrize(
    "wrong", ["localhost:4318", "ftp://localhost", "http://", "http://user:secret@host", "http://a b"]
)
def test_endpoint_is_a_plain_address(wrong: str) -> None:
    with pytest.raises(ValidationError, match="otlp_endpoint"):
        Settings(otlp_endpoint=wrong)


def test_nothing_of_the_extra_is_loaded_without_the_setting() -> None:
    code = (
        "import sys; from service.app import create_app; from service.settings import Settings; create_app(Settings()); "
        "assert not {name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
