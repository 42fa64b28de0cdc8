"""Contrastive training of the head: the batch's negatives, the bank, and a tiny run."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.classifiers import build_classifier, frozen
from models.networks import build_network
from models.networks.reverse import contrastive_loss
from training.addons import Setting, trainer
from training.augment import Cropper
from training.data import load_data
from training.loop import Loop
from training.recipe import AddOnRecipe, load_recipe
from training.reverse import ContrastiveTrainer, batch_cosines, matched


@pytest.fixture
def setting(data):
    """The shipped recipe on 256 images beside a small untrained classifier; keyword arguments replace fields of it."""

    def make(**changes: object) -> Setting:
        arguments = {"features": 64, "negatives": 96}
        fields = {"batch_size": 64, "precision": "fp32", "arguments": arguments, **changes}
        recipe = load_recipe("reverse-resnet18", fields)
        assert isinstance(recipe, AddOnRecipe)
        torch.manual_seed(recipe.seed)
        classifier = frozen(build_classifier("resnet18-thin"))
        network = build_network(recipe.network, **recipe.arguments)
        images = load_data(recipe.data, "train", data)
        return Setting(recipe, classifier, network, images, Cropper(images.images, 0, False), torch.device("cpu"))

    return make


def run(made: Setting, out: Path, quiet, epochs: int) -> tuple[ContrastiveTrainer, list[float]]:
    """A whole training, and the loss of each epoch."""
    out.mkdir()
    learner = trainer(made)
    sizes = {"images": len(made.images), "batch_size": made.recipe.batch_size}
    Loop(learner, out=out, identity="", epochs=epochs, seed=made.recipe.seed, **sizes).run("reverse", quiet)
    log = (out / "log.jsonl").read_text().splitlines()
    return learner, [json.loads(line)["loss"] for line in log]


def unit(*rows: list[float]) -> Tensor:
    return nn.functional.normalize(torch.tensor(rows), dim=1)


def test_the_other_images_of_the_batch_are_the_negatives() -> None:
    z = torch.stack([unit([1.0, 0.0], [1.0, 0.0]), unit([0.0, 1.0], [1.0, 0.0])])  # 2 images, 2 views
    own, others = batch_cosines(z)
    assert own.tolist() == [[[1, 1], [1, 1]], [[1, 0], [0, 1]]]
    ruled_out = -math.inf
    assert others[0].tolist() == [[ruled_out, ruled_out, 0, 1]] * 2
    assert others[1].tolist() == [[0, 0, ruled_out, ruled_out], [1, 1, ruled_out, ruled_out]]
    # Image 0's views see their positive at e, and negatives at 1 and e.
    expected = math.log(math.e + 1 + math.e) - 1
    assert contrastive_loss(own, others, 1.0)[0].item() == pytest.approx(expected)
    assert matched(own, others).item() == 0  # image 0's positive is as near as a negative, image 1's further away


def test_a_short_training_lowers_the_loss(setting, tmp_path, quiet) -> None:
    _, losses = run(setting(), tmp_path / "run", quiet, epochs=4)
    assert losses[-1] < losses[0] - 0.2


def test_training_is_decided_by_its_seed(setting, tmp_path, quiet) -> None:
    states = [
        run(setting(seed=seed), tmp_path / name, quiet, epochs=1)[0].exported.state_dict()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["bank"], states[2]["bank"])


def test_the_bank_holds_the_classifiers_features_of_training_images(setting) -> None:
    made = setting()
    bank = trainer(made).exported.bank
    # A view of a training image has features as they have: none is zero, no two rows are equal.
    features = made.classifier.features(made.images.floats())
    assert bank.shape == (96, 64)
    assert (bank.mean() / features.mean()).item() == pytest.approx(1, abs=0.3)
    assert len(bank.unique(dim=0)) == 96


def test_only_the_head_learns(setting, tmp_path, quiet) -> None:
    made = setting()
    before = {name: value.clone() for name, value in made.classifier.state_dict().items()}
    learner, _ = run(made, tmp_path / "run", quiet, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in made.classifier.state_dict().items())
    assert all(parameter.grad is not None for parameter in learner.head.parameters())


def test_a_network_for_other_features_is_refused(setting) -> None:
    with pytest.raises(ValueError, match="the classifier has 64 features, the network takes 32"):
        trainer(setting(arguments={"features": 32}))


def test_an_unknown_setting_is_named(setting) -> None:
    with pytest.raises(ValueError, match="temprature"):
        trainer(setting(settings={"temprature": 0.2}))
