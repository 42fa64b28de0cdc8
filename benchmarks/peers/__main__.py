"""Our service against LitServe and Ray Serve with the same networks and purifiers: images a second and p99, by concurrency.

    python -m benchmarks.peers

Makes an environment for the peers on first use (`--env`). Within a round the servers take turns, in every second round
backwards, and a turn goes through all concurrencies: each is started for its turn and stopped after it, since LitServe's loop
takes part of a core even when idle. All decode, purify and classify by the same code, with the same batch limit and as many
threads in as many processes; a request is the same POST to all. Wants a machine with nothing else to do and refuses
another. Exits with 1 where a requirement is not met.
"""

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.load import summary
from benchmarks.load.client import Traffic, closed_loop, connected, run
from benchmarks.peers import environment
from benchmarks.peers.requirements import checks, told
from benchmarks.peers.servers import PEERS, ROOT, SERVERS, running
from benchmarks.service_load import IMAGES, MODEL
from service.crew import MOST
from service.settings import Settings
from unperturb.measure import busy_percent

RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
PURIFIERS = ("none", "soap-lc", "nrp")
CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128)
SHARED = ("torch", "fastapi", "starlette", "uvicorn")  # what the peers run on, too


@dataclass(frozen=True)
class Turn:
    """One server with one purifier, started for it. number: of the round."""

    number: int
    purifier: str
    server: str


@dataclass(frozen=True)
class Measured:
    """One server with one purifier and so many connections, in one round. lost: requests without a good answer."""

    turn: Turn
    connections: int
    images_per_s: float
    p99_ms: float
    mean_batch_size: float
    lost: int


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    busy = busy_percent(options.look_s)
    if machine.refused(busy, options.force):
        return 2
    python = environment.prepared(options.env)
    header = _header(python, options) | {"busy_percent_before": busy}
    measured = [each for turn in turns(options.rounds, options.purifiers) for each in _take(turn, python, options)]
    found = {"header": header, "plan": _described(options), "rows": rows(measured)}
    found["checks"] = checks(found["rows"])
    machine.save(options.out, found)
    for check in found["checks"]:
        print(told(check))
    return 0 if all(check["met"] for check in found["checks"]) else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = machine.options_of(__doc__, RESULTS)
    parser.add_argument(
        "--env", type=Path, default=environment.default_folder(), help="folder of the peers' environment"
    )
    parser.add_argument("--purifiers", nargs="+", default=list(PURIFIERS))
    parser.add_argument("--connections", type=int, nargs="+", default=list(CONNECTIONS), help="callers who never pause")
    parser.add_argument("--rounds", type=int, default=2, help="rounds in which the servers take turns")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--warmup-s", type=float, default=1.0, help="seconds before each that don't count")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads of each server's network"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=min(torch.get_num_threads(), MOST),
        help="processes of each server that share them",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _header(python: Path, options: argparse.Namespace) -> dict[str, Any]:
    header = machine.described("aiohttp", *SHARED)
    header["hardware"] |= {"torch_threads": options.threads, "processes": options.processes}
    header["versions"] |= environment.versions(python, *(peer.package for peer in PEERS.values()))
    header["versions_of_peers"] = environment.versions(python, *SHARED)
    return header


def _described(options: argparse.Namespace) -> dict[str, Any]:
    names = ("purifiers", "connections", "rounds", "seconds", "warmup_s", "seed")
    images, batch = [path.name for path in IMAGES], Settings().max_batch_size
    return {name: getattr(options, name) for name in names} | {
        "model": MODEL,
        "images": images,
        "max_batch_size": batch,
    }


def turns(rounds: int, purifiers: Sequence[str]) -> Iterator[Turn]:
    """Who is measured after whom."""
    for number in range(rounds):
        for purifier in purifiers:
            for server in SERVERS if number % 2 == 0 else reversed(SERVERS):
                yield Turn(number, purifier, server)


def _take(turn: Turn, python: Path, options: argparse.Namespace) -> list[Measured]:
    bodies = [path.read_bytes() for path in IMAGES]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = running(
            turn.server, turn.purifier, python, options.threads, options.processes, Path(folder), bodies[0]
        )
        with server as url:
            return run(_load(turn, url, Traffic({turn.purifier: 1.0}, bodies), options))


async def _load(turn: Turn, url: str, traffic: Traffic, options: argparse.Namespace) -> list[Measured]:
    found = []
    async with connected(url, MODEL) as client:
        for connections in options.connections:
            await closed_loop(client, traffic, connections, options.warmup_s, options.seed)
            seed = options.seed + turn.number + 1
            outcomes = await closed_loop(client, traffic, connections, options.seconds, seed)
            good, rate = summary.served(outcomes), summary.goodput(outcomes, options.seconds)
            times, batch = summary.percentiles(each.latency_ms for each in good), summary.mean_batch_size(good)
            if times is None or batch is None or not rate:
                raise RuntimeError(f"{turn}, {connections} connections: no answer in time, {summary.counts(outcomes)}")
            found.append(Measured(turn, connections, rate, times["p99"], batch, len(outcomes) - len(good)))
            where = f"round {turn.number + 1}, {turn.purifier}, {turn.server}, {connections} connections"
            print(f"{where}: {rate:.0f} images/s, p99 {times['p99']:.1f} ms", file=sys.stderr)
    return found


def rows(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """One for each purifier and concurrency, with the servers side by side."""
    cells: dict[tuple[str, int], dict[str, list[Measured]]] = defaultdict(lambda: defaultdict(list))
    for each in measured:
        cells[each.turn.purifier, each.connections][each.turn.server].append(each)
    return [
        {
            "purifier": purifier,
            "connections": connections,
            "servers": {name: _joined(own) for name, own in cell.items()},
        }
        for (purifier, connections), cell in cells.items()
    ]


def _joined(rounds: Sequence[Measured]) -> dict[str, Any]:
    return {
        "images_per_s": _spread([each.images_per_s for each in rounds]),
        "p99_ms": _spread([each.p99_ms for each in rounds]),
        "mean_batch_size": round(statistics.fmean(each.mean_batch_size for each in rounds), 2),
        "lost": sum(each.lost for each in rounds),
    }


def _spread(rounds: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(rounds), 2),
        "lowest": min(rounds),
        "highest": max(rounds),
        "rounds": list(rounds),
    }


if __name__ == "__main__":
    raise SystemExit(main())
