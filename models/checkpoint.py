"""Checkpoints: a folder with `weights.safetensors` and `card.json`. Loading is strict, never unpickles and never guesses."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from models.classifiers import Classifier, build_classifier

WEIGHTS, CARD = "weights.safetensors", "card.json"


class CheckpointError(Exception):
    """A checkpoint folder can't be used; the message says which file, what is wrong and what to do."""


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
    accuracy: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    paper: float | None = None
    detail: str = Field(description="attack settings, seed and the result file")


class Card(_Frozen):
    """`card.json`: all that is needed to rebuild a checkpoint's network and to judge it."""

    format: Literal[1] = 1
    model: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="the data set's name, as in ?model=")
    classifier: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="this network's name, as in ?classifier=")
    architecture: str
    arguments: dict[str, Any]
    labels: tuple[str, ...]
    input: InputSpec
    purifiers: dict[str, PurifierEntry]
    calibration: dict[str, tuple[float, ...]] = Field(
        default={}, description="kind -> 0th to 100th percentile of its objective on clean training images"
    )
    training: dict[str, Any] = Field(
        description="recipe, hyperparameters with sources, seed, commit, command, versions"
    )
    measured: tuple[Measurement, ...] = ()
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        for kind, percentiles in self.calibration.items():
            if len(percentiles) != 101 or list(percentiles) != sorted(percentiles):
                raise ValueError(f"calibration of {kind!r} must be 101 ascending percentiles")
        return self


class Checkpoint:
    """A verified checkpoint folder."""

    def __init__(self, folder: Path, card: Card, weights: bytes) -> None:
        self.folder, self.card, self._weights = folder, card, weights

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
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
        return cls(folder, card, weights)

    def classifier(self) -> Classifier:
        """The network in training form (not frozen), on the CPU.

        Raises:
            CheckpointError: the weights don't fit the architecture that the card names.
        """
        try:
            network = build_classifier(self.card.architecture, **self.card.arguments)
            network.load_state_dict(load_tensors(self._weights), strict=True)
        except (ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder}: weights and card don't fit together: {error}") from error
        return network


def read_card(folder: Path) -> Card:
    """Read and validate `card.json` alone.

    Raises:
        CheckpointError: it is missing, unreadable or wrong.
    """
    path = folder / CARD
    try:
        return Card.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    except ValidationError as error:
        raise CheckpointError(f"{path}: not a valid card: {error}") from error


def write_card(folder: Path, card: Card) -> None:
    """Write `card.json`, readable and with stable order, so that a change shows as a small diff."""
    text = json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / CARD).write_text(_compact_numbers(text) + "\n", encoding="utf-8")


def _compact_numbers(text: str) -> str:
    """Put each list of plain numbers on one line; a percentile table would otherwise fill pages."""
    return re.sub(r"\[\s+([-\d.e+,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)


def save_checkpoint(folder: Path, classifier: Classifier, card: dict[str, Any]) -> Card:
    """Write a checkpoint folder; `card` is a Card's fields without `weights_sha256`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: tensor.contiguous() for name, tensor in classifier.state_dict().items()})
    (folder / WEIGHTS).write_bytes(weights)
    made = Card.model_validate({**card, "weights_sha256": hashlib.sha256(weights).hexdigest()})
    write_card(folder, made)
    return made
