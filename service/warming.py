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

# So long must nobody have asked for anything: whoever asks for one image after the other isn't held up between them. Only the
# first after a silence may find the device at a run that nobody wants, and waits for that one.
QUIET_S = 0.3
PAUSE_S = 0.05


async def warm_others(engine: Engine) -> None:
    """Every offer that isn't loaded, one run at a time. One that fails is logged and left to whoever asks for it."""
    tried: set[Offer] = set()
    while engine.unready() is None and (offer := _cold(engine.catalog, tried)) is not None:
        tried.add(offer)
        try:
            for _ in range(WARMING):
                await _quiet(engine)
                with engine.problems():
                    await engine.warm(offer)
        except errors.Problem as error:
            cause = error.__cause__ or error
            log.warning("not warmed: %s/%s/%s: %s", offer.model, offer.classifier, offer.purifier, cause)


def _cold(catalog: Catalog, tried: set[Offer]) -> Offer | None:
    """The next to warm; first those that answer where a request names no classifier."""
    cold = [offer for offer in catalog.offers() if offer not in tried and catalog.loaded(offer) is None]
    return min(cold, key=lambda offer: catalog.resolve(offer.model, offer.purifier) is not offer, default=None)


async def _quiet(engine: Engine) -> None:
    while engine.quiet_s() < QUIET_S:
        await asyncio.sleep(PAUSE_S)
