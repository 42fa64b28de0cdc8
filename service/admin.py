"""The admin's own small app: list, load, swap and unload checkpoints. It is never mounted where images are sent to."""

from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from pydantic import BaseModel, Field

from models.catalog import Loaded
from models.checkpoint import Card
from service.app import with_border
from service.engine import Engine
from service.errors import HttpProblem
from service.metrics import Metrics
from service.swap import Swaps

DESCRIPTION = (
    "Changes what the service serves, while it serves. Whoever can connect may use it: there are no passwords here."
)
LOCAL_NAMES = {"127.0.0.1", "localhost"}

Sha256 = Annotated[
    str, Query(pattern="^[0-9a-f]{64}$", description="SHA-256 of weights.safetensors, as `sha256sum` prints it.")
]
Folder = Annotated[
    str,
    Path(
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=255,
        description="A folder directly below the setting admin_root.",
    ),
]


class CheckpointReply(BaseModel):
    """One checkpoint that is served."""

    model: str
    name: str = Field(description="The classifier's, or the add-on's.")
    part: Literal["classifier", "purifier"] = Field(description="purifier: an add-on, a purifier's own network.")
    folder: str = Field(description="The name of its folder.")
    weights_sha256: str
    purifiers: list[str]
    since: datetime = Field(description="When its files were read.")

    @classmethod
    def of(cls, loaded: Loaded) -> Self:
        """From what the catalog holds."""
        card = loaded.checkpoint.card
        return cls(
            model=card.model,
            name=card.name,
            part="classifier" if isinstance(card, Card) else "purifier",
            folder=loaded.checkpoint.folder.name,
            weights_sha256=card.weights_sha256,
            purifiers=sorted(card.purifiers),
            since=loaded.since,
        )


class CheckpointsReply(BaseModel):
    """All of them."""

    checkpoints: list[CheckpointReply]


class LoadReply(BaseModel):
    """What requests get from now on, and what they got before."""

    checkpoint: CheckpointReply
    replaced: CheckpointReply | None = Field(description="What had the same model and name; null if nothing had.")


async def _addressed_locally(request: Request) -> None:
    """Refuse what a browser sends for a web page whose host name somebody points to this machine."""
    if request.url.hostname not in LOCAL_NAMES:
        raise HttpProblem(421, f"this answers only to the host names {', '.join(sorted(LOCAL_NAMES))}")


router = APIRouter(prefix="/checkpoints", tags=["checkpoints"], dependencies=[Depends(_addressed_locally)])


@router.get("", summary="What is served")
async def listing(request: Request) -> CheckpointsReply:
    """Each checkpoint with its folder and the checksum of its weights."""
    return CheckpointsReply(checkpoints=[CheckpointReply.of(loaded) for loaded in _swaps(request).loaded()])


@router.put("/{folder}", summary="Load or swap")
async def load(request: Request, folder: Folder, sha256: Sha256) -> LoadReply:
    """Answers when requests are served by the new one. Whatever fails before that leaves what was served untouched."""
    new, old = await _swaps(request).load(folder, sha256)
    return LoadReply(checkpoint=CheckpointReply.of(new), replaced=CheckpointReply.of(old) if old else None)


@router.delete("/{model}/{name}", summary="Unload")
async def unload(request: Request, model: str, name: str, sha256: Sha256 | None = None) -> CheckpointReply:
    """Requests that were accepted before are still answered. With `sha256` only if these are the weights."""
    return CheckpointReply.of(await _swaps(request).unload(model, name, sha256))


def _swaps(request: Request) -> Swaps:
    swaps: Swaps = request.app.state.swaps
    return swaps


def create_admin(engine: Engine, metrics: Metrics) -> FastAPI:
    """The admin's app for an engine that runs in the same event loop; its requests are counted with the others."""
    app = FastAPI(title="unperturb admin", description=DESCRIPTION)
    app.state.swaps = Swaps(engine)
    app.include_router(router)
    return with_border(app, metrics)
