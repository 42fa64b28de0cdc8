"""Who asks: requests in a closed loop (as fast as answers come) and in an open one (at times that were fixed before).

The open loop's schedule knows nothing of the service, and latency counts from the scheduled moment: a service that stalls
is charged for everybody who would have come meanwhile ("coordinated omission" is leaving that out).
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import uvloop

from service.threads import spare_collector

T = TypeVar("T")

GIVE_UP_S = 60.0
FAILED = 0  # the "status" of a request that got no answer at all


@dataclass(frozen=True, slots=True)
class Shot:
    """A request and when it is due, in seconds from the start."""

    at: float
    purifier: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a shot; times in seconds from the start. batch_ms and batch_size are the reply's own, where it was a 200."""

    purifier: str
    due: float
    sent: float
    ended: float
    status: int
    retry_after: bool
    batch_ms: float = 0.0
    batch_size: int = 0

    @property
    def latency_ms(self) -> float:
        return 1000 * (self.ended - self.due)


@dataclass(frozen=True)
class Traffic:
    """What a mix of requests looks like: shares by purifier, and the image files that are sent."""

    mix: Mapping[str, float]
    bodies: Sequence[bytes]

    def draw(self, chance: random.Random, at: float) -> Shot:
        (purifier,) = chance.choices(list(self.mix), weights=list(self.mix.values()))
        return Shot(at, purifier, chance.choice(self.bodies))


def poisson(traffic: Traffic, rate: float, seconds: float, seed: int) -> list[Shot]:
    """Arrivals of independent callers, `rate` a second on average. The same seed gives the same shots."""
    chance, shots, at = random.Random(seed), [], 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        shots.append(traffic.draw(chance, at))
    return shots


def run(measuring: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, without what would stall the client, since the service is charged for that: collections of garbage,
    which with PyTorch loaded take a tenth of a second; and on a loop that leaves the service more of the cores they share."""
    spare_collector()
    return uvloop.run(measuring)


class Client:
    """Sends shots to one model of the service over kept-alive connections."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session, self._url, self._model = session, f"{url}/classify", model

    async def send(self, shot: Shot, start: float) -> Outcome:
        query = {"model": self._model, "purifier": shot.purifier}
        sent = time.monotonic() - start
        try:
            async with self._session.post(self._url, params=query, data=shot.body) as reply:
                body = await reply.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Outcome(shot.purifier, shot.at, sent, time.monotonic() - start, FAILED, retry_after=False)
        ended = time.monotonic() - start
        timings = json.loads(body)["timings"] if reply.status == 200 else {"purify_ms": 0.0, "batch_size": 0}
        told = reply.headers.get("Retry-After", "").isdecimal()
        batch = float(timings["purify_ms"]), int(timings["batch_size"])
        return Outcome(shot.purifier, shot.at, sent, ended, reply.status, told, *batch)


@asynccontextmanager
async def connected(url: str, model: str) -> AsyncIterator[Client]:
    """A client without a limit of its own on connections: whoever is due is sent."""
    headers = {"Content-Type": "image/png"}
    timeout, connector = aiohttp.ClientTimeout(total=GIVE_UP_S), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers) as session:
        yield Client(session, url, model)


async def closed_loop(client: Client, traffic: Traffic, concurrency: int, seconds: float, seed: int) -> list[Outcome]:
    """`concurrency` callers, each asking again as soon as it is answered."""
    start, outcomes = time.monotonic(), []

    async def caller(number: int) -> None:
        chance = random.Random(f"{seed}/{number}")
        while (now := time.monotonic() - start) < seconds:
            outcomes.append(await client.send(traffic.draw(chance, now), start))

    await asyncio.gather(*(caller(number) for number in range(concurrency)))
    return outcomes


async def open_loop(client: Client, shots: Sequence[Shot]) -> list[Outcome]:
    """Send each shot when it is due, whatever became of those before it."""
    start, tasks = time.monotonic(), []
    for shot in shots:
        await asyncio.sleep(max(0.0, shot.at - (time.monotonic() - start)))
        tasks.append(asyncio.create_task(client.send(shot, start)))
    return list(await asyncio.gather(*tasks))
