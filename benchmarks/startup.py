"""How long the service takes until it is ready, and how long its first requests take.

    python -m benchmarks.startup

Starts `unperturb serve` with the shipped zoo, waits until `/readyz` is green and sends one image after the other over one
connection: to the default purifier, which was run before, and to others, which nobody has asked for yet. Every second service is
asked at once, the others after `--settle-s`, when what the service warms in the background should be warm. Writes
benchmarks/results/startup.json; `python -m training.tables` makes the table of docs/performance.md from it. Wants a machine with
nothing else to do and refuses another.
"""

import argparse
import http.client
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load.server import serving
from benchmarks.machine import described, options_of, refused, save
from benchmarks.service_load import IMAGES
from unperturb.measure import busy_percent

RESULTS = Path(__file__).parent / "results" / "startup.json"
DEFAULT = "default"  # what a request gets that names no purifier
ASKED = (DEFAULT, "none", "soap-lc")


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    busy = busy_percent(options.look_s)
    if refused(busy, options.force):
        return 2
    header = described("fastapi", "uvicorn") | {"busy_percent_before": busy}
    starts = []
    for settle_s in (0.0, options.settle_s) * options.starts:
        print(f"start {len(starts) + 1} of {2 * options.starts}", file=sys.stderr)
        starts.append(_start(options.requests, settle_s))
    found = {"header": header, "requests": options.requests, "starts": starts}
    save(options.out, found)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of(__doc__, RESULTS)
    parser.add_argument(
        "--starts", type=int, default=3, help="of services that are asked at once, and as many that are asked later"
    )
    parser.add_argument("--requests", type=int, default=20, help="to each purifier, more than ten")
    parser.add_argument(
        "--settle-s", type=float, default=15.0, help="between being ready and the first request, where it is later"
    )
    return parser.parse_args(arguments)


def _start(requests: int, settle_s: float) -> dict[str, Any]:
    """One life of the service: seconds until it is ready, and milliseconds of each request in order."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as service:
        ready_s = time.monotonic() - started
        time.sleep(settle_s)
        with closing(http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=60)) as connection:
            ms = {name: _latencies(connection, name, requests) for name in ASKED}
    return {"ready_s": ready_s, "settle_s": settle_s, "ms": ms}


def _latencies(connection: http.client.HTTPConnection, purifier: str, requests: int) -> list[float]:
    path = "/classify" if purifier == DEFAULT else f"/classify?purifier={purifier}"
    body, found = IMAGES[0].read_bytes(), []
    for _ in range(requests):
        sent = time.perf_counter()
        connection.request("POST", path, body)
        reply = connection.getresponse()
        text = reply.read()
        found.append(1000 * (time.perf_counter() - sent))
        if reply.status != 200:
            raise RuntimeError(f"{path}: {reply.status} {text.decode(errors='replace')}")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
