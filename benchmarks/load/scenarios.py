"""What is measured: capacity, open load below and above it, one lane flooded, and the cost of HTTP."""

import asyncio
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from benchmarks.load import summary
from benchmarks.load.client import Client, Outcome, Traffic, closed_loop, open_loop, poisson
from benchmarks.load.engine import Engine
from benchmarks.load.server import MemoryWatch, Service

CONCURRENCY = 64
ALONE_PER_S = 10.0


@dataclass(frozen=True)
class Plan:
    """How long, how much, and with which seed."""

    traffic: Traffic
    flood: str
    levels: tuple[float, ...]
    level_s: float
    capacity_s: float
    round_s: float
    rounds: int
    seed: int

    def only(self, purifier: str) -> Traffic:
        return replace(self.traffic, mix={purifier: 1.0})


class Meter(AbstractContextManager["Meter"]):
    """CPU time that the client and the service took while the `with` block ran, as shares of one core."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __enter__(self) -> "Meter":
        self._started, self._own, self._theirs = time.monotonic(), time.process_time(), self._service.cpu_s()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._started
        self.shares = {
            "client_cores": round((time.process_time() - self._own) / seconds, 3),
            "service_cores": round((self._service.cpu_s() - self._theirs) / seconds, 3),
            "cores": os.cpu_count(),
        }


async def warm_up(client: Client, plan: Plan) -> None:
    """Every lane at every batch size that comes by itself, before anything counts."""
    for purifier in dict.fromkeys([*plan.traffic.mix, plan.flood]):
        await closed_loop(client, plan.only(purifier), CONCURRENCY, plan.capacity_s / 8, plan.seed)
        await closed_loop(client, plan.only(purifier), 1, plan.capacity_s / 8, plan.seed)


async def capacity(client: Client, service: Service, plan: Plan) -> dict[str, Any]:
    """Good answers a second when `CONCURRENCY` callers never pause."""
    with Meter(service) as meter:
        outcomes = await closed_loop(client, plan.traffic, CONCURRENCY, plan.capacity_s, plan.seed)
    if not summary.goodput(outcomes, plan.capacity_s):
        raise RuntimeError(f"nothing was served: {summary.counts(outcomes)}")
    return summary.described(outcomes, plan.capacity_s) | {"concurrency": CONCURRENCY, "cpu": meter.shares}


async def level(client: Client, service: Service, plan: Plan, share: float, full: float) -> dict[str, Any]:
    """Open load at `share` of the capacity `full`."""
    shots = poisson(plan.traffic, share * full, plan.level_s, plan.seed)
    with MemoryWatch(service) as watch, Meter(service) as meter:
        outcomes = await open_loop(client, shots)
    return {
        "load": share,
        "offered_per_s": round(len(shots) / plan.level_s, 2),
        **summary.described(outcomes, plan.level_s),
        "cpu": meter.shares,
        "memory": summary.memory(watch.samples),
    }


async def fairness(client: Client, service: Service, plan: Plan) -> dict[str, Any]:
    """`none` at a low rate, alone and beside a flood of the dearest purifier at three times what it can do."""
    free = await closed_loop(client, plan.only(plan.flood), CONCURRENCY, plan.capacity_s, plan.seed)
    rate = 3 * summary.goodput(free, plan.capacity_s)
    quiet = poisson(plan.only("none"), ALONE_PER_S, plan.level_s, plan.seed)
    flood = poisson(plan.only(plan.flood), rate, plan.level_s, plan.seed + 1)
    alone = await open_loop(client, quiet)
    with Meter(service) as meter:
        both = await open_loop(client, sorted([*quiet, *flood], key=lambda shot: shot.at))
    flooded = [each for each in both if each.purifier == "none"]
    others = [each for each in both if each.purifier == plan.flood]
    return {
        "flood": plan.flood,
        "flood_offered_per_s": round(rate, 2),
        "alone": summary.described(alone, plan.level_s),
        "under_flood": summary.described(flooded, plan.level_s),
        "flood_itself": summary.described(others, plan.level_s),
        "cpu": meter.shares,
    }


async def overhead(
    client: Client, service: Service, engine: Engine, plan: Plan, purifier: str, images: int
) -> dict[str, Any]:
    """Images a second over HTTP, so many in a request, and by the engine alone with the same batch sizes, in turns."""
    traffic, rounds = replace(plan.only(purifier), images=images), []
    for number in range(plan.rounds):
        with Meter(service) as meter:
            outcomes = await closed_loop(client, traffic, CONCURRENCY, plan.round_s, seed=plan.seed + number)
        over_http, sizes = summary.goodput(outcomes, plan.round_s), batch_sizes(outcomes, plan.seed + number)
        bare = await asyncio.to_thread(engine.images_per_s, purifier, sizes, plan.round_s)
        rounds.append(
            {
                "http_per_s": over_http,
                "engine_per_s": round(bare, 2),
                "ratio": round(over_http / bare, 4),
                "mean_batch_size": summary.mean_batch_size(summary.served(outcomes)),
                "errors": summary.counts(outcomes)["errors"],
                "cpu": meter.shares,
            }
        )
        print(f"overhead of {purifier}, {images} in a request: {rounds[-1]}", file=sys.stderr)
    middle = {key: statistics.median(each[key] for each in rounds) for key in ("http_per_s", "engine_per_s", "ratio")}
    return {"purifier": purifier, "images": images, "median": middle, "concurrency": CONCURRENCY, "rounds": rounds}


def batch_sizes(outcomes: Sequence[Outcome], seed: int, n: int = 64) -> list[int]:
    """`n` sizes, as frequent as the service's batches were: a batch of b images was reported b times."""
    seen = Counter(size for each in summary.served(outcomes) for size in each.batch_sizes)
    return random.Random(seed).choices(list(seen), weights=[count / size for size, count in seen.items()], k=n)
