import json
import re
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
from training.attacks import AttackSettings
from training.data import load_data
from training.evaluate import Cell, Redrawn
from training.tables import evaluations

DATA = Path(__file__).parents[1] / "data"


def defense(network=None):
    """Class 1 where the mean is above a half."""
    return toy(network or linear(5.0))


class Levels:
    """Rounds to a few levels, so it has a gradient that is zero everywhere."""

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
NEAR, NEAR_Y = torch.full((32, 1, 2, 2), 0.501), torch.ones(32, dtype=torch.long)
PGD = {"epsilon": 0.3, "step_size": 0.05, "steps": 20}


def codes(flaws):
    return [flaw.code for flaw in flaws]


def attack(mode="static", **fields):
    return AttackSettings.model_validate({"name": mode, "mode": mode, **PGD, **fields})


class Moody(Levels):
    """Answers differently each time it is asked, and says that it doesn't."""

    asked = 0

    def restored(self, x):
        Moody.asked += 1
        return x if Moody.asked % 2 else 1 - x


class Stubborn(Levels):
    """Knows the images that it is tested with, and gives the right answer whatever they have become."""

    def purify(self, x, seeds=None, wanted=None):
        found = self.inner.purify(x)
        return Purified(**{**found.__dict__, "logits": torch.eye(2)[Y[: len(x)]]})

    def restored(self, x):
        return x


class Annealed(Levels):
    """Right where an image is far from the clean one, so that a small change fools it and a large one doesn't."""

    def purify(self, x, seeds=None, wanted=None):
        found, clean = self.inner.purify(x), NEAR[: len(x)]
        far = (x - clean).flatten(1).abs().amax(1) > 3 / 255
        right = 9 * torch.eye(2)[NEAR_Y[: len(x)]]
        return Purified(**{**found.__dict__, "logits": torch.where(far[:, None], right, found.logits)})

    def restored(self, x):
        return x


class Unseeded(Levels):
    """Draws from a generator of its own, whatever the seeds."""

    def __init__(self, inner):
        super().__init__(inner)
        self.info, self.generator = replace(self.info, random=True), torch.Generator().manual_seed(0)

    def noise(self, x, seeds):
        return torch.randn(x.shape, generator=self.generator)

    def purify(self, x, seeds=None, wanted=None):
        return self.inner.purify((x + 0.3 * self.noise(x, seeds)).clamp(0, 1))

    def restored(self, x, seeds=None):
        return x


class Seeded(Unseeded):
    def noise(self, x, seeds):
        return torch.stack([torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def behind(purifier):
    return replace(defense(), purifier=purifier(defense().purifier))


def softmax():
    head = nn.Sequential(linear(5.0).classifier_head, nn.Softmax(1))
    return defense(Classifier(nn.Flatten(), head, mean=[0.0], std=[1.0]).eval())


def cell(purifier, mode, right, fresh=None, flags=(), **fields):
    """right: how many of the last of 100 images, or the outcomes. fresh: of a random defence, the mean of fresh draws."""
    outcomes = right if isinstance(right, str) else "0" * (100 - right) + "1" * right
    share = outcomes.count("1") / len(outcomes)
    return Cell(
        **{"purifier": purifier, "attack": attack(mode, **fields), "n": len(outcomes), "accuracy": share},
        **{"paper": None, "seconds": 0.0, "outcomes": outcomes, "flags": flags},
        redrawn=None if fresh is None else Redrawn(n=len(outcomes), draws=20, mean=fresh, worst=fresh, majority={}),
    )


def found(*cells):
    return codes(checks.of_results(cells))


WHOLE = {"mode": "autoattack", "whole": True, "attack": "standard", "steps": 0}
BARE = WHOLE | {"whole": False}
DYNAMIC = "it seems to be a dynamic defense! The evaluation with AutoAttack might be insufficient."

# Code -> results that show it, and honest ones that are much alike.
RESULTS = {
    "rises-with-effort": (
        [cell("none", "static", 40), cell("none", "static", 80, steps=100)],
        [cell("none", "static", 40), cell("none", "static", 42, steps=100)],
    ),
    "weaker-than-blind": (
        [cell("p", "static", 20), cell("p", "bpda", 80)],
        [cell("p", "static", 20), cell("p", "bpda", 22)],
    ),
    "square-beats-gradients": (
        [cell("p", "bpda", 90), cell("p", "square", 80)],
        [cell("p", "bpda", 90), cell("p", "square", 88)],
    ),
    "randomness-without-eot": (
        [cell("p", "bpda", 50, fresh=0.5), cell("p", "two-view", 50, fresh=0.5, eot=10)],
        [cell("p", "bpda", 50, fresh=0.5), cell("p", "bpda", 50, fresh=0.5, eot=10, steps=10)],
    ),
    "autoattack-flag": (
        [cell("p", right=50, flags=(DYNAMIC,), **WHOLE)],
        [cell("p", right=50, flags=(DYNAMIC,), **WHOLE), cell("p", "bpda", 50)],
    ),
}
# Code -> a defence that has it.
DEFENSES = {
    "probabilities": softmax,
    "zero-gradient": lambda: behind(Levels),
    "zero-budget": lambda: behind(Moody),
    "unbounded": lambda: behind(Stubborn),
}
CODES = re.findall(r'Flaw\(\s*"([a-z-]+)"', Path(checks.__file__).read_text())


@pytest.mark.parametrize("code", CODES)
def test_every_flaw_is_found(code):
    if code in RESULTS:
        flawed, honest = RESULTS[code]
        assert (found(*flawed), found(*honest)) == ([code], [])
    else:
        assert code in codes(checks.of_defense(DEFENSES[code](), X, Y))


def test_an_honest_network_has_no_flaw():
    assert checks.of_defense(defense(), X, Y) == checks.of_defense(defense(), X[:1], Y[:1]) == []


def test_what_is_right_once_it_is_attacked_enough_is_found_by_trying():
    flaws = checks.of_defense(behind(Annealed), NEAR, NEAR_Y)
    told = [flaw.text for flaw in flaws if flaw.code == "rises-with-effort"]
    assert "bpda: 10 steps of 0.25, epsilon 1 leaves 100.0% right, " in told[0]
    assert "10 steps of 0.003906, epsilon 0.01562 0.0%" in told[0]
    assert checks.of_defense(defense(), NEAR, NEAR_Y) == []


@pytest.mark.parametrize("votes", [1, 3])
def test_a_random_defence_answers_alike_to_the_same_seeds(votes):
    assert "zero-budget" in codes(checks.of_defense(behind(Unseeded).voting(votes), X, Y))
    assert "zero-budget" not in codes(checks.of_defense(behind(Seeded).voting(votes), X, Y))


def test_attacks_on_a_bare_classifier_know_it():
    assert checks.of_results([cell("none", "static", "0" * 100), cell("none", "decision", "1" * 100)]) == []


def test_every_flaw_is_explained():
    text = (Path(__file__).parents[2] / "docs" / "checks.md").read_text()
    assert sorted(re.findall("^## (.*)", text, re.MULTILINE)) == sorted(CODES)


STARTS = {"random_start": True, "restarts": 3}


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({}, {"epsilon": 0.6}),
        ({}, STARTS),
        ({}, {"steps": 100, **STARTS}),
        ({"targets": 2}, {"targets": 3}),
        ({"eot": 2}, {"eot": 3}),
        ({}, {"steps": 100, "images": 80}),
    ],
)
def test_more_effort_must_not_leave_more_right(less, more):
    assert found(cell("p", "bpda", 40, **less), cell("p", "bpda", 80, **more)) == ["rises-with-effort"]
    assert found(cell("p", "bpda", 40, **less), cell("p", "bpda", 43, **more)) == []  # chance
    assert found(cell("p", "bpda", 40, **less), cell("p", "bpda", 80, **more, momentum=1.0)) == []  # another attack


def test_autoattack_must_not_leave_more_right_at_a_larger_budget():
    cells = [cell("none", right=right, **WHOLE | {"epsilon": epsilon}) for right, epsilon in ((40, 0.1), (80, 0.2))]
    assert found(*cells) == ["rises-with-effort"]


@pytest.mark.parametrize(
    ("purifier", "mode", "less", "more"),
    [
        ("p", "static", {}, {"epsilon": 0.6}),  # made on the classifier: it may go past what fools the purifier
        ("none", "static", {"source": "other"}, {"source": "other", "steps": 100}),  # or past what fools another one
        ("p", "substitute", {"attack": "fcn"}, {"attack": "fcn", "steps": 100}),
        ("none", "features", {"tap": "t", "random_start": True}, {"tap": "t", **STARTS, "steps": 100}),
        ("none", "static", {"steps": 1}, {"steps": 1, "epsilon": 0.6}),  # overshoots
        ("none", "foolbox", {"attack": "LinfFastGradientAttack"}, {"attack": "LinfFastGradientAttack", "epsilon": 0.6}),
        ("p", "bpda", {}, {"targets": 3}),  # another loss
        ("p", "bpda", {}, {"eot": 10}),  # one draw isn't less of many
        ("p", "bpda", {}, {"eot": 10, "steps": 1}),
        ("p", "bpda", {"epsilon": 0.6}, {"steps": 100}),  # more of one, less of the other
    ],
)
def test_what_is_no_more_of_the_same_may_leave_more_right(purifier, mode, less, more):
    assert found(cell(purifier, mode, 40, **less), cell(purifier, mode, 80, **more)) == []


def test_each_blind_attack_is_compared_at_its_own_budget():
    blind, aware = cell("p", "static", 20), cell("p", "bpda", 80)
    assert found(blind, aware, cell("p", "bpda", 0, epsilon=0.6)) == ["weaker-than-blind"]
    assert found(cell("p", "static", 0, epsilon=0.6), aware) == []  # it may do more


def test_an_attack_on_few_images_hides_nothing_on_the_others():
    few = cell("p", "unrolled", "0" * 8, images=8)
    assert found(cell("p", "static", 20), cell("p", "bpda", 80), few) == ["weaker-than-blind"]
    assert found(few, cell("p", "square", 0)) == []


def test_square_is_compared_with_gradients_of_the_same_ball():
    square = cell("none", "square", 50)
    assert found(cell("none", "static", 90, epsilon=0.1), square) == []
    assert found(cell("none", "static", 90, norm="l2"), square) == []
    assert found(cell("none", "static", 50), cell("none", "static", 90, momentum=1.0), square) == []
    assert found(cell("none", "static", 90, steps=1), square) == []  # one step overshoots


def test_what_decisions_take_counts_as_what_square_takes():
    climbed = cell("p", "bpda", 90)
    assert found(climbed, cell("p", "decision", 80)) == ["square-beats-gradients"]
    assert found(climbed, cell("p", "decision", 88)) == []


def test_autoattack_is_no_gradient_attack_for_it_has_square_within():
    climbed, square = cell("none", "static", 100), cell("none", "square", 60)
    assert found(climbed, square, cell("none", right=10, **BARE)) == ["square-beats-gradients"]
    assert found(climbed, square, cell("none", right=10, flags=(SQUARE,), **BARE)) == ["square-beats-gradients"] * 2
    assert found(cell("p", "static", 20), cell("p", "bpda", 80), cell("p", right=0, **WHOLE)) == ["weaker-than-blind"]


def test_one_image_that_square_takes_is_luck():
    assert found(cell("p", "bpda", "1" * 32), cell("p", "square", "0" + "1" * 31)) == []
    assert found(cell("p", "bpda", "1" * 32), cell("p", "square", "00" + "1" * 30)) == ["square-beats-gradients"]


def test_what_square_takes_of_a_random_defence_is_asked_again():
    climbed = cell("p", "bpda", 90, fresh=0.9, eot=10)
    assert found(climbed, cell("p", "square", 40, fresh=0.88)) == []  # lucky draws among many
    assert found(climbed, cell("p", "square", 40, fresh=0.5)) == ["square-beats-gradients"]


ZERO = "there are 7 points with zero gradient!"
RANDOM = "it seems to be a randomized defense!"
SQUARE = "Square Attack has decreased the robust accuracy of 3.12%."


@pytest.mark.parametrize(
    ("flag", "answers", "left"),
    [
        (ZERO, [cell("p", "bpda", 50), cell("p", "square", 50)], 1),
        (RANDOM, [cell("p", "bpda", 50)], 1),
        (RANDOM, [cell("p", "two-view", 50, eot=10)], 1),
        (RANDOM, [cell("p", "bpda", 50, eot=10)], 0),
        (SQUARE, [cell("p", "bpda", 50)], 0),
        (SQUARE, [cell("p", "bpda", "0" * 50 + "1" * 30)], 1),  # nothing is known of the last 20
        (SQUARE, [cell("p", "bpda", 50, epsilon=0.6)], 1),
        (SQUARE, [cell("p", "square", 50)], 1),
        (DYNAMIC, [cell("p", "square", 50), cell("p", "joint", 50)], 1),
    ],
)
def test_which_attacks_answer_which_flag(flag, answers, left):
    assert found(cell("p", right=50, flags=(flag,), **WHOLE), *answers) == ["autoattack-flag"] * left


def test_a_flag_is_told_once_and_of_what_was_attacked():
    many = (ZERO, ZERO.replace("7", "12"))
    assert found(cell("none", right=50, flags=many, **BARE)) == ["autoattack-flag"]
    assert found(cell("p", right=50, flags=many, **BARE)) == []  # of the classifier, not of p


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
