"""AVmixup training of AID's discriminator, Alg. 1."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from models.classifiers import build_classifier, frozen
from models.networks import build_network
from training.addons import Setting, trainer
from training.aid import AidSettings, mixup
from training.augment import Cropper
from training.data import load_data
from training.recipe import load_recipe
from training.robust import vertex


@pytest.fixture
def setting(data):
    """The shipped recipe on the shipped images, beside an untrained classifier; fp32 and a short attack."""

    def make(**settings) -> Setting:
        images = load_data("cifar10", "train", data)
        changed = {"precision": "fp32", "settings": {"steps": 2, **settings}}
        recipe = load_recipe("aid-resnet18", changed)
        classifier = frozen(build_classifier("resnet18-thin"))
        network = build_network("aid", **recipe.arguments).train()
        return Setting(recipe, classifier, network, images, Cropper(images.images, 4, True), torch.device("cpu"))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield make


def trained(setting, epochs=1):
    """The trainer and its values, step by step."""
    torch.manual_seed(1)
    learner = trainer(setting)
    steps = [learner.step(part, 0.0) for _ in range(epochs) for part in torch.randperm(256).split(32)]
    return learner, steps


def test_the_vertex_and_what_lies_before_it_by_hand(monkeypatch):
    # gamma = 1.5: a perturbation of 0.2 becomes 0.3, and one that leads out of [0, 1] stops there.
    x, x_adv = torch.tensor([0.4, 0.9]).view(1, 1, 1, 2), torch.tensor([0.6, 1.0]).view(1, 1, 1, 2)
    x_av = vertex(x, x_adv, 1.5)
    assert x_av.flatten().tolist() == pytest.approx([0.7, 1.0])
    monkeypatch.setattr(torch, "rand", lambda n: torch.full((n,), 0.25))
    mixed, targets = mixup(x, x_av)
    # u = 1/4: a quarter of the image, three quarters of the vertex; t = 1/4 * 0 + 3/4 * 1.
    assert mixed.flatten().tolist() == pytest.approx([0.25 * 0.4 + 0.75 * 0.7, 0.25 * 0.9 + 0.75])
    assert targets.tolist() == [0.75]


def test_every_image_is_mixed_by_its_own_share():
    x, x_av = torch.zeros(5, 1, 2, 2), torch.ones(5, 1, 2, 2)
    mixed, targets = mixup(x, x_av)
    assert torch.equal(mixed[:, 0, 0, 0], targets)
    assert len(set(targets.tolist())) == 5


def test_the_loss_falls(setting):
    _, steps = trained(setting(), epochs=4)
    early, late = (sum(float(step["loss"]) for step in part) for part in (steps[:8], steps[-8:]))
    assert late < early


def test_a_training_is_identical_from_its_seed_and_the_classifier_stays(setting):
    first, second = setting(), setting()
    second.classifier.load_state_dict(first.classifier.state_dict())
    second.network.load_state_dict(first.network.state_dict())
    before = {name: value.clone() for name, value in first.classifier.state_dict().items()}
    one, other = trained(first)[0].exported.state_dict(), trained(second)[0].exported.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(value, before[name]) for name, value in first.classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in first.classifier.parameters())


def test_a_step_costs_the_attack_and_one_shallow_forward(setting):
    made, passes = setting(steps=3), {}
    children = list(made.classifier.encoder.children())
    blocks = [layer for layer in children if type(layer).__name__ == "Block"]
    for name, layer in {"first": children[0], "block4": blocks[3], "block5": blocks[4]}.items():

        def count(_module: nn.Module, _inputs, _output, name=name) -> None:
            passes[name] = passes.get(name, 0) + 1

        layer.register_forward_hook(count)
    trainer(made).step(torch.arange(8), 0.0)
    assert passes == {"first": 4, "block4": 4, "block5": 3}


def test_a_wrong_setting_is_named(setting):
    with pytest.raises(ValidationError, match="gama"):
        trainer(setting(gama=2))


def test_the_defaults_are_the_papers_but_for_the_length_of_the_attack():
    assert AidSettings(steps=40) == AidSettings.model_validate(load_recipe("aid-resnet18-paper").settings)


def test_a_classifier_without_the_tap_is_refused(setting):
    made = setting()
    made.network.taps = ("stem", "block9")
    with pytest.raises(ValueError, match="looks at tap block9; this classifier has stem, block1"):
        trainer(made)
