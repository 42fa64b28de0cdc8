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
BOUNDARY = "no-image-has-this"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True, slots=True)
class Shot:
    """A request and when it is due, in seconds from the start. Several images go as one form to /classify/batch."""

    at: float
    purifier: str
    images: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a shot; times in seconds from the start.

    batch_ms: the device's time for the slowest of its images; batch_sizes: one for each image that was classified.
    """

    purifier: str
    due: float
    sent: float
    ended: float
    status: int
    retry_after: bool
    batch_ms: float = 0.0
    batch_sizes: tuple[int, ...] = ()

    @property
    def latency_ms(self) -> float:
        return 1000 * (self.ended - self.due)


@dataclass(frozen=True)
class Traffic:
    """What a mix of requests looks like: shares by purifier, the image files that are sent, and how many in each request."""

    mix: Mapping[str, float]
    files: Sequence[bytes]
    images: int = 1

    def draw(self, chance: random.Random, at: float) -> Shot:
        (purifier,) = chance.choices(list(self.mix), weights=list(self.mix.values()))
        return Shot(at, purifier, tuple(chance.choices(self.files, k=self.images)))


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
        alone = len(shot.images) == 1
        url, kind = (self._url, "image/png") if alone else (f"{self._url}/batch", FORM)
        data = shot.images[0] if alone else _form(shot.images)
        sent = time.monotonic() - start
        try:
            async with self._session.post(url, params=query, data=data, headers={"Content-Type": kind}) as reply:
                body = await reply.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Outcome(shot.purifier, shot.at, sent, time.monotonic() - start, FAILED, retry_after=False)
        ended = time.monotonic() - start
        told = reply.headers.get("Retry-After", "").isdecimal()
        batches = _batches(json.loads(body)) if reply.status == 200 else ()
        batch_ms, sizes = max((ms for ms, _ in batches), default=0.0), tuple(size for _, size in batches)
        return Outcome(shot.purifier, shot.at, sent, ended, reply.status, told, batch_ms, sizes)


def _form(images: Sequence[bytes]) -> bytes:
    """In one piece: aiohttp's own form takes time that the service on the same cores would be charged for."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.png"\r\n\r\n'.encode()
    return b"".join(part for image in images for part in (head, image, b"\r\n")) + f"--{BOUNDARY}--\r\n".encode()


def _batches(reply: Mapping[str, Any]) -> Sequence[tuple[float, int]]:
    """The batch of each image that was classified: its time on the device, and its size."""
    results = [item["result"] for item in reply["items"]] if "items" in reply else [reply]
    timings = [result["timings"] for result in results if result is not None]
    return [(float(each["purify_ms"]), int(each["batch_size"])) for each in timings]


@asynccontextmanager
async def connected(url: str, model: str) -> AsyncIterator[Client]:
    """A client without a limit of its own on connections: whoever is due is sent."""
    timeout, connector = aiohttp.ClientTimeout(total=GIVE_UP_S), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
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
