"""Fixtures on the shipped images: the first 256 training and test images of each data set."""

import json
from pathlib import Path

import pytest
import torch

from training.progress import Progress
from training.recipe import AddOnRecipe, Recipe, load_recipe
from training.train import train

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def data() -> Path:
    return DATA


@pytest.fixture
def quiet() -> Progress:
    from rich.console import Console

    return Progress(Console(quiet=True))


@pytest.fixture
def tiny():
    """A shipped recipe cut down to seconds: fp32, a few epochs, batches of 64."""

    def make(name: str, **changes: object) -> Recipe | AddOnRecipe:
        return load_recipe(
            name, {"epochs": 2, "batch_size": 64, "precision": "fp32", "calibration_images": 128, **changes}
        )

    return make


@pytest.fixture
def beside(tiny, data, quiet, tmp_path):
    """A folder with a barely trained classifier that an add-on's recipe names."""

    def make(recipe: AddOnRecipe) -> Path:
        folder = tmp_path / "zoo" / recipe.classifier
        natural = tiny("natural", classifier=recipe.classifier, model=recipe.model, epochs=1)
        train(natural, out=folder, data=data, progress=quiet)
        return folder

    return make


@pytest.fixture
def results(tmp_path):
    """A result file of these cells, with only what matters in its header."""

    def write(name, *cells, model="cifar10", classifier="c", **header):
        told = {"model": model, "classifier": classifier, "budget": 8 / 255, **header}
        file = tmp_path / name
        file.write_text(json.dumps({**told, "cells": [each.model_dump(mode="json") for each in cells]}))
        return file

    return write


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
