"""Checkpoints: a folder with `weights.safetensors` and `card.json`. Loading is strict, never unpickles and never guesses.

There are two kinds: a classifier with the purifiers that need no network but its own (`Checkpoint`), and a purifier's own
network that protects classifiers of other checkpoints (`AddOn`).
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from models.classifiers import Classifier, build_classifier
from models.networks import build_network

WEIGHTS, CARD = "weights.safetensors", "card.json"
NAME = r"^[a-z0-9][a-z0-9-]*$"


class CheckpointError(Exception):
    """A checkpoint folder can't be used; the message says which file, what is wrong and what to do."""


N = TypeVar("N", bound=nn.Module)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Frozen):
    """What the classifier looks at. An image of exactly this size is passed through untouched; others are resized."""

    channels: Literal[1, 3]
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    resize: Literal["bilinear-antialias"] = "bilinear-antialias"


class PurifierEntry(_Frozen):
    """A purifier that a checkpoint offers: a registered kind and its settings."""

    kind: str
    settings: dict[str, Any] = {}
    note: str = ""
    default: bool = Field(default=False, description="serve this one where a request names no classifier")


class Measurement(_Frozen):
    """One measured accuracy. `paper` is what the paper reports for the same cell, or None."""

    attack: str
    purifier: str
    addons: tuple[str, ...] = Field(default=(), description="SHA-256 of the add-ons that the purifier ran with")
    accuracy: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    paper: float | None = None
    detail: str = Field(description="attack settings, seed and the result file")


class WorstCase(_Frozen):
    """What attacks together left of a purifier's right answers: an image counts only if it is right under each of them."""

    purifier: str
    addons: tuple[str, ...] = Field(default=(), description="SHA-256 of the add-ons that the purifier ran with")
    adaptive: float | None = Field(ge=0, le=1, description="under all attacks by gradient that know the defence")
    worst: float = Field(ge=0, le=1, description="under all attacks of every mode, on the first n images")
    n: int = Field(ge=1)
    strongest: str = Field(description="the one attack that left least")
    detail: str = Field(description="budget, images and the result files")


class _AnyCard(_Frozen):
    """What both kinds of `card.json` hold."""

    format: Literal[1] = 1
    model: str = Field(pattern=NAME, description="the data set's name, as in ?model=")
    arguments: dict[str, Any]
    input: InputSpec
    purifiers: dict[Annotated[str, Field(pattern=NAME)], PurifierEntry]
    calibration: dict[str, tuple[float, ...]] = Field(
        default={}, description="kind -> 0th to 100th percentile of its objective on clean training images"
    )
    training: dict[str, Any] = Field(
        description="recipe, hyperparameters with sources, seed, commit, command, versions"
    )
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        for kind, percentiles in self.calibration.items():
            if len(percentiles) != 101 or list(percentiles) != sorted(percentiles):
                raise ValueError(f"calibration of {kind!r} must be 101 ascending percentiles")
        return self

    @property
    def name(self) -> str:
        """What the checkpoint is called among those of its model."""
        raise NotImplementedError


class Card(_AnyCard):
    """`card.json` of a classifier: all that is needed to rebuild its network and to judge it.

    measured: accuracies of this classifier behind every purifier, add-ons included. worst: what is left under all attacks
    together.
    """

    classifier: str = Field(pattern=NAME, description="this network's name, as in ?classifier=")
    architecture: str
    labels: tuple[str, ...]
    measured: tuple[Measurement, ...] = ()
    worst: tuple[WorstCase, ...] = ()

    @property
    def name(self) -> str:
        return self.classifier

    @property
    def robustness(self) -> float:
        """The classifier's own accuracy under PGD, nothing purified, the lowest that was measured; 0 where none was."""
        found = [each.accuracy for each in self.measured if (each.purifier, each.attack) == ("none", "pgd")]
        return min(found, default=0.0)


class AddOnCard(_AnyCard):
    """`card.json` of a purifier's own network."""

    part: Literal["purifier"] = "purifier"
    addon: str = Field(pattern=NAME, description="this network's name")
    network: str = Field(description="a registered purifier network")
    classifier: str = Field(pattern=NAME, description="the classifier that it was trained beside")
    classifier_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of that classifier's weights")
    protects: Literal["classifier", "model"] = Field(
        description="classifier: only that one, with exactly those weights; model: every classifier of the model"
    )

    @property
    def name(self) -> str:
        return self.addon

    def fits(self, card: Card) -> bool:
        """Whether this network protects that classifier."""
        if (self.model, self.input) != (card.model, card.input):
            return False
        return self.protects == "model" or self.classifier_sha256 == card.weights_sha256


class _Folder:
    """A verified folder: its card, and its weights as bytes."""

    def __init__(self, folder: Path, weights: bytes) -> None:
        self.folder, self._weights = folder, weights

    def _filled(self, build: Callable[[], N]) -> N:
        try:
            network = build()
            network.load_state_dict(load_tensors(self._weights), strict=True)
        except (ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder}: weights and card don't fit together: {error}") from error
        return network


class Checkpoint(_Folder):
    """A classifier's checkpoint."""

    def __init__(self, folder: Path, card: Card, weights: bytes) -> None:
        super().__init__(folder, weights)
        self.card = card

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """`open_checkpoint`, for folders that must hold a classifier.

        Raises:
            CheckpointError: also where it holds an add-on.
        """
        found = open_checkpoint(folder)
        if not isinstance(found, Checkpoint):
            raise CheckpointError(f"{folder}: holds an add-on ({found.card.addon}), where a classifier is needed")
        return found

    def classifier(self) -> Classifier:
        """The network in training form (not frozen), on the CPU.

        Raises:
            CheckpointError: the weights don't fit the architecture that the card names.
        """
        return self._filled(lambda: build_classifier(self.card.architecture, **self.card.arguments))


class AddOn(_Folder):
    """The checkpoint of a purifier's own network."""

    def __init__(self, folder: Path, card: AddOnCard, weights: bytes) -> None:
        super().__init__(folder, weights)
        self.card = card

    def network(self) -> nn.Module:
        """The network in training form (not frozen), on the CPU.

        Raises:
            CheckpointError: the weights don't fit the network that the card names.
        """
        return self._filled(lambda: build_network(self.card.network, **self.card.arguments))


def open_checkpoint(folder: Path) -> Checkpoint | AddOn:
    """Read and verify a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or unreadable, the card is wrong, or the weights don't match their checksum.
    """
    card = read_card(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: can't be read ({error.strerror})") from error
    found = hashlib.sha256(weights).hexdigest()
    if found != card.weights_sha256:
        raise CheckpointError(
            f"{folder / WEIGHTS}: its SHA-256 is {found}, the card says {card.weights_sha256}; copy the folder again"
        )
    return Checkpoint(folder, card, weights) if isinstance(card, Card) else AddOn(folder, card, weights)


def read_card(folder: Path) -> Card | AddOnCard:
    """Read and validate `card.json` alone.

    Raises:
        CheckpointError: it is missing, unreadable or wrong.
    """
    path = folder / CARD
    try:
        return as_card(json.loads(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    except ValueError as error:  # not JSON, or not a card
        raise CheckpointError(f"{path}: not a valid card: {error}") from error


def as_card(fields: Any) -> Card | AddOnCard:
    """The card that these fields are of: an add-on's says `part`.

    Raises:
        ValidationError
    """
    kind = AddOnCard if isinstance(fields, dict) and "part" in fields else Card
    return kind.model_validate(fields)


def write_card(folder: Path, card: Card | AddOnCard) -> None:
    """Write `card.json`, readable and with stable order, so that a change shows as a small diff."""
    text = json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / CARD).write_text(_compact_numbers(text) + "\n", encoding="utf-8")


def _compact_numbers(text: str) -> str:
    """Put each list of plain numbers on one line; a percentile table would otherwise fill pages."""
    return re.sub(r"\[\s+([-\d.e+,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)


def save_checkpoint(folder: Path, network: nn.Module, fields: dict[str, Any]) -> Card | AddOnCard:
    """Write a checkpoint folder; `fields` are a card's without `weights_sha256`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    (folder / WEIGHTS).write_bytes(weights)
    made = as_card({**fields, "weights_sha256": hashlib.sha256(weights).hexdigest()})
    write_card(folder, made)
    return made
