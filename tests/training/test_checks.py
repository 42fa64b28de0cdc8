import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.catalog import Catalog
from models.classifiers import Classifier
from models.purifiers import Purified
from tests.training.attacks.test_attacks import defense as toy
from tests.training.attacks.test_attacks import linear
from training import checks
from training.attacks import AttackSettings, knowing
from training.data import load_data
from training.evaluate import Cell
from training.outcomes import withstood
from training.tables import evaluations

DATA = Path(__file__).parents[1] / "data"


def defense(network=None):
    """Class 1 where the mean is above a half."""
    return toy(network or linear(5.0))


class Levels:
    """The negative control: rounds to a few levels, so it has a gradient that is zero everywhere."""

    def __init__(self, inner):
        self.inner, self.info = inner, replace(inner.info, kind="levels")

    def purify(self, x, seeds=None, wanted=None):
        image = self.restored(x)
        return Purified(**{**self.inner.purify(image).__dict__, "image": image})

    def restored(self, x):
        return (x * 10).round() / 10

    def logits(self, x):
        return self.inner.logits(x)


X = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))
Y = (X.flatten(1).mean(1) > 0.5).long()
PGD = {"epsilon": 0.3, "step_size": 0.05, "steps": 20}


def codes(flaws):
    return [flaw.code for flaw in flaws]


def attack(mode="static", **fields):
    return AttackSettings.model_validate({"name": mode, "mode": mode, **PGD, **fields})


def test_an_honest_network_has_no_flaw():
    assert checks.of_defense(defense(), X, Y) == []


def test_the_negative_control_is_caught_and_its_worst_case_is_about_nothing():
    plain = defense()
    control = replace(plain, name="levels", purifier=Levels(plain.purifier))
    clean = control.purify(X).logits.argmax(1) == Y
    by_gradient, past_it = (knowing(control, X, Y, attack(mode)) for mode in ("end-to-end", "bpda"))
    assert torch.equal(by_gradient.right, clean)  # as plain gradient attacks report: as robust as can be
    assert float(clean.float().mean()) > 0.9
    cells = [cell("levels", "end-to-end", by_gradient.right), cell("levels", "bpda", past_it.right)]
    assert withstood(cells) < 0.1
    assert codes(checks.of_defense(control, X, Y)) == ["zero-gradient"]


def test_a_softmax_is_no_logit():
    head = nn.Sequential(linear(5.0).classifier_head, nn.Softmax(1))
    network = Classifier(nn.Flatten(), head, mean=[0.0], std=[1.0]).eval()
    assert "probabilities" in codes(checks.of_defense(defense(network), X, Y))


class Moody(Levels):
    """Answers differently each time it is asked, and says that it doesn't."""

    asked = 0

    def restored(self, x):
        Moody.asked += 1
        return x if Moody.asked % 2 else 1 - x


def test_another_answer_to_the_same_image_is_noticed():
    plain = defense()
    assert "zero-budget" in codes(checks.of_defense(replace(plain, purifier=Moody(plain.purifier)), X, Y))


class Stubborn(Levels):
    """Knows the images that it is tested with, and gives the right answer whatever they have become."""

    def purify(self, x, seeds=None, wanted=None):
        found = self.inner.purify(x)
        return Purified(**{**found.__dict__, "logits": torch.eye(2)[Y[: len(x)]]})

    def restored(self, x):
        return x


def test_who_may_do_anything_must_win():
    plain = defense()
    assert codes(checks.of_defense(replace(plain, purifier=Stubborn(plain.purifier)), X, Y)) == ["unbounded"]


def cell(purifier, mode, right, **fields):
    outcomes = right if isinstance(right, str) else "".join("1" if ok else "0" for ok in right.tolist())
    share = outcomes.count("1") / len(outcomes)
    settings = attack(mode, **fields)
    return Cell(
        purifier=purifier, attack=settings, n=len(outcomes), accuracy=share, paper=None, seconds=0.0, outcomes=outcomes
    )


@pytest.mark.parametrize(
    "effort", [{"epsilon": 0.6}, {"steps": 100}, {"steps": 100, "restarts": 3, "random_start": True}]
)
def test_more_effort_must_not_leave_more_right(effort):
    less, more = cell("none", "static", "0" * 60 + "1" * 40), cell("none", "static", "0" * 20 + "1" * 80, **effort)
    assert codes(checks.of_results([less, more])) == ["rises-with-effort"]
    assert checks.of_results([less, cell("none", "static", "0" * 58 + "1" * 42, **effort)]) == []  # chance
    other = cell("none", "static", "0" * 20 + "1" * 80, **effort, momentum=1.0)
    assert checks.of_results([less, other]) == []  # another attack


def test_a_blind_attack_on_a_purifier_may_do_anything_with_effort():
    less, more = cell("p", "static", "0" * 100), cell("p", "static", "1" * 100, epsilon=0.6)
    assert checks.of_results([less, more]) == []


def test_knowing_the_defence_must_not_hurt():
    blind, aware = cell("p", "static", "0" * 80 + "1" * 20), cell("p", "bpda", "0" * 20 + "1" * 80)
    assert codes(checks.of_results([blind, aware])) == ["weaker-than-blind"]
    assert checks.of_results([blind, cell("p", "bpda", "0" * 78 + "1" * 22)]) == []
    assert checks.of_results([cell("p", "static", "0" * 100, epsilon=0.6), aware]) == []  # it may do more


def test_attacks_on_a_bare_classifier_know_it():
    assert checks.of_results([cell("none", "static", "0" * 100), cell("none", "decision", "1" * 100)]) == []


def test_every_flaw_is_explained():
    text = (Path(__file__).parents[2] / "docs" / "checks.md").read_text()
    source = Path(checks.__file__).read_text()
    for code in (
        "rises-with-effort",
        "weaker-than-blind",
        "probabilities",
        "zero-gradient",
        "zero-budget",
        "unbounded",
    ):
        assert f"## {code}\n" in text
        assert f'Flaw("{code}"' in source


@pytest.mark.parametrize("file", evaluations(), ids=lambda file: file.stem)
def test_the_committed_results_have_no_flaw(file):
    cells = [Cell.model_validate(each) for each in json.loads(file.read_text())["cells"]]
    assert checks.of_results(cells) == []


def defaults():
    """The purifiers that ship, over the classifier they mean; the papers' grids take minutes."""
    catalog = Catalog.open()
    return [
        offer
        for offer in catalog.offers()
        if catalog.resolve(offer.model, offer.purifier) is offer and not offer.purifier.endswith("-paper")
    ]


@pytest.mark.parametrize("offer", defaults(), ids=lambda offer: f"{offer.model}-{offer.purifier}")
def test_attacks_on_what_ships_work(offer):
    test = load_data(offer.model, "test", DATA)
    assert checks.of_defense(offer.build(), test.floats(0, 32), test.labels[:32]) == []
