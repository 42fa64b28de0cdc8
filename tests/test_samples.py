"""The shipped samples are what samples.json says they are."""

import json
from functools import cache
from pathlib import Path

import pytest

from models.catalog import Catalog
from service.decode import decode

ROOT = Path(__file__).parents[1]
SAMPLES = json.loads((ROOT / "samples" / "samples.json").read_text())
PURIFIER = {"cifar10": "soap-lc", "mnist": "soap-dr"}


@cache
def catalog():
    return Catalog.open()


def label(sample, purifier):
    defense = catalog().defense(sample["model"], purifier)
    image = decode((ROOT / "samples" / sample["file"]).read_bytes(), defense.card.input, 10**6)
    return defense.card.labels[int(defense.purify(image[None]).logits.argmax())]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample["file"])
def test_a_sample_shows_what_its_name_says(sample):
    plain, purified = label(sample, "none"), label(sample, PURIFIER[sample["model"]])
    right = {"clean": (True, True), "helps": (False, True), "fails": (False, False)}[sample["kind"]]
    assert (plain == sample["label"], purified == sample["label"]) == right


def test_both_data_sets_show_all_three_kinds():
    assert {(sample["model"], sample["kind"]) for sample in SAMPLES} == {
        (model, kind) for model in ("cifar10", "mnist") for kind in ("clean", "helps", "fails")
    }
