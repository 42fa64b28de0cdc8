"""What others' attack libraries warn of comes back, and they leave nothing behind."""

import logging
import random
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.purifiers import Purified
from tests.training.attacks.test_attacks import defense as toy
from training.attacks import AttackSettings, applies, knowing
from training.attacks.library import PARTS, autoattack, foolbox_attack

X = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(1))


def settings(attack="apgd-ce", **fields):
    start = {"name": "a", "mode": "autoattack", "attack": attack, "epsilon": 0.01}
    return AttackSettings.model_validate(start | fields)


def linear(classes=4):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, classes, bias=False)).requires_grad_(False)
    weight = torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 3.0]])
    network[1].weight.copy_(weight[:classes])
    return network.eval()


def noisy(x):
    return linear()(x) + 0.5 * torch.randn(len(x), 4)


def dynamic(x):
    """Takes a gradient of its own at each look, as a purifier that descends does."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        (step,) = torch.autograd.grad(leaf.square().sum(), leaf)
    return linear()(x - 0.01 * step)


def flags(logits, attack="apgd-ce"):
    labels = linear()(X).argmax(1)
    return autoattack(logits, X, labels, settings(attack))[1]


def test_an_honest_network_raises_no_flag():
    assert flags(linear()) == ()


@pytest.mark.parametrize(
    ("logits", "attack", "words"),
    [
        (noisy, "apgd-ce", "randomized defense"),
        (lambda x: linear()(x).softmax(1), "apgd-ce", "probability distribution"),
        (lambda x: linear()((20 * x).round() / 20), "apgd-dlr", "4 points with zero gradient"),
        (dynamic, "apgd-ce", "dynamic defense"),
    ],
    ids=["noisy", "probabilities", "zero-gradient", "dynamic"],
)
def test_what_autoattack_warns_of_comes_back(logits, attack, words):
    (flag,) = flags(logits, attack)
    assert words in flag


def test_square_beating_gradients_is_flagged():
    def masked(x):  # its gradient is 0, and no random start bridges a half in the mean of four pixels
        return F.avg_pool2d(x.detach(), 2).flatten(1) + 0 * x.sum()

    x = F.interpolate(0.25 + 0.5 * torch.eye(4).view(4, 1, 2, 2), scale_factor=2)
    _, found = autoattack(masked, x, torch.arange(4), settings("standard", epsilon=0.3, steps=300))
    assert any("Square Attack has decreased" in flag for flag in found)


def test_a_flag_is_not_raised_again_by_the_next_network():
    assert flags(dynamic)
    assert flags(linear()) == ()


def test_flags_are_heard_at_any_level_of_logging_and_the_logger_is_put_back(caplog):
    logger = logging.getLogger("auto-attack")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with caplog.at_level(logging.CRITICAL, logger="auto-attack"):
        assert flags(dynamic)
        assert logger.level == logging.CRITICAL
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert not caplog.records


def test_global_random_numbers_and_a_debuggers_trace_stay_as_they_are():
    network = linear()
    torch.manual_seed(7)
    before, python, calls = torch.get_rng_state(), random.getstate(), []

    def trace(frame, event, argument):
        calls.append(event)

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        autoattack(network, X, network(X).argmax(1), settings("apgd-t"))
        assert sys.gettrace() is trace
    finally:
        sys.settrace(outer)
    pgd = settings("LinfPGD", mode="foolbox", arguments={"steps": 2})  # draws a start
    foolbox_attack(network, X, torch.zeros(4, dtype=torch.long), pgd)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_what_a_library_draws_follows_from_the_attacks_seed():
    labels = linear()(X).argmax(1)

    def foolbox(seed):
        pgd = settings("LinfPGD", mode="foolbox", seed=seed, epsilon=0.3, arguments={"steps": 1, "rel_stepsize": 0.01})
        return foolbox_attack(linear(), X, labels, pgd)

    found = [foolbox(seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_an_unknown_part_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="AutoAttack has no 'apgd'; it has standard, " + ", ".join(PARTS)):
        flags(linear(), "apgd")


def test_too_few_classes_are_counted_before_the_library_fails():
    with pytest.raises(ValueError, match="apgd-t compares 4 classes; the classifier has 3"):
        autoattack(linear(3), X, torch.zeros(4, dtype=torch.long), settings("standard"))


@pytest.mark.parametrize(
    ("library", "how"),
    [
        ("pyautoattack", lambda: flags(linear())),
        ("foolbox", lambda: foolbox_attack(linear(), X, X[:, 0, 0, 0], settings("LinfPGD", mode="foolbox"))),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_the_command(monkeypatch, library, how):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=r"pip install 'unperturb\[attacks\]'"):
        how()


def test_arguments_that_an_attack_of_foolbox_has_not_are_told():
    pgd = settings("LinfPGD", mode="foolbox", arguments={"stepz": 3})
    with pytest.raises(ValueError, match=r"attack 'a': .*stepz"):
        foolbox_attack(linear(), X, torch.zeros(4, dtype=torch.long), pgd)


class Levels:
    """Rounds to a few levels and flips the image: without a gradient of its own, wrong as the identity too."""

    def __init__(self, inner, through):
        self.inner, self.info = inner, replace(inner.info, kind="levels")
        if through:
            self.restored = lambda x: 1 - x

    def purify(self, x, seeds=None, wanted=None):
        image = ((1 - x) * 50).round() / 50
        return Purified(**{**self.inner.purify(image).__dict__, "image": image})

    def logits(self, x):
        return self.inner.logits(x)


@pytest.mark.parametrize("through", [True, False])
def test_on_the_whole_defence_it_attacks_past_the_purifier(through):
    plain = toy()
    levels = replace(plain, name="levels", purifier=Levels(plain.purifier, through))
    x, labels = torch.full((3, 1, 2, 2), 0.42), torch.ones(3, dtype=torch.long)
    found = knowing(levels, x, labels, settings("apgd-ce", epsilon=0.1, whole=True))
    assert levels.purify(x).logits.argmax(1).tolist() == [1, 1, 1]
    # Its own gradient leads there; as the identity it leads the other way.
    assert found.right.tolist() == [not through] * 3
    assert torch.equal(found.right, levels.purify(found.image).logits.argmax(1) == labels)


def test_on_a_bare_classifier_the_whole_defence_is_nothing_new():
    assert not applies(toy(), settings(whole=True))
    assert applies(replace(toy(), purifier=Levels(toy().purifier, True)), settings(whole=True))
