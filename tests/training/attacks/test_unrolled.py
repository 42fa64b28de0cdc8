import math
import weakref
from dataclasses import replace

import pytest
import torch

from models.classifiers import build_classifier, frozen
from models.purifiers import Material, build_purifier
from models.purifiers.descending import DescentPurifier, Description
from models.purifiers.descent import DescentSettings, Evaluation
from tests.training.test_checks import X, Y, defense
from training.attacks import AttackSettings, knowing
from training.attacks.unrolled import path


class Towards:
    """Descends the distance of each pixel from a target."""

    views = gradient_views = 1
    logit_views = 0
    batch_invariant = True

    def __init__(self, target=0.5, logits=None):
        self.target, self.logits = target, logits or (lambda x: x.flatten(1)[:, :2])

    def __call__(self, x):
        return Evaluation((x - self.target).square().flatten(1).sum(1), lambda: self.logits(x))


def purifier(objective=None, skip_below=None, **settings):
    fields = {"selection": "fixed", "budgets": [0.3], "step_size": 0.05, "steps": 3} | settings
    made = DescentPurifier(Description("toy", "", ""), objective or Towards(), DescentSettings(**fields), ())
    made.skip_below = skip_below
    return made


def image(*values):
    return torch.tensor(values).view(len(values), 1, 1, 1).repeat(1, 1, 1, 2).requires_grad_()


@pytest.mark.parametrize("selection", ["fixed", "best-iterate"])
def test_its_value_is_what_the_purifier_gives(selection):
    x = image(0.1, 0.47, 0.9)
    made = purifier(selection=selection)
    assert torch.allclose(path(made, x).chosen, made.purify(x.detach()).image, atol=1e-6)
    network = frozen(build_classifier("resnet18-thin"))
    settings = {"selection": selection, "budgets": [8 / 255], "step_size": 4 / 255, "steps": 2}
    made, x = build_purifier("soap-lc", Material(network, settings, ())), torch.rand(4, 3, 32, 32).requires_grad_()
    apart = (path(made, x).chosen - made.purify(x.detach()).image).abs()
    assert float((apart < 1e-6).float().mean()) > 0.99  # a sign may flip where a gradient is about 0


def test_the_gradient_goes_through_the_step_by_hand():
    x = image(0.2)
    (gradient,) = torch.autograd.grad(path(purifier(steps=1), x).chosen.sum(), x)
    slope = 2 * (1 - math.tanh(1) ** 2) / abs(2 * (0.2 - 0.5))  # of tanh(g / |g|) with g = 2 (x - 0.5)
    assert gradient.flatten().tolist() == pytest.approx([1 - 0.05 * slope] * 2, rel=1e-4)


@pytest.mark.parametrize("past_clips", [False, True])
def test_past_clips_the_gradient_is_that_without_them(past_clips):
    # The budget of 0.03 binds after a step of 0.05, and pixels at 0.99 move to 1.
    made, x = purifier(Towards(2.0), budgets=[0.03], steps=1), image(0.2, 0.99)
    found = path(made, x, past_clips=past_clips).chosen
    assert torch.allclose(found, made.purify(x.detach()).image)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    if not past_clips:
        assert gradient.flatten().tolist() == [1, 1, 0, 0]
        return
    slopes = [2 * (1 - math.tanh(1) ** 2) / abs(2 * (value - 2)) for value in (0.2, 0.99)]
    assert gradient[:, 0, 0, 0].tolist() == pytest.approx([1 - 0.05 * slope for slope in slopes], rel=1e-4)


def test_the_graph_of_a_step_doesnt_outlive_it():
    kept = weakref.WeakSet()

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    class Deep(Towards):
        def __call__(self, x):
            for _ in range(20):
                x = x.sin()
            return super().__call__(x)

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        found = path(purifier(Deep(), steps=4), image(0.2)).chosen
    assert found.requires_grad
    assert len(kept) < 20  # an image and an iterate for each step


def test_what_is_left_alone_keeps_its_own_gradient():
    x = image(0.2, 0.49)
    found = path(purifier(skip_below=0.01), x).chosen
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(found[1], x[1])
    assert torch.equal(gradient[1], torch.ones_like(gradient[1]))
    assert not torch.equal(gradient[0], torch.ones_like(gradient[0]))


def test_a_random_start_is_that_of_the_seed():
    made, x = purifier(random_start=0.1, step_size=0.01), image(0.2, 0.8)
    assert torch.allclose(path(made, x, [3, 4]).chosen, made.purify(x.detach(), [3, 4]).image, atol=1e-6)
    assert not torch.allclose(path(made, x, [3, 5]).chosen[1], path(made, x, [3, 4]).chosen[1])
    with pytest.raises(ValueError, match="draws random numbers"):
        path(made, x)


def test_an_attack_through_the_steps_fools_what_steps_protect():
    """The purifier undoes a tenth; an attacker who sees that goes as far as he may."""
    plain = defense()
    made = purifier(Towards(0.9, plain.logits), budgets=[0.1], step_size=0.1, steps=1)
    protected = replace(plain, name="toy", purifier=made)
    settings = AttackSettings(name="u", mode="unrolled", epsilon=0.3, step_size=0.05, steps=10)
    found = knowing(protected, X, Y, settings)
    assert float(found.right[Y == 1].float().mean()) <= float(
        knowing(protected, X, Y, settings.model_copy(update={"mode": "bpda"})).right[Y == 1].float().mean()
    )
    assert not found.right[(Y == 1) & (X.flatten(1).mean(1) < 0.6)].any()
    assert (found.image - X).abs().max() <= 0.3 + 1e-6
    with pytest.raises(ValueError, match="makes no steps to unroll"):
        knowing(plain, X, Y, settings)
