"""The network behind Ray Serve: `python -m benchmarks.peers.ray_app PURIFIER PORT`.

Decoding happens in the replica's event loop and computing in a thread beside it, as Ray's page on asyncio advises, so that a
batch fills while another is computed. The settings of its "high throughput mode" are in `benchmarks.peers.servers`.
"""

import asyncio
import sys
import threading
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request
from torch import Tensor

from benchmarks.peers.network import Network
from service.settings import Settings

ONGOING = 1024  # more than there are callers, so that none is held back; its default is 5
QUIET = {"enable_access_log": False, "log_level": "WARNING"}


@serve.deployment(
    num_replicas=Settings().processes or 1,
    max_ongoing_requests=ONGOING,
    logging_config=QUIET,
    ray_actor_options={"num_gpus": int(torch.cuda.is_available())},
)
class Classifier:
    """A replica."""

    def __init__(self, purifier: str) -> None:
        self.network = Network(purifier)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return await self.answers(self.network.decode(await request.body()))

    @serve.batch(max_batch_size=Settings().max_batch_size, batch_wait_timeout_s=0.0)  # as our max_wait_ms
    async def answers(self, images: list[Tensor]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.network.answers, images)


def main() -> None:
    purifier, port = sys.argv[1:]
    ray.init(include_dashboard=False, object_store_memory=2**27)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config=QUIET)
    serve.run(Classifier.bind(purifier), route_prefix="/classify")
    threading.Event().wait()


if __name__ == "__main__":
    main()
