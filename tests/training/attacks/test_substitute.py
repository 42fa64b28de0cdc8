from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.catalog import Catalog
from models.classifiers import Classifier
from training.attacks.settings import AttackSettings
from training.attacks.substitute import (
    SubstituteSettings,
    augmented,
    substitute_attack,
    substituted,
    train_substitute,
    transferred,
)
from training.data import load_data

FGSM = AttackSettings(name="fgsm", mode="substitute", attack="fcn", epsilon=0.3, step_size=0.3, steps=1)
FCN = {"architecture": "fcn", "arguments": {"num_classes": 2, "dropout": 0.0}}
QUICK = SubstituteSettings(**FCN, queries=16, augmentations=2, epochs=20)


def noise(count, seed=0):
    """Four times four fields of random grey."""
    fields = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return fields.repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)


def upper_half_is_brighter(x):
    return (x[..., :14, :].mean(dim=(1, 2, 3)) > x[..., 14:, :].mean(dim=(1, 2, 3))).long()


class Target:
    """Answers which half is brighter, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x):
        self.asked.append(x)
        return upper_half_is_brighter(x)


def linear(weight):
    """Logits (0, weight times the sum of all pixels)."""
    head = nn.Linear(784, 2, bias=False)
    head.weight.data = torch.stack([torch.zeros(784), torch.full((784,), weight)])
    return Classifier(nn.Flatten(), head, mean=[0.0], std=[1.0]).eval()


def test_a_substitute_learns_to_agree_with_its_target_on_images_that_it_never_saw():
    found = train_substitute(upper_half_is_brighter, noise(128), QUICK.model_copy(update={"queries": 128}))
    unseen = noise(400, seed=1)
    agrees = found.classifier(unseen).argmax(1) == upper_half_is_brighter(unseen)
    assert agrees.float().mean() > 0.75


def test_each_round_asks_once_for_each_new_image_and_they_are_counted():
    target = Target()
    found = train_substitute(target, noise(16), QUICK)
    assert [len(x) for x in target.asked] == [16, 16, 32]
    assert found.queries == QUICK.asked == sum(len(x) for x in target.asked) == 64


def test_new_images_lie_one_step_from_those_before_and_in_the_image_range():
    target = Target()
    train_substitute(target, noise(16), QUICK)
    start, first, second = target.asked
    for before, new in ((start, first), (torch.cat([start, first]), second)):
        assert float((new - before).abs().max()) == pytest.approx(abs(QUICK.step))
        assert 0 <= float(new.min()) <= float(new.max()) <= 1


@pytest.mark.parametrize(("step", "weight", "expected"), [(0.1, 1.0, 0.6), (-0.1, 1.0, 0.4), (0.1, -1.0, 0.4)])
def test_augmentation_follows_the_derivative_of_the_labels_output(step, weight, expected):
    x, settings = torch.full((3, 1, 28, 28), 0.5), QUICK.model_copy(update={"step": step})
    found = augmented(linear(weight), x, torch.tensor([1, 1, 0]), settings)
    assert torch.allclose(found, torch.tensor([expected, expected, 0.5]).view(3, 1, 1, 1).expand_as(x))


def test_the_global_random_numbers_are_left_alone():
    before = torch.random.get_rng_state()
    train_substitute(upper_half_is_brighter, noise(16), QUICK)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_seed_decides_the_weights():
    def weights(seed, drawn):
        torch.rand(drawn)
        settings = QUICK.model_copy(update={"seed": seed, "epochs": 2})
        found = train_substitute(upper_half_is_brighter, noise(16), settings)
        return torch.cat([each.flatten() for each in found.classifier.state_dict().values()])

    assert torch.equal(weights(0, drawn=0), weights(0, drawn=1))
    assert not torch.equal(weights(0, drawn=0), weights(1, drawn=0))


def test_a_substitute_is_frozen():
    network = train_substitute(upper_half_is_brighter, noise(16), QUICK.model_copy(update={"epochs": 1})).classifier
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_batch_norm_never_sees_a_batch_of_one():
    """129 images in batches of up to 128: no rest of one."""
    settings = SubstituteSettings(architecture="cnn", queries=129, augmentations=0, epochs=1)
    assert train_substitute(upper_half_is_brighter, noise(129), settings).queries == 129


def test_an_unknown_architecture_is_told_before_anything_is_asked():
    target = Target()
    with pytest.raises(ValueError, match="unknown architecture 'magic'; known: cnn, fcn"):
        train_substitute(target, noise(16), QUICK.model_copy(update={"architecture": "magic"}))
    assert not target.asked


def test_another_number_of_images_than_the_settings_say_is_refused():
    with pytest.raises(ValueError, match="starts from 16 images as `queries` says; got 15"):
        train_substitute(upper_half_is_brighter, noise(15), QUICK)


@pytest.fixture(scope="module")
def undefended():
    return Catalog.open().defense("mnist", "none", "fcn-soap-dr")


@pytest.fixture(scope="module")
def digits():
    data = load_data("mnist", "test", Path("tests/data"))
    return data.floats(), data.labels


SMALL = SubstituteSettings(architecture="fcn", arguments={"dropout": 0.0}, queries=150, augmentations=4, epochs=10)


def test_images_of_a_substitute_break_an_undefended_network(undefended, digits):
    x, y = digits
    found = substitute_attack(undefended, x[150:], y[150:], FGSM, 150, x[:150], SMALL)
    assert (undefended.purify(x[150:]).logits.argmax(1) == y[150:]).float().mean() > 0.95
    assert found.right.float().mean() < 0.85
    assert (found.image - x[150:]).abs().max() <= 0.3 + 1e-6
    assert 0 <= float(found.image.min()) <= float(found.image.max()) <= 1
    assert torch.equal(found.right, undefended.purify(found.image).logits.argmax(1) == y[150:])


class Noisy:
    """Draws random numbers, and keeps the seeds of each look."""

    def __init__(self, inner):
        self.inner, self.info, self.seen = inner, replace(inner.info, random=True), []

    def purify(self, x, seeds=None, wanted=None):
        self.seen.append(list(seeds))
        return self.inner.purify(x)


def test_every_question_to_a_random_defense_has_seeds_of_its_own(undefended, digits):
    x, y = digits
    noisy = replace(undefended, purifier=Noisy(undefended.purifier))
    settings = SMALL.model_copy(update={"queries": 8, "augmentations": 1, "epochs": 1})
    substitute_attack(noisy, x[:4], y[:4], FGSM, 0, x[8:16], settings)
    seeds = [seed for look in noisy.purifier.seen for seed in look]
    assert len(set(seeds)) == len(seeds) == 8 + 8 + 4


def test_a_substitute_serves_many_images_in_parts(undefended, digits):
    x, y = digits
    substitute = substituted(undefended, FGSM, x[:8], SMALL.model_copy(update={"queries": 8, "augmentations": 1}))
    together = transferred(undefended, substitute, x[100:140], y[100:140], FGSM, 100)
    alone = transferred(undefended, substitute, x[139:140], y[139:140], FGSM, 139)
    assert torch.equal(together.image[39:], alone.image)
    assert together.right[39] == alone.right[0]
