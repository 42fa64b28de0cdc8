"""What comes and goes as JSON; the texts of the fields are the OpenAPI page."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from models.catalog import Offer
from models.checkpoint import InputSpec, Measurement, WorstCase
from models.purifiers import PurifierInfo
from models.votes import SEED_LIMIT
from service.engine import Served
from service.pipeline import Change
from service.votes import Prediction


class PurifyQuery(BaseModel):
    """Which defense, and its randomness. A parameter that doesn't exist is an error, so that typing errors show."""

    model_config = ConfigDict(extra="forbid")

    purifier: str | None = Field(
        default=None,
        max_length=200,
        description="See GET /purifiers; the service's default. Several in a row: `nrp+aid`, where one classifier has them all.",
    )
    model: str | None = Field(default=None, max_length=64, description="See GET /models; the service's default.")
    classifier: str | None = Field(
        default=None, max_length=64, description="One network of the model; the one that is best with this purifier."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=SEED_LIMIT,
        description="Same image, same seed, same answer. Drawn, and told in the reply, where it is not given.",
    )
    epsilon: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="The purifier's budget, in [0, 1] units (8/255 is 0.0314), instead of its own; the service has a limit.",
    )
    steps: int | None = Field(
        default=None, ge=1, le=1000, description="The purifier's steps, instead of its own; the service has a limit."
    )
    timeout_ms: float | None = Field(
        default=None,
        ge=1,
        allow_inf_nan=False,
        description="Answer within so long or give up (504); at most the service's own limit. The header X-Request-Timeout says "
        "the same in seconds.",
    )

    stop_after_ms: float | None = Field(
        default=None,
        ge=1,
        allow_inf_nan=False,
        description="Of a purifier that works in steps: stop so long after the request came in and answer with what was reached, "
        "after one step at least. The passes in the reply tell how far it got.",
    )

    @field_validator("purifier")
    @classmethod
    def _plus_is_a_space_in_urls(cls, purifier: str | None) -> str | None:
        return purifier and purifier.replace(" ", "+")


class ClassifyQuery(PurifyQuery):
    """The same, and how many classes to tell."""

    top_k: int = Field(default=5, ge=1, le=1000, description="How many classes to tell, the most probable first.")
    votes: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Purify so many times with the seeds that follow `seed`, and let the majority decide. For purifiers that "
        "draw random numbers; the service has a limit.",
    )


class PredictionReply(BaseModel):
    """A class that the image may show."""

    label: str
    index: int = Field(description="Position among the model's labels.")
    probability: float = Field(description="Softmax, the mean over the votes. Not calibrated; rounded, by a setting.")
    votes: int = Field(description="How many of the votes named this class.")


class ChangeReply(BaseModel):
    """What a purifier did to the image."""

    epsilon: float = Field(description="The budget that was chosen for this image, in [0, 1] units; 0: left alone.")
    linf: float = Field(description="The largest change of a value, in [0, 1] units.")
    l2: float = Field(description="The Euclidean length of the change, in [0, 1] units.")
    objective_before: float | None = Field(description="The purifier's own loss on the image as it came.")
    objective_after: float | None = Field(description="The same on the purified image.")
    forward_passes: int = Field(description="Network evaluations that this image needed.")
    backward_passes: int = Field(description="Gradients that this image needed.")


class StepReply(ChangeReply):
    """One purifier of a chain."""

    purifier: str


class PurificationReply(ChangeReply):
    """What was done to the image; of a chain, altogether."""

    suspicion: float | None = Field(
        description="Where objective_before falls among clean training images, as a percentile from 0 to 100. High values "
        "point to an attacker who does not know the purifier; one who does can keep it low, so a low value proves nothing."
    )
    steps: list[StepReply] | None = Field(default=None, description="Of a chain: what each of its purifiers did.")


class TimingsReply(BaseModel):
    """Where the time went. There is no time for classification: the logits come out of the purifier's own passes."""

    decode_ms: float = Field(description="Bytes to an image of the model's size.")
    queue_ms: float = Field(description="Waiting for the device.")
    purify_ms: float = Field(description="Purification and classification of the whole batch that the image was in.")
    batch_size: int = Field(description="Images in that batch, strangers' included; they don't change the answer.")


class ClassifyReply(BaseModel):
    """The answer for one image."""

    request_id: str = Field(description="The X-Request-ID that came, or a new one.")
    model: str
    classifier: str
    purifier: str
    predictions: list[PredictionReply] = Field(description="After purification; by votes, then by probability.")
    unpurified: list[PredictionReply] | None = Field(
        default=None, description="The same without purification, where the service is set to tell it."
    )
    purification: PurificationReply = Field(description="Of the first vote, where there were several.")
    seed: int
    weights_sha256: str = Field(description="Of the classifier that answered.")
    addon_sha256: list[str] = Field(description="Of the networks that the purifier brought along, in the order of use.")
    timings: TimingsReply

    @classmethod
    def of(cls, served: Served, request_id: str) -> "ClassifyReply":
        """Shape an answer. All at once: a model for each of its parts takes twice as long."""
        answer, offer = served.answer, served.offer
        names = offer.purifier.split("+")
        steps = [{**_change(step), "purifier": name} for name, step in zip(names, answer.steps, strict=False)]
        return cls.model_validate(
            {
                "request_id": request_id,
                "model": offer.model,
                "classifier": offer.classifier,
                "purifier": offer.purifier,
                "predictions": _ranking(served.predictions),
                "unpurified": None if served.before is None else _ranking(served.before),
                "purification": {**_change(answer), "suspicion": answer.suspicion, "steps": steps or None},
                "seed": served.seed,
                "weights_sha256": offer.card.weights_sha256,
                "addon_sha256": offer.addon_sha256,
                "timings": {
                    "decode_ms": round(served.decode_ms, 3),
                    "queue_ms": round(served.queue_ms, 3),
                    "purify_ms": round(answer.purify_ms, 3),
                    "batch_size": served.batch_size,
                },
            }
        )


def _ranking(found: Sequence[Prediction]) -> list[dict[str, Any]]:
    return [vars(each) for each in found]


def _change(change: Change) -> dict[str, Any]:
    return {name: getattr(change, name) for name in ChangeReply.model_fields}


class ProblemReply(BaseModel):
    """RFC 9457. Members beyond these depend on the code: `known`, `errors`, `limit`, `formats`, `retry_after_s`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Stands for the code.")
    title: str = Field(description="The kind of problem, always in the same words.")
    status: int
    detail: str = Field(description="What came, what was expected, what to do.")
    instance: str = Field(description="Where it happened.")
    code: str = Field(description="Stable, for programs.")
    request_id: str = Field(description="Look for this in the log.")


class BatchItem(BaseModel):
    """Either a result or a problem."""

    result: ClassifyReply | None = None
    problem: ProblemReply | None = None


class BatchReply(BaseModel):
    """One item for each part `image`, in the order in which they came."""

    request_id: str
    items: list[BatchItem]


class Cost(BaseModel):
    """Network evaluations for one image in the worst case, views included."""

    forward_passes: int
    backward_passes: int


class PurifierReply(BaseModel):
    """A purifier as one classifier offers it."""

    purifier: str = Field(description="As in ?purifier=.")
    model: str
    classifier: str
    default: bool = Field(description="Whether this classifier is taken where a request names none.")
    kind: str = Field(description="The code behind it; several purifiers may be one kind with different settings.")
    summary: str
    paper: str
    note: str
    settings: dict[str, Any]
    eps_pfy: float | None = Field(description="Bound of the change, largest value, in [0, 1] units; none where null.")
    options: list[str] = Field(description="What a request may change of it.")
    random: bool = Field(description="Whether it draws random numbers, so that `seed` and `votes` matter.")
    cost: Cost
    addon: str | None = Field(
        description="The add-on that brings its network; null where it needs only the classifier."
    )
    measured: list[Measurement] = Field(description="Accuracies with this purifier, each with its attack and n.")
    worst: list[WorstCase] = Field(description="What is left under all attacks together, image by image.")

    @classmethod
    def of(cls, offer: Offer, info: PurifierInfo, default: bool) -> "PurifierReply":
        """Shape an offer."""
        return cls(
            purifier=offer.purifier,
            model=offer.model,
            classifier=offer.classifier,
            default=default,
            kind=info.kind,
            summary=info.summary,
            paper=info.paper,
            note=offer.entry.note,
            settings=offer.entry.settings,
            eps_pfy=info.eps_pfy,
            options=list(info.options),
            random=info.random,
            cost=Cost(forward_passes=info.forward_passes, backward_passes=info.backward_passes),
            addon=offer.addons[0].card.addon if offer.addons else None,
            measured=offer.measured(),
            worst=offer.worst(),
        )


class PurifiersReply(BaseModel):
    """Everything that can be asked for."""

    default_purifier: str
    purifiers: list[PurifierReply]


class ClassifierReply(BaseModel):
    """A network."""

    classifier: str = Field(description="As in ?classifier=.")
    architecture: str
    purifiers: list[str]
    default_for: list[str] = Field(description="The purifiers for which this one is taken where a request names none.")
    labels: list[str]
    input: InputSpec
    measured: list[Measurement]
    worst: list[WorstCase]
    weights_sha256: str


class ModelReply(BaseModel):
    """A task, with the networks that know it."""

    model: str = Field(description="As in ?model=.")
    classifiers: list[ClassifierReply]


class ModelsReply(BaseModel):
    """Everything that is loaded."""

    default_model: str
    models: list[ModelReply]


class StatusReply(BaseModel):
    """All is well."""

    status: str = "ok"
