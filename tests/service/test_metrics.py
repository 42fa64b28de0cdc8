import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics
from service.middleware import RequestBorder
from service.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
LANE = SimpleNamespace(model="m", purifier="p")
CPU = torch.device("cpu")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CPU)


def value(of: Metrics, name: str, **labels: str) -> float | None:
    found: float | None = of.registry.get_sample_value(name, labels)
    return found


def feed(metrics: Metrics) -> None:
    """Everything once."""
    metrics.requested("/classify", {"model": "m", "purifier": "p", "batch_size": 2}, "ok", 0.3)
    metrics.answered("m", "p", 11, 5, 97.0, 0.004)
    metrics.suspicious("m", "p")
    metrics.batch(LANE, 2, [0.5, 1.5], 0.25)
    metrics.shed(LANE, 3)
    metrics.expired(LANE)
    metrics.cancelled(LANE)
    metrics.restarted()


def test_the_page_lists_every_metric_as_it_is(metrics: Metrics) -> None:
    feed(metrics)
    found = {}
    for each in metrics.registry.collect():
        labels = {label for sample in each.samples for label in sample.labels} - {"le"}
        name = each.name + ("_total" if each.type == "counter" else "")
        found[name] = (each.type, labels, each.documentation)
    rows = re.findall(r"^\| `(unperturb_\w+)` \| (\w+) \| (.*?) ?\| (.+) \|$", PAGE.read_text(), flags=re.M)
    listed = {name: (kind, set(re.findall(r"\w+", labels)), meaning) for name, kind, labels, meaning in rows}
    assert len(rows) == len(listed)
    assert listed == found


def test_answered_image_counts_its_passes_and_suspicion(metrics: Metrics) -> None:
    metrics.answered("m", "p", 11, 5, 97.0, 0.004)
    metrics.answered("m", "p", 1, 0, None, 0.004)
    assert value(metrics, "unperturb_passes_total", direction="forward", model="m", purifier="p") == 12
    assert value(metrics, "unperturb_passes_total", direction="backward", model="m", purifier="p") == 5
    assert value(metrics, "unperturb_suspicion_bucket", model="m", purifier="p", le="95.0") == 0
    assert value(metrics, "unperturb_suspicion_bucket", model="m", purifier="p", le="99.0") == 1
    assert value(metrics, "unperturb_phase_seconds_sum", phase="decode", model="m", purifier="p") == 0.008


def test_batch_counts_once_for_its_run_and_each_item_for_its_wait(metrics: Metrics) -> None:
    metrics.batch(LANE, 2, [0.5, 1.5], 0.25)
    assert value(metrics, "unperturb_batch_size_sum", model="m", purifier="p") == 2
    for phase, count, seconds in (("queue", 2, 2.0), ("purify", 1, 0.25)):
        assert value(metrics, "unperturb_phase_seconds_count", phase=phase, model="m", purifier="p") == count
        assert value(metrics, "unperturb_phase_seconds_sum", phase=phase, model="m", purifier="p") == seconds


def test_what_found_no_answer_is_counted_by_lane(metrics: Metrics) -> None:
    feed(metrics)
    counts = {"shed": 3, "expired": 1, "cancelled": 1, "suspicious": 1}
    assert {name: value(metrics, f"unperturb_{name}_total", model="m", purifier="p") for name in counts} == counts
    assert value(metrics, "unperturb_worker_restarts_total") == 1


def test_gauges_are_read_at_each_scrape(metrics: Metrics) -> None:
    waiting = [1, 2]
    metrics.queue_images.set_function(lambda: len(waiting))
    assert value(metrics, "unperturb_queue_images") == 2
    waiting.clear()
    assert value(metrics, "unperturb_queue_images") == 0


def test_memory_is_the_processs_or_what_torch_took_of_the_device(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (value(metrics, "unperturb_device_memory_bytes") or 0) > 2**20
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 7 if device == torch.device("cuda:1") else 0)
    assert value(Metrics(torch.device("cuda:1")), "unperturb_device_memory_bytes") == 7


def test_apps_count_for_themselves(metrics: Metrics) -> None:
    feed(metrics)
    assert value(Metrics(CPU), "unperturb_worker_restarts_total") == 0


@pytest.fixture
def fresh(run: Callable[..., Any], catalog: Any) -> Any:
    with run(Settings(), catalog) as api:
        api.wait_ready()
        yield api


def requests_by(api: Any, *names: str) -> set[tuple[str, ...]]:
    """The labels of all requests so far, those for readiness left out."""
    found = next(each for each in api.app.state.metrics.registry.collect() if each.name == "unperturb_requests")
    samples = [each for each in found.samples if each.name.endswith("_total") and each.labels["route"] != "/readyz"]
    assert all(each.value >= 1 for each in samples)
    return {tuple(each.labels[name] for name in names) for each in samples}


def test_scrape_is_in_the_format_of_prometheus(fresh: Any, png: Any) -> None:
    fresh.post("/classify?purifier=none", content=png())
    response = fresh.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    families = {each.name: each for each in text_string_to_metric_families(response.text)}
    assert families["unperturb_ready"].samples[0].value == 1
    labels = {"route": "/classify", "model": "cifar10", "purifier": "none"}
    assert any(each.labels == labels | {"outcome": "ok"} for each in families["unperturb_requests"].samples)
    counted = [each for each in families["unperturb_request_seconds"].samples if each.name.endswith("_count")]
    assert [each.value for each in counted if each.labels == labels] == [1]


def test_not_ready_is_zero(run: Callable[..., Any], tmp_path: Path) -> None:
    with run(Settings(zoo=(tmp_path,)), None) as api:
        assert "\nunperturb_ready 0.0\n" in api.get("/metrics").text


def test_requests_are_counted_by_what_came_of_them(fresh: Any, png: Any) -> None:
    fresh.post("/classify?purifier=none", content=png())
    fresh.post("/classify?purifier=none", content=b"GIF89a")
    fresh.post("/purify?model=mnist&purifier=soap-dr")
    fresh.post("/classify?purifier=soup", content=png())
    fresh.get("/classify")
    fresh.post("/classify/batch?purifier=none", files=[("image", png()), ("image", b"no image")])
    assert requests_by(fresh, "route", "model", "purifier", "outcome") == {
        ("/classify", "cifar10", "none", "ok"),
        ("/classify", "cifar10", "none", "unsupported-format"),
        ("/purify", "mnist", "soap-dr", "no-body"),
        ("/classify", "", "", "unknown-purifier"),
        ("/classify", "", "", "method-not-allowed"),
        ("/classify/batch", "cifar10", "none", "ok"),
    }


@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
def test_what_a_stranger_types_is_never_a_label(fresh: Any, png: Any, method: str) -> None:
    for path in ("/typed", "/classify/typed", "/classify?model=typed", "/classify?purifier=typed", "/docs/typed?typed"):
        fresh.request(method, path, content=png(), headers={"X-Request-ID": "typed", "traceparent": "typed"})
    assert "typed" not in fresh.get("/metrics").text
    assert ("unknown", "not-found") in requests_by(fresh, "route", "outcome")


async def _pass_through(metrics: Metrics, app: Any) -> httpx.Response:
    transport = httpx.ASGITransport(RequestBorder(app, metrics), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/")


@pytest.mark.parametrize(
    ("status", "ending", "outcome"),
    [
        (200, None, "ok"),
        (418, None, "http-418"),
        (200, ZeroDivisionError(), "internal-error"),
        (0, ZeroDivisionError(), "internal-error"),
        (0, asyncio.CancelledError(), "unanswered"),
    ],
)
def test_every_ending_has_an_outcome(metrics: Metrics, status: int, ending: BaseException | None, outcome: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if status:
            await send({"type": "http.response.start", "status": status, "headers": []})
        if ending is not None:
            raise ending
        await send({"type": "http.response.body", "body": b""})

    try:
        asyncio.run(_pass_through(metrics, app))
    except asyncio.CancelledError:
        assert outcome == "unanswered"
    labels = {"route": "unknown", "model": "", "purifier": "", "outcome": outcome}
    assert value(metrics, "unperturb_requests_total", **labels) == 1
