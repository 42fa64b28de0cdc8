"""How the service behaves under load: below capacity, above it, with one lane flooded, and against the bare engine.

    python -m benchmarks.service_load

Starts `unperturb serve` (settings by environment, as always), measures for about four minutes, writes one JSON and makes
the tables of docs/service-load.md and its picture from it. Wants a machine with nothing else to do and refuses another.
Exits with 1 where a requirement is not met.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.load import report, scenarios
from benchmarks.load.client import Traffic, connected, run
from benchmarks.load.engine import engine
from benchmarks.load.scenarios import Plan
from benchmarks.load.server import Service, serving
from unperturb.measure import busy_percent

MODEL = "cifar10"
MIX = {"none": 0.7, "soap-lc": 0.2, "soap-rp": 0.1}
IMAGES = sorted((report.ROOT / "samples").glob(f"{MODEL}-*.png"))


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    busy = busy_percent(options.look_s)
    if machine.refused(busy, options.force):
        return 2
    header = machine.described("aiohttp", "fastapi", "starlette", "uvicorn") | {"busy_percent_before": busy}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as service:
        found = run(_measure(service, _plan(options)))
        found["settings"] = _settings(service)
    found = {"header": header, "plan": _described(_plan(options)), **found}
    found["checks"] = report.checks(found)
    machine.save(options.out, found)
    for check in found["checks"]:
        print(f"{'met    ' if check['met'] else 'NOT MET'} {check['name']}: {check['measured']} ({check['required']})")
    if options.out.resolve() == report.RESULTS:
        report.main()
    return 0 if all(check["met"] for check in found["checks"]) else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = machine.options_of(__doc__, report.RESULTS)
    parser.add_argument("--flood", default="soap-rp-paper", help="the purifier that floods its lane")
    parser.add_argument("--level-s", type=float, default=25.0, help="seconds of each open load")
    parser.add_argument("--capacity-s", type=float, default=8.0, help="seconds of each measurement of a capacity")
    parser.add_argument("--round-s", type=float, default=5.0, help="seconds of HTTP, and of the engine, in a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of HTTP against the engine")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace) -> Plan:
    traffic = Traffic(MIX, [path.read_bytes() for path in IMAGES])
    names = ("flood", "level_s", "capacity_s", "round_s", "rounds", "seed")
    return Plan(traffic, levels=(0.5, 0.8, 1.5), **{name: getattr(options, name) for name in names})


def _described(plan: Plan) -> dict[str, Any]:
    own = {name: value for name, value in vars(plan).items() if name != "traffic"}
    return own | {"model": MODEL, "mix": dict(plan.traffic.mix), "images": [path.name for path in IMAGES]}


async def _measure(service: Service, plan: Plan) -> dict[str, Any]:
    async with connected(service.url, MODEL) as client:
        _say("warming up")
        await scenarios.warm_up(client, plan)
        found: dict[str, Any] = {"capacity": await scenarios.capacity(client, service, plan)}
        full = found["capacity"]["goodput_per_s"]
        found["levels"] = []
        for share in plan.levels:
            _say(f"{share:.0%} of {full:.0f} requests/s")
            found["levels"].append(await scenarios.level(client, service, plan, share, full))
        _say(f"flooding {plan.flood}")
        found["fairness"] = await scenarios.fairness(client, service, plan)
        with engine(MODEL, IMAGES) as bare:
            found["overhead"] = [
                await scenarios.overhead(client, service, bare, plan, purifier, images)
                for purifier, images in report.HTTP
            ]
    return found


def _settings(service: Service) -> dict[str, Any]:
    """What the service says at its start, but for what belongs to this run alone."""
    text = service.log.read_text(encoding="utf-8", errors="replace")
    line = re.search(r"settings (\{.*\})", text)
    told: dict[str, Any] = json.loads(line[1]) if line else {}
    return {name: value for name, value in told.items() if name not in ("zoo", "host", "port")}


def _say(what: str) -> None:
    print(what, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
