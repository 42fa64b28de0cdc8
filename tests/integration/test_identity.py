"""A purified image is the same bits whatever else is in flight: the shipped networks behind the real app."""

import asyncio
import io
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.settings import Settings

IMAGES = np.load(Path(__file__).parents[1] / "data" / "cifar10.npz")["x_test"]
MIXES = 1000


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGES[index]).save(file, format="PNG")
    return file.getvalue()


@asynccontextmanager
async def running() -> AsyncIterator[httpx.AsyncClient]:
    # Waiting a little for company lets the images of a mix share a batch, half of them a seat; nothing here may be refused.
    app = create_app(Settings(processes=2, max_wait_ms=2, queue_limit_ms=600_000, timeout_ms=600_000))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=600)
    async with app.router.lifespan_context(app), client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)
        yield client


@pytest.mark.parametrize("purifier", ["soap-lc"])
def test_a_purified_image_is_the_same_bits_in_a_thousand_mixes(purifier: str) -> None:
    async def mixes() -> None:
        dice = random.Random(0)
        async with running() as client:

            async def purified(index: int) -> httpx.Response:
                return await client.post(f"/purify?purifier={purifier}&seed=1", content=png(index))

            mine = [dice.randrange(len(IMAGES)) for _ in range(8)]
            alone = {index: (await purified(index)).content for index in mine}
            sizes = set()
            for _ in range(MIXES):
                index, strangers = dice.choice(mine), [dice.randrange(len(IMAGES)) for _ in range(dice.randrange(7))]
                place = dice.randint(0, len(strangers))
                together = [*strangers[:place], index, *strangers[place:]]
                found = (await asyncio.gather(*map(purified, together)))[place]
                assert found.status_code == 200, found.text
                assert found.content == alone[index]
                sizes.add(found.headers["X-Unperturb-Batch-Size"])
            assert len(sizes) > 2  # strangers really shared its batches

    asyncio.run(mixes())
