"""GET: what can be asked for (/purifiers, /models) and how the service is (/livez, /readyz, /metrics)."""

from itertools import groupby

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from models.catalog import Catalog, Offer
from service import openapi
from service.engine import Engine
from service.errors import NotReady
from service.schemas import ClassifierReply, ModelReply, ModelsReply, PurifierReply, PurifiersReply, StatusReply

router = APIRouter()


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """People land here; the page that shows them around is the OpenAPI one."""
    return RedirectResponse("docs")


@router.get("/purifiers", tags=["catalog"], summary="All purifiers", responses=openapi.LISTING)
async def purifiers(request: Request) -> PurifiersReply:
    """Each with the classifiers that offer it: what it does, costs and withstands."""
    engine: Engine = request.app.state.engine
    catalog = engine.catalog
    # What a purifier costs is known when it is built, and that takes a while the first time.
    found = await engine.in_thread(
        lambda: [
            PurifierReply.of(offer, catalog.load(offer).info, _is_default(catalog, offer)) for offer in catalog.offers()
        ]
    )
    return PurifiersReply(default_purifier=engine.default_purifier(engine.settings.default_model), purifiers=found)


@router.get("/models", tags=["catalog"], summary="All models", responses=openapi.LISTING)
async def models(request: Request) -> ModelsReply:
    """Each with its classifiers: labels, input, purifiers and measured accuracies from their cards."""
    engine: Engine = request.app.state.engine
    catalog = engine.catalog
    found = [
        ModelReply(model=model, classifiers=_classifiers(catalog, list(offers)))
        for model, offers in groupby(catalog.offers(), key=lambda offer: offer.model)
    ]
    return ModelsReply(default_model=engine.settings.default_model, models=found)


@router.get("/livez", tags=["health"], summary="Is the process up?")
async def livez() -> StatusReply:
    """Restart the process when this fails."""
    return StatusReply()


@router.get("/readyz", tags=["health"], summary="Can it answer?", responses=openapi.READY)
async def readyz(request: Request) -> StatusReply:
    """Send no requests while this fails; `detail` has the reason."""
    reason = request.app.state.engine.unready()
    if reason is not None:
        raise NotReady(reason, retry_after_s=2)
    return StatusReply()


@router.get("/metrics", tags=["health"], summary="How is it doing?", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """In the text format of Prometheus; docs/operations.md explains each metric."""
    # No coroutine, so it runs in a thread: writing thousands of lines must not hold up the requests.
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _is_default(catalog: Catalog, offer: Offer) -> bool:
    return catalog.resolve(offer.model, offer.purifier) is offer


def _classifiers(catalog: Catalog, offers: list[Offer]) -> list[ClassifierReply]:
    by_name = groupby(offers, key=lambda offer: offer.classifier)
    return [_classifier(catalog, list(own)) for _, own in by_name]


def _classifier(catalog: Catalog, offers: list[Offer]) -> ClassifierReply:
    card = offers[0].card
    return ClassifierReply(
        classifier=card.classifier,
        architecture=card.architecture,
        purifiers=[offer.purifier for offer in offers],
        default_for=[offer.purifier for offer in offers if _is_default(catalog, offer)],
        labels=list(card.labels),
        input=card.input,
        measured=list(card.measured),
        worst=list(card.worst),
        weights_sha256=card.weights_sha256,
    )
