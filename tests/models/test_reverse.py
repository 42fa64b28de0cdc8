"""Reverse: Eq. (4) and Alg. 1 on toy networks, and what is random in it."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.augment import DRAWS, Views
from models.classifiers import Classifier
from models.networks import build_network, frozen_network
from models.networks.reverse import ContrastiveHead, contrastive_loss
from models.purifiers import Material, Purifier, build_purifier
from models.purifiers.reverse import Contrast

FAST = {"budgets": [0.1], "step_size": 0.02, "steps": 3}


def seeded_head(seed: int = 3, **arguments: int) -> ContrastiveHead:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = build_network("reverse", **{"features": 64, "negatives": 20, **arguments})
        assert isinstance(head, ContrastiveHead)
        head.bank.uniform_()
    return frozen_network(head)


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def classifier(network) -> Classifier:
    made: Classifier = network("resnet18-thin").requires_grad_(False)
    return made


@pytest.fixture
def purifier(classifier):
    def build(**settings: object) -> Purifier:
        return build_purifier("reverse", Material(classifier, {**FAST, **settings}, (), seeded_head()))

    return build


def test_contrastive_loss_by_hand() -> None:
    # Two views at a right angle, one negative: exp(0) over exp(0) + exp(1) for one view, over exp(0) + exp(0) for the other.
    own = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    others = torch.tensor([[[1.0], [0.0]]])
    expected = (math.log(1 + math.e) + math.log(2)) / 2
    assert contrastive_loss(own, others, 1.0).item() == pytest.approx(expected)
    # A temperature of 1/2 doubles the cosines.
    expected = (math.log(1 + math.e**2) + math.log(2)) / 2
    assert contrastive_loss(own, others, 0.5).item() == pytest.approx(expected)


def test_every_positive_pair_counts() -> None:
    # Three equal views, two negatives at right angles: each of the pairs is e / (2 e + 2).
    own, others = torch.ones(1, 3, 3), torch.zeros(1, 3, 2)
    assert contrastive_loss(own, others, 1.0).item() == pytest.approx(math.log(2 + 2 / math.e))


def test_contrastive_features_have_length_one() -> None:
    z = seeded_head()(torch.rand(5, 2, 64, generator=torch.Generator().manual_seed(3)))
    assert z.shape == (5, 2, 8)
    assert torch.allclose(z.norm(dim=2), torch.ones(5, 2))


def test_the_loss_is_that_of_single_views(classifier) -> None:
    head, x = seeded_head(), images(2)
    uniform = torch.rand(6, DRAWS, generator=torch.Generator().manual_seed(4))
    found = Contrast(classifier, head, 3, 0.2).loss(x, uniform)
    negatives = nn.functional.normalize(head.layers(head.bank), dim=1)
    for i in range(2):
        rows = range(3 * i, 3 * i + 3)
        views = [Views.drawn(uniform[row : row + 1]).of(x[i : i + 1]) for row in rows]
        z = [nn.functional.normalize(head.layers(classifier.features(view)), dim=1)[0] for view in views]
        terms = []
        for one in range(3):
            others = [other for other in range(3) if other != one]
            among = sum(math.exp(z[one] @ z[k] / 0.2) for k in others) + (negatives @ z[one] / 0.2).exp().sum().item()
            terms += [-math.log(math.exp(z[one] @ z[j] / 0.2) / among) for j in others]
        assert found[i].item() == pytest.approx(sum(terms) / 6, rel=1e-4)


def test_the_objective_falls(purifier) -> None:
    # At a low temperature, since the features of an untrained network are all alike.
    found = purifier(steps=12, budgets=[0.2], views=8, temperature=0.01).purify(images(), seeds=range(3))
    assert (found.objective_after < found.objective_before - 0.01).all()


def test_views_are_drawn_anew_in_each_step(classifier) -> None:
    objective, x = Contrast(classifier, seeded_head(), 4, 0.2), images(1)
    losses = [objective.drawn(t, [5])(x).loss.item() for t in (0, 1, 1)]
    assert losses[0] != losses[1]
    assert losses[1] == losses[2]


def test_the_first_steps_are_the_same_however_many_there_are(purifier) -> None:
    # With a budget that nothing reaches, the second step moves each pixel once more by the step size.
    one = purifier(steps=1, budgets=[1.0]).purify(images(), seeds=range(3)).image
    two = purifier(steps=2, budgets=[1.0]).purify(images(), seeds=range(3)).image
    moved = (two - one).abs()
    assert ((moved - 0.02).abs() < 1e-6).float().mean() > 0.9


def test_a_negative_that_looks_like_the_image_costs(classifier) -> None:
    head, x = seeded_head(), images(1)
    far = Contrast(classifier, head, 2, 0.2).drawn(0, [1])(x).loss
    head.bank[0] = classifier.features(x)[0]
    assert Contrast(classifier, head, 2, 0.2).drawn(0, [1])(x).loss > far


def test_the_objective_of_an_incoming_image_is_that_of_its_seed(purifier) -> None:
    made = purifier()
    found = made.purify(images(), seeds=[4, 5, 6])
    assert torch.allclose(made.objective(images(), [4, 5, 6]), found.objective_before, atol=1e-5)
    assert not torch.allclose(made.objective(images(), [5, 6, 7]), found.objective_before, atol=1e-5)
    assert made.info.random


def test_the_logits_of_views_are_those_of_the_views_that_the_objective_compares(purifier, classifier) -> None:
    made, x, seen = purifier(), images().requires_grad_(), []
    hook = classifier.normalization.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    made.objective(x.detach(), [4, 5, 6])
    hook.remove()
    logits = made.view_logits(x, [4, 5, 6])
    assert logits.shape == (4, 3, 10)
    for i in range(3):
        assert torch.allclose(logits[:, i], classifier(seen[0][4 * i : 4 * i + 4]), atol=1e-5)
    gradient = torch.autograd.grad(logits[:, 1].square().sum(), x)[0]
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).tolist() == [False, True, False]


def test_views_are_those_of_each_images_seed(purifier) -> None:
    made, x = purifier(), images(1).expand(3, -1, -1, -1)
    one, other, same = made.view_logits(x, [4, 5, 4]).unbind(1)
    assert torch.allclose(one, same, atol=1e-5)
    assert not torch.allclose(one, other, atol=1e-3)
    assert not torch.allclose(one[0], one[1], atol=1e-3)


def test_seeds_are_asked_for(purifier) -> None:
    for ask in (purifier().purify, purifier().view_logits):
        with pytest.raises(ValueError, match="needs a seed for each of 3 images; got none"):
            ask(images())


def test_a_missing_head_is_named(classifier) -> None:
    with pytest.raises(ValueError, match="needs a network of its own of type ContrastiveHead; its checkpoint has none"):
        build_purifier("reverse", Material(classifier, FAST, ()))


def test_the_head_is_left_alone(classifier) -> None:
    head = seeded_head()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    build_purifier("reverse", Material(classifier, FAST, (), head)).purify(images(), seeds=range(3))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert all(parameter.grad is None for parameter in head.parameters())


def test_the_papers_passes_are_counted(purifier) -> None:
    # Four views of the incoming image, of 40 iterates before a step and of the last one; one classification.
    info = purifier(steps=40, random_start=0.1).info
    assert (info.forward_passes, info.backward_passes) == (4 * 42 + 1, 4 * 40)
