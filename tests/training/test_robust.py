import pytest
import torch
from torch import nn

from models.classifiers import Classifier
from training.augment import Cropper
from training.data import ImageData, load_data
from training.recipe import RecipeError, Task, load_recipe
from training.robust import adversarial, robust_accuracy
from training.tasks import TASKS

LABELS = torch.tensor([0, 1])
GREY = torch.full((2, 2, 2, 1), 51, dtype=torch.uint8)  # 0.2 everywhere


class Recorder(nn.Module):
    """A linear network on one-channel 2x2 images that remembers what it was given, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(4, 10)
        self.seen: list[torch.Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        self.modes.append(self.training)
        return self.linear(x.flatten(1))


def recorded():
    recorder = Recorder()
    return recorder, Classifier(recorder, nn.Identity(), mean=[0.0], std=[1.0]).train()


def crop(images=GREY):
    return Cropper(images, 0, flip=False)


def test_every_task_of_a_recipe_has_a_loss():
    assert set(TASKS) == set(Task.__args__)


def test_one_step_goes_past_the_random_start_and_stays_in_the_budget(tiny):
    recorder, network = recorded()
    torch.manual_seed(0)
    adversarial(network, tiny("fgsm-at"), crop(), torch.arange(2), LABELS)
    start, end = recorder.seen
    assert 0 < (start - 0.2).abs().max() <= 8 / 255 + 1e-7
    # From anywhere in the ball, a step of 10/255 ends on or beyond 2/255 on the gradient's side.
    logits = recorder.linear(start.flatten(1).requires_grad_())
    side = torch.sign(recorder.linear.weight.T @ (logits.softmax(1) - nn.functional.one_hot(LABELS, 10)).T).T
    assert ((end - 0.2).flatten(1) * side >= 2 / 255 - 1e-6).all()
    assert (end - 0.2).abs().max() <= 8 / 255 + 1e-7


@pytest.mark.parametrize("value", [0, 255])
def test_adversarial_images_are_images(tiny, value):
    recorder, network = recorded()
    adversarial(network, tiny("fgsm-at"), crop(torch.full_like(GREY, value)), torch.arange(2), LABELS)
    for x in recorder.seen:
        assert x.min() >= 0
        assert x.max() <= 1


def test_the_one_step_attack_sees_the_training_mode(tiny):
    recorder, network = recorded()
    adversarial(network, tiny("fgsm-at"), crop(), torch.arange(2), LABELS)
    assert recorder.modes == [True, True]


def test_in_half_precision_every_weight_gets_a_gradient(tiny):
    recorder, network = recorded()
    with torch.autocast("cpu", torch.bfloat16):
        losses = adversarial(network, tiny("fgsm-at"), crop(), torch.arange(2), LABELS)
    losses.total.backward()
    assert recorder.linear.weight.grad.abs().sum() > 0


class Mean(nn.Module):
    """Class 1 where the image is bright, else class 0; unsure by how far the mean is from a half."""

    def forward(self, x):
        bright = x.flatten(1).mean(1) - 0.5
        return torch.stack([-bright, bright], 1)


def test_robust_accuracy_counts_what_withstands_the_attack(tiny):
    network = Classifier(Mean(), nn.Identity(), mean=[0.0], std=[1.0]).train()
    bright = torch.tensor(
        [100, 120, 126, 129, 140, 200], dtype=torch.uint8
    )  # of 255; 8 more or less decides the middle
    images = ImageData(bright[:, None, None, None].expand(6, 2, 2, 1), torch.tensor([0, 0, 0, 1, 1, 1]), ("a", "b"))
    found = robust_accuracy(network, tiny("fgsm-at"), images)
    assert found == {"pgd10_accuracy": pytest.approx(3 / 6)}
    assert network.training


def test_robust_accuracy_is_not_measured_in_other_trainings(tiny, data):
    network = Classifier(Mean(), nn.Identity(), mean=[0.0], std=[1.0])
    assert robust_accuracy(network, tiny("natural"), load_data("cifar10", "train", data)) == {}


def test_an_adversarial_training_needs_its_attack_and_others_refuse_one(tiny):
    attack = tiny("fgsm-at").attack.model_dump()
    with pytest.raises(RecipeError, match=r"'natural' has no use for an \[attack\]"):
        load_recipe("natural", {"attack": attack})
    with pytest.raises(RecipeError, match=r"'fgsm-at' needs an \[attack\]"):
        load_recipe("fgsm-at", {"attack": None})
    with pytest.raises(RecipeError, match="takes one step, not 2"):
        load_recipe("fgsm-at", {"attack": {**attack, "steps": 2}})
