"""Once the service is ready: what nobody has asked for yet is loaded and run while nobody asks, so that no caller is its first.

The first run of a purifier reads its networks, sends them to each helper and lets libraries choose their ways, several times what
the tenth takes (docs/performance.md). Doing all of that before the service is ready would keep every caller waiting for it.
"""

import asyncio
import logging

from models.catalog import Catalog, Offer
from service import errors
from service.engine import WARMING, Engine

log = logging.getLogger(__name__)

# Between two runs: so long at least is free for requests, which wait for one run at most.
PAUSE_S = 0.05


async def warm_others(engine: Engine) -> None:
    """Every offer that isn't loaded, one run at a time. One that fails is logged and left to whoever asks for it."""
    tried: set[Offer] = set()
    while engine.unready() is None and (offer := _cold(engine.catalog, tried)) is not None:
        tried.add(offer)
        try:
            for _ in range(WARMING):
                await _nobody_waits(engine)
                with engine.problems():
                    await engine.warm(offer)
        except errors.Problem as error:
            cause = error.__cause__ or error
            log.warning("not warmed: %s/%s/%s: %s", offer.model, offer.classifier, offer.purifier, cause)


def _cold(catalog: Catalog, tried: set[Offer]) -> Offer | None:
    """The next to warm; first those that answer where a request names no classifier."""
    cold = [offer for offer in catalog.offers() if offer not in tried and catalog.loaded(offer) is None]
    return min(cold, key=lambda offer: catalog.resolve(offer.model, offer.purifier) is not offer, default=None)


async def _nobody_waits(engine: Engine) -> None:
    await asyncio.sleep(PAUSE_S)
    while engine.waiting()[0]:
        await asyncio.sleep(PAUSE_S)
