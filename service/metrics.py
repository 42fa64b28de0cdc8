"""What Prometheus reads under /metrics. docs/operations.md lists it all, and a test compares the two.

Label values come from the catalog's names, the routes' templates and the problems' codes: never from what a stranger typed,
or each new spelling would be a new time series.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

M = TypeVar("M", Counter, Histogram)

LANE = ("model", "purifier")
REQUEST = ("route", *LANE)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PERCENTILES = (5, 25, 50, 75, 90, 95, 99, 100)


class Named(Protocol):
    """A lane, as far as labels need it."""

    @property
    def model(self) -> str:
        """From the catalog."""

    @property
    def purifier(self) -> str:
        """From the catalog."""


class Metrics:
    """The metrics of one app, with a registry of their own; the worker's observer. Safe from any thread.

    The gauges `ready`, `queue_images` and `queue_seconds` are read at each scrape, from what their `set_function` was given.
    """

    def __init__(self, device: torch.device) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[object, ...], Any] = {}
        self._declare_requests()
        self._declare_batches()
        self._declare_state(device)

    def _declare_requests(self) -> None:
        own = self.registry
        self._requests = Counter(
            "unperturb_requests",
            "Requests, by the template of their route and by what came of them: ok, or the problem's code.",
            (*REQUEST, "outcome"),
            registry=own,
        )
        self._request_seconds = Histogram(
            "unperturb_request_seconds",
            "From a request's arrival to the end of its reply, upload included.",
            REQUEST,
            buckets=SECONDS,
            registry=own,
        )
        self._passes = Counter(
            "unperturb_passes",
            "Network evaluations spent on answered images, by direction: forward or backward.",
            ("direction", *LANE),
            registry=own,
        )
        self._suspicion = Histogram(
            "unperturb_suspicion",
            "Suspicion of answered images: the percentile of their objective among clean images.",
            LANE,
            buckets=PERCENTILES,
            registry=own,
        )
        self._suspicious = Counter(
            "unperturb_suspicious", "Answered images whose suspicion reached the alarm.", LANE, registry=own
        )

    def _declare_batches(self) -> None:
        own = self.registry
        self._phase_seconds = Histogram(
            "unperturb_phase_seconds",
            "Time by phase: decode and queue for each image, purify for each batch, classification included.",
            ("phase", *LANE),
            buckets=SECONDS,
            registry=own,
        )
        self._batch_size = Histogram(
            "unperturb_batch_size", "Images that were purified together.", LANE, buckets=SIZES, registry=own
        )
        self._shed = Counter("unperturb_shed", "Images refused because the queue was full.", LANE, registry=own)
        self._expired = Counter("unperturb_expired", "Images dropped because they were too late.", LANE, registry=own)
        self._cancelled = Counter(
            "unperturb_cancelled", "Images dropped because nobody waited for them any more.", LANE, registry=own
        )
        self._restarts = Counter("unperturb_worker_restarts", "Restarts of a worker thread that died.", registry=own)

    def _declare_state(self, device: torch.device) -> None:
        own = self.registry
        self.ready = Gauge("unperturb_ready", "1 while /readyz is green, else 0.", registry=own)
        self.queue_images = Gauge("unperturb_queue_images", "Images that wait for the worker.", registry=own)
        self.queue_seconds = Gauge(
            "unperturb_queue_seconds", "How long the worker is expected to need for what waits.", registry=own
        )
        memory = Gauge(
            "unperturb_device_memory_bytes",
            "On a CUDA device what PyTorch has allocated there, else the resident memory of the process.",
            registry=own,
        )
        memory.set_function(lambda: _memory_bytes(device))

    def requested(self, route: str, facts: Mapping[str, object], outcome: str, seconds: float) -> None:
        """A request ended. facts: its `model` and `purifier`, as the catalog names them, where it has any."""
        labels = route, str(facts.get("model", "")), str(facts.get("purifier", ""))
        self._of(self._requests, *labels, outcome).inc()
        self._of(self._request_seconds, *labels).observe(seconds)

    def answered(
        self,
        model: str,
        purifier: str,
        forward_passes: int,
        backward_passes: int,
        suspicion: float | None,
        decode_s: float,
    ) -> None:
        """An image was answered."""
        self._of(self._phase_seconds, "decode", model, purifier).observe(decode_s)
        self._of(self._passes, "forward", model, purifier).inc(forward_passes)
        self._of(self._passes, "backward", model, purifier).inc(backward_passes)
        if suspicion is not None:
            self._of(self._suspicion, model, purifier).observe(suspicion)

    def suspicious(self, model: str, purifier: str) -> None:
        """An answered image reached the alarm."""
        self._of(self._suspicious, model, purifier).inc()

    def batch(self, lane: Named, size: int, queue_s: Sequence[float], run_s: float) -> None:
        """A batch ran. queue_s: how long each of its items had waited."""
        self._of(self._batch_size, lane.model, lane.purifier).observe(size)
        self._of(self._phase_seconds, "purify", lane.model, lane.purifier).observe(run_s)
        queue_seconds = self._of(self._phase_seconds, "queue", lane.model, lane.purifier)
        for waited_s in queue_s:
            queue_seconds.observe(waited_s)

    def shed(self, lane: Named, count: int) -> None:
        """Items found no place."""
        self._of(self._shed, lane.model, lane.purifier).inc(count)

    def expired(self, lane: Named) -> None:
        """An item was too late."""
        self._of(self._expired, lane.model, lane.purifier).inc()

    def cancelled(self, lane: Named) -> None:
        """An item's caller left."""
        self._of(self._cancelled, lane.model, lane.purifier).inc()

    def restarted(self) -> None:
        """The worker's thread had died and was started again."""
        self._restarts.inc()

    def _of(self, metric: M, *labels: str) -> M:
        """`metric.labels`, which takes longer than counting does."""
        found: M | None = self._children.get((metric, labels))
        if found is None:
            found = self._children[metric, labels] = metric.labels(*labels)
        return found


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    process = ProcessCollector(registry=None).collect()
    found = (sample.value for metric in process for sample in metric.samples if "resident" in sample.name)
    return next(found, math.nan)  # it is known on Linux only
