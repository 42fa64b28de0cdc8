import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.catalog import Catalog, build_defense
from models.checkpoint import Card
from models.classifiers import Classifier
from training.attacks.queries import decision, square
from training.attacks.settings import AttackSettings
from training.data import load_data

BOTH = pytest.mark.parametrize("attack", [square, decision])
HIGH = torch.ones(3, dtype=torch.long)


def budget(attack, **fields):
    return AttackSettings(**{"name": "q", "mode": attack.__name__, "epsilon": 0.1, "steps": 100, **fields})


def linear(channels=1):
    """Two classes of 8 x 8 images; class 1 wins where the upper half's mean is above the lower half's."""
    head = nn.Linear(64 * channels, 2)
    upper = torch.full((channels, 8, 8), 1 / (32 * channels))
    upper[:, 4:] *= -1
    head.weight.data = torch.stack([torch.zeros(64 * channels), upper.flatten()])
    head.bias.data.zero_()
    return Classifier(nn.Flatten(), head, mean=[0.0] * channels, std=[1.0] * channels).eval().requires_grad_(False)


def defense(wrapped=None, channels=1):
    """wrapped: a class of purifiers around `none`."""
    card = Card(
        model="toy",
        classifier="linear",
        architecture="none",
        arguments={},
        labels=("low", "high"),
        input={"channels": channels, "height": 8, "width": 8},
        purifiers={"none": {"kind": "none"}},
        training={},
        weights_sha256="0" * 64,
    )
    plain = build_defense("none", card, linear(channels))
    return replace(plain, purifier=wrapped(plain.purifier)) if wrapped else plain


def images(*above, channels=1):
    """One for each: the upper half is so much above the lower, which takes half as much to bridge."""
    x = torch.full((len(above), channels, 8, 8), 0.5)
    x[:, :, :4] += torch.tensor(above).view(-1, 1, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


class Counting:
    """Keeps how many images each look at the defence had, and which seeds."""

    def __init__(self, inner):
        self.inner, self.info, self.seen, self.seeds = inner, inner.info, [], []

    def purify(self, x, seeds=None, wanted=None):
        self.seen.append(len(x))
        self.seeds.append(seeds)
        return self.inner.purify(x)


@BOTH
def test_what_lies_within_the_budget_is_broken_and_nothing_else(attack):
    x = images(0.05, 0.25, 0.05)
    found = attack(defense(), x, HIGH, budget(attack))
    assert found.right.tolist() == [False, True, False]
    assert (defense().purify(found.image).logits.argmax(1) == HIGH).tolist() == [False, True, False]


@BOTH
def test_what_is_sent_is_an_image_within_the_budget(attack):
    x = images(0.05, 0.5, -0.5) + torch.linspace(-0.05, 0.05, 8)
    sent = attack(defense(), x.clamp(0, 1), HIGH, budget(attack, steps=40)).image
    assert (sent - x.clamp(0, 1)).abs().amax(dim=(1, 2, 3)).tolist() == pytest.approx([0.1, 0.1, 0], abs=0.05)
    assert (sent - x.clamp(0, 1)).abs().max() <= 0.1 + 1e-6
    assert sent.min() >= 0
    assert sent.max() <= 1


def test_square_keeps_a_budget_in_l2_on_colour_images_too():
    x = images(0.01, 0.5, 0.01, channels=3)
    found = square(defense(channels=3), x, HIGH, budget(square, norm="l2", epsilon=1.0, steps=300))
    assert found.right.tolist() == [False, True, False]
    assert (found.image - x).flatten(1).norm(dim=1).max() <= 1 + 1e-5
    assert found.image.max() <= 1


def test_decision_is_for_l_inf_alone():
    with pytest.raises(ValueError, match="RayS searches in l_inf alone; for l2 take mode 'square'"):
        decision(defense(), images(0.05), HIGH[:1], budget(decision, norm="l2"))


def test_square_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack.square", None)
    with pytest.raises(ValueError, match=r"'q' needs pyautoattack: pip install 'unperturb\[attacks\]'"):
        square(defense(), images(0.05), HIGH[:1], budget(square))


@BOTH
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_an_image_that_withstands_costs_its_number_of_queries(attack, steps):
    counting = defense(Counting)
    assert attack(counting, images(0.25, 0.3, 0.4), HIGH, budget(attack, steps=steps)).right.all()
    assert counting.purifier.seen == [3] * steps


@BOTH
def test_an_image_that_is_or_gets_wrong_is_left_alone(attack):
    counting, x = defense(Counting), images(-0.1, 0.05, 0.25)
    found = attack(counting, x, HIGH, budget(attack))
    assert found.right.tolist() == [False, False, True]
    assert torch.equal(found.image[0], x[0])
    assert counting.purifier.seen[:2] == [3, 2]
    assert counting.purifier.seen[-1] == 1
    assert len(counting.purifier.seen) == 100


@BOTH
def test_where_all_images_are_wrong_as_they_come_nothing_is_asked(attack):
    counting = defense(Counting)
    assert not attack(counting, images(-0.1, -0.2, -0.3), HIGH, budget(attack)).right.any()
    assert counting.purifier.seen == [3]


class Fickle(Counting):
    """Says the contrary at one of its looks at images changed by no more than 0.1, counted from 1."""

    near, contrary = 0, 1

    def purify(self, x, seeds=None, wanted=None):
        found, change = super().purify(x), float((x - images(0.25)).abs().max())
        self.near += 0 < change <= 0.1 + 1e-6
        if self.near < self.contrary or change == 0:
            return found
        self.lied = x
        return replace(found, logits=found.logits.flip(1))


@pytest.mark.parametrize(("attack", "contrary"), [(square, 1), (square, 5), (decision, 1)])
def test_a_single_wrong_answer_within_the_budget_breaks(attack, contrary):
    fickle = defense(Fickle)
    fickle.purifier.contrary = contrary
    found = attack(fickle, images(0.25), HIGH[:1], budget(attack))
    assert not found.right.any()
    assert torch.equal(found.image, fickle.purifier.lied)
    assert fickle.purifier.near == contrary


def test_an_image_whose_pixels_are_clipped_counts_by_its_true_distance():
    """Half of it is 0.05 from black, where a radius of 1 leads the first ray, and the rest is black."""
    x = images(0.0)
    x[:, :, :4], x[:, :, 4:] = 0.05, 0
    found = decision(defense(), x, HIGH[:1], budget(decision, steps=2))
    assert not found.right.any()
    assert torch.equal(found.image, torch.zeros_like(x))


def test_a_decision_does_not_depend_on_neighbours():
    x = images(0.05, 0.15, 0.25, -0.1) + 0.1 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 1, 1, 0])
    together = decision(defense(), x, labels, budget(decision, epsilon=0.08))
    alone = [decision(defense(), x[i : i + 1], labels[i : i + 1], budget(decision, epsilon=0.08)) for i in range(4)]
    assert together.right.tolist() == [bool(each.right) for each in alone]
    assert 0 < together.right.sum() < 4
    assert torch.equal(together.image, torch.cat([each.image for each in alone]))


@BOTH
def test_an_attack_repeats_itself_and_leaves_the_global_generator_alone(attack):
    toy, x, before = defense(), images(0.05, 0.15, 0.25), torch.get_rng_state()
    once = attack(toy, x, HIGH, budget(attack)).image
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert torch.equal(attack(toy, x, HIGH, budget(attack)).image, once)


def test_another_seed_or_another_part_of_the_data_has_other_squares():
    x, settings = images(0.25, 0.25, 0.25), budget(square)
    once = square(defense(), x, HIGH, settings).image
    assert not torch.equal(square(defense(), x, HIGH, settings.model_copy(update={"seed": 1})).image, once)
    assert not torch.equal(square(defense(), x, HIGH, settings, first=3).image, once)


class Remembering(Counting):
    """Keeps its answers."""

    def purify(self, x, seeds=None, wanted=None):
        self.last = super().purify(x)
        return self.last


def test_square_does_not_write_into_the_answers():
    remembering = defense(Remembering)
    square(remembering, images(0.25), HIGH[:1], budget(square, steps=5))
    assert remembering.purifier.last.logits.isfinite().all()


class Rounding(Counting):
    """Has no gradient: what it returns knows nothing of what came."""

    def purify(self, x, seeds=None, wanted=None):
        with torch.no_grad():
            return super().purify((x * 64).round() / 64)


@BOTH
def test_a_defence_without_a_gradient_is_broken_all_the_same(attack):
    x = images(0.05, 0.25, 0.05)
    assert not defense(Rounding).purify(x.clone().requires_grad_()).logits.requires_grad
    assert attack(defense(Rounding), x, HIGH, budget(attack)).right.tolist() == [False, True, False]


class Noisy(Counting):
    """Needs seeds."""

    def __init__(self, inner):
        super().__init__(inner)
        self.info = replace(inner.info, random=True)


@BOTH
def test_every_query_of_a_random_defence_has_fresh_seeds_that_belong_to_the_image(attack):
    looks = []
    for first, x in ((4, images(-0.1, 0.25, 0.3)), (5, images(0.25, 0.3))):
        noisy = defense(Noisy)
        attack(noisy, x, HIGH[: len(x)], budget(attack), first)
        looks.append(noisy.purifier.seeds)
    drawn = [seed for seeds in looks[0] for seed in seeds]
    assert len(set(drawn)) == len(drawn) == 3 + 99 * 2
    assert [seeds[-2:] for seeds in looks[0]] == looks[1]


def test_decision_finds_the_nearest_corner_of_a_linear_network():
    """Its best direction after enough queries is the sign of the gradient, and the radius just fools."""
    for above, right in ((0.19, False), (0.21, True)):
        assert decision(defense(), images(above), HIGH[:1], budget(decision)).right.tolist() == [right]
    sent = decision(defense(), images(0.21), HIGH[:1], budget(decision)).image - images(0.21)
    assert torch.allclose(sent[:, :, :4], torch.tensor(-0.1))
    assert torch.allclose(sent[:, :, 4:], torch.tensor(0.1))


def test_few_hundred_queries_break_a_trained_network_where_noise_of_the_same_size_does_not():
    undefended, data = (
        Catalog.open().defense("mnist", "none", "fcn-soap-dr"),
        load_data("mnist", "test", Path("tests/data")),
    )
    x, y = data.floats(0, 16), data.labels[:16]
    noise = torch.randn((50, *x.shape), generator=torch.Generator().manual_seed(0)).sign()
    noisy = [undefended.purify((x + 0.3 * each).clamp(0, 1)).logits.argmax(1) == y for each in noise]
    assert torch.stack(noisy).all(0).sum() >= 12
    for attack in (square, decision):
        found = attack(undefended, x, y, budget(attack, epsilon=0.3, steps=300))
        assert found.right.sum() <= 6
        assert torch.equal(undefended.purify(found.image).logits.argmax(1) == y, found.right)
