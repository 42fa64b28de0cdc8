"""Toy networks, objectives and checkpoint folders for the tests of models/."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.checkpoint import Card, save_checkpoint
from models.classifiers import Classifier, build_classifier

Network = Callable[..., Classifier]
Fields = dict[str, Any]
Save = Callable[..., Path]


@pytest.fixture
def network() -> Network:
    """Builds a seeded network with random batch-norm statistics, in eval mode."""

    def build(architecture: str, **arguments: object) -> Classifier:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            made = build_classifier(architecture, **arguments)
            for layer in made.modules():
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    nn.init.normal_(layer.running_mean, std=0.3)
                    nn.init.uniform_(layer.running_var, 0.5, 1.5)
                    nn.init.uniform_(layer.weight, 0.5, 1.5)
                    nn.init.normal_(layer.bias, std=0.3)
        return made.eval()

    return build


@pytest.fixture
def card_fields() -> Fields:
    """The fields of a valid card of a small FCN, as a trainer would write them."""
    return {
        "model": "mnist",
        "classifier": "fcn",
        "architecture": "fcn",
        "arguments": {"aux": "decoder"},
        "labels": tuple("0123456789"),
        "input": {"channels": 1, "height": 28, "width": 28},
        "purifiers": {
            "none": {"kind": "none"},
            "soap-dr": {
                "kind": "soap-dr",
                "settings": {"selection": "fixed", "budgets": [0.3], "step_size": 0.1, "steps": 2},
            },
        },
        "calibration": {"soap-dr": tuple(float(p) for p in range(101))},
        "training": {"seed": 7},
    }


@pytest.fixture
def save(tmp_path: Path, network: Network, card_fields: Fields) -> Save:
    """Writes a checkpoint folder below tmp_path; keyword arguments replace fields of its card."""

    def write(name: str = "mnist-fcn", **fields: Any) -> Path:
        folder: Path = tmp_path / name
        save_checkpoint(folder, network("fcn", aux="decoder"), {**card_fields, **fields})
        return folder

    return write


@pytest.fixture
def card(card_fields: Fields) -> Card:
    return Card.model_validate({**card_fields, "weights_sha256": "0" * 64})
