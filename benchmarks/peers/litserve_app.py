"""The network behind LitServe: `python -m benchmarks.peers.litserve_app PURIFIER PORT`.

A request is the image file itself, as ours is: LitServe hands the type hint of `decode_request` to FastAPI, and so neither a form
nor base64 is in the way. Replies take its quick queue (`fast_queue`), which it advises above 100 requests a second.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import litserve
from fastapi import Body
from torch import Tensor

from benchmarks.peers.network import Network
from service.settings import Settings

# From when its loop looks. With 0 the loop never pauses, also while it is idle, and takes a core from server and client:
# on two cores a single caller got half as many answers. 5 ms were slower for few callers, too.
BATCH_WAIT_S = 0.001


class Classifier(litserve.LitAPI):
    """Decoding, batches and answers, called for by each of LitServe's workers."""

    def __init__(self, purifier: str, **batching: Any) -> None:
        super().__init__(api_path="/classify", **batching)
        self.purifier = purifier

    def setup(self, device: str) -> None:
        self.network = Network(self.purifier)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/png")]) -> Tensor:
        return self.network.decode(request)

    def batch(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return inputs

    def predict(self, x: Sequence[Tensor]) -> list[dict[str, Any]]:
        return self.network.answers(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output


def main() -> None:
    purifier, port = sys.argv[1:]
    api = Classifier(purifier, max_batch_size=Settings().max_batch_size, batch_timeout=BATCH_WAIT_S)
    server = litserve.LitServer(api, devices=1, workers_per_device=Settings().processes or 1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", access_log=False, generate_client_file=False)


if __name__ == "__main__":
    main()
