"""What an image costs a service that is asked for plain classification, beside the network: reading, decoding, copying, JSON.

    python -m benchmarks.serving        # half a minute

As many callers as fill its batches ask `unperturb serve` for `none`. The processor's time an image, of the service's process and
of its helpers, is set beside what the network alone takes in as many processes on batches of the same sizes; a profile says where
the event loop's part goes. Writes benchmarks/results/serving.json; `python -m training.tables` makes the table of
docs/performance.md. Exits with 1 where all but the network takes more than a millisecond an image.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load import scenarios, summary
from benchmarks.load.client import Outcome, Traffic, closed_loop, connected, run
from benchmarks.load.engine import engine
from benchmarks.load.server import Service, serving
from benchmarks.machine import described, options_of, refused, save
from benchmarks.service_load import IMAGES, MODEL
from unperturb.measure import busy_percent

RESULTS = Path(__file__).parent / "results" / "serving.json"
MOST_MS = 1.0
WARM_S = 2.0

# What each module of the event loop works at.
PARTS = {
    "HTTP (uvicorn)": ("uvicorn.protocols", "uvicorn.middleware"),
    "routing and middleware (Starlette, FastAPI)": ("starlette", "fastapi"),
    "bodies": ("service.bodies", "service.intake"),
    "queueing": (
        "service.engine",
        "service.worker",
        "service.lanes",
        "service.desk",
        "service.requests",
        "service.pipeline",
    ),
    "query and JSON": ("service.lean", "service.routes", "service.schemas", "service.votes"),
    "log and metrics": ("service.middleware", "service.logs", "service.metrics"),
}
REST = "the loop itself and the rest"


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    busy = busy_percent(options.look_s)
    if refused(busy, options.force):
        return 2
    header = described("fastapi", "starlette", "uvicorn") | {"busy_percent_before": busy}
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile.json"
        with serving(Path(folder), profiled=profile) as service:
            found = run(_measure(service, profile, options))
    found["ms"]["network"] = _network_ms(found.pop("batch_sizes"), options.seconds)
    found["ms"]["beside the network"] = (
        sum(found["ms"][each] for each in ("service", "helpers")) - found["ms"]["network"]
    )
    save(options.out, {"header": header, **found})
    print(json.dumps(found["ms"], indent=1))
    return 0 if found["ms"]["beside the network"] <= MOST_MS else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of(__doc__, RESULTS)
    parser.add_argument("--callers", type=int, default=128, help="who ask again as soon as they are answered")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the service, and of the network alone")
    return parser.parse_args(arguments)


async def _measure(service: Service, profile: Path, options: argparse.Namespace) -> dict[str, Any]:
    traffic = Traffic({"none": 1.0}, [path.read_bytes() for path in IMAGES])
    async with connected(service.url, MODEL) as client:
        await closed_loop(client, traffic, options.callers, WARM_S, seed=1)
        process = psutil.Process(service.process.pid)
        before, own = service.cpu_s(), process.cpu_times()
        process.send_signal(signal.SIGUSR1)
        outcomes = await closed_loop(client, traffic, options.callers, options.seconds, seed=0)
        process.send_signal(signal.SIGUSR2)
        now = process.cpu_times()
        service_s = now.user + now.system - own.user - own.system
        helpers_s = service.cpu_s() - before - service_s
        while not profile.exists():
            await asyncio.sleep(0.01)
    seen = json.loads(profile.read_text(encoding="utf-8"))
    return _told(summary.served(outcomes), service_s, helpers_s, seen) | {"callers": options.callers}


def _told(served: list[Outcome], service_s: float, helpers_s: float, seen: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of the processor an image, `seen` by the profile; and what it was measured on."""

    def ms(seconds: float) -> float:
        return 1000 * seconds / len(served)

    share = service_s / seen["process_s"]  # the profile and the system don't count the same moments
    parts = {part: share * ms(seconds) for part, seconds in _by_part(seen["modules"]).items()}
    return {
        "images": len(served),
        "mean_batch_size": summary.mean_batch_size(served),
        "batch_sizes": scenarios.batch_sizes(served, seed=0),
        "ms": {
            "service": ms(service_s),
            "helpers": ms(helpers_s),
            "event loop": parts,
            "threads that talk to helpers": share * ms(seen["process_s"] - seen["main_s"]),
        },
    }


def _by_part(modules: dict[str, float]) -> dict[str, float]:
    found = dict.fromkeys([*PARTS, REST], 0.0)
    for module, seconds in modules.items():
        part = next(
            (part for part, names in PARTS.items() if any(f"{module}.".startswith(f"{name}.") for name in names)), REST
        )
        found[part] += seconds
    return found


def _network_ms(sizes: list[int], seconds: float) -> float:
    """An image's share of a batch, in as many processes at once as there are cores, of one thread each, as helpers have."""
    count = os.cpu_count() or 1

    async def all_at_once(stack: ExitStack) -> list[float]:
        engines = [stack.enter_context(engine(MODEL, IMAGES, threads=1)) for _ in range(count)]
        return await asyncio.gather(*(asyncio.to_thread(each.cpu_ms, "none", sizes, seconds) for each in engines))

    with ExitStack() as stack:
        return statistics.fmean(asyncio.run(all_at_once(stack)))


if __name__ == "__main__":
    raise SystemExit(main())
