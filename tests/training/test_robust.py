import math

import pytest
import torch
from torch import nn

from models.classifiers import Classifier
from training.augment import Cropper
from training.data import ImageData, load_data
from training.recipe import ADVERSARIAL, Attack, RecipeError, Task, load_recipe
from training.robust import adversarial, avmixup, divergence, faded, robust_accuracy, trades, vertex
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
    assert 4 / 255 < (start - 0.2).abs().max() <= 8 / 255 + 1e-7
    # From anywhere in the ball, a step of 10/255 ends on or beyond 2/255 on the gradient's side.
    logits = recorder.linear(start.flatten(1).requires_grad_())
    side = torch.sign(recorder.linear.weight.T @ (logits.softmax(1) - nn.functional.one_hot(LABELS, 10)).T).T
    assert ((end - 0.2).flatten(1) * side >= 2 / 255 - 1e-6).all()
    assert (end - 0.2).abs().max() <= 8 / 255 + 1e-7


def test_several_steps_end_where_the_loss_is_larger(tiny):
    recorder, network = recorded()
    torch.manual_seed(0)
    adversarial(network, tiny("pgd-at"), crop(), torch.arange(2), LABELS)
    losses = [nn.functional.cross_entropy(recorder.linear(x.flatten(1)), LABELS).item() for x in recorder.seen]
    assert len(losses) == 7 + 1
    assert losses == sorted(losses)


every_task = pytest.mark.parametrize("task", ADVERSARIAL)


@every_task
@pytest.mark.parametrize("value", [0, 51, 255])
def test_adversarial_images_stay_in_the_budget_and_are_images(tiny, task, value):
    recorder, network = recorded()
    TASKS[task](network, tiny(task), crop(torch.full_like(GREY, value)), torch.arange(2), LABELS)
    # A vertex of AVmixup lies up to gamma = 2 budgets away.
    budget = 8 / 255 * (2 if task == "avmixup" else 1)
    for x in recorder.seen:
        assert (x - value / 255).abs().max() <= budget + 1e-6
        assert -1e-6 <= x.min() <= x.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("task", "modes"),
    [
        ("fgsm-at", [True, True]),
        ("pgd-at", [True] * 8),
        ("trades", [False] * 11 + [True] * 2),
        ("avmixup", [True] * 11),
    ],
)
def test_the_attack_sees_the_mode_of_the_public_code(tiny, task, modes):
    recorder, network = recorded()
    TASKS[task](network, tiny(task), crop(), torch.arange(2), LABELS)
    assert recorder.modes == modes
    assert network.training


@every_task
def test_in_half_precision_every_weight_gets_a_gradient(tiny, task):
    recorder, network = recorded()
    with torch.autocast("cpu", torch.bfloat16):
        losses = TASKS[task](network, tiny(task), crop(), torch.arange(2), LABELS)
    losses.total.backward()
    assert recorder.linear.weight.grad.abs().sum() > 0


@every_task
def test_the_global_generator_decides_the_adversarial_images(tiny, task):
    starts = []
    for seed in (0, 0, 1):
        recorder, network = recorded()
        torch.manual_seed(seed)
        TASKS[task](network, tiny(task), crop(), torch.arange(2), LABELS)
        starts.append(recorder.seen[1 if task == "trades" else 0])  # TRADES looks at the clean image first
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_divergence_by_hand():
    # p = (1/2, 1/2), p_adv = (1/4, 3/4): 1/2 ln 2 + 1/2 ln 2/3.
    p, p_adv = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    assert divergence(p, p_adv).tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3)])
    # And the other way round: 1/4 ln 1/2 + 3/4 ln 3/2.
    assert divergence(p_adv, p).tolist() == pytest.approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5)])


def test_trades_weighs_clean_cross_entropy_and_divergence(tiny):
    recorder, network = recorded()
    losses = trades(network, tiny("trades"), crop(), torch.arange(2), LABELS)
    clean, moved = (recorder.linear(x.flatten(1)) for x in recorder.seen[-2:])
    assert torch.equal(recorder.seen[-2], torch.full((2, 1, 2, 2), 0.2))
    assert torch.allclose(losses.classification, nn.functional.cross_entropy(clean, LABELS))
    assert torch.allclose(losses.auxiliary, divergence(clean, moved).mean())
    assert torch.allclose(losses.total, losses.classification + 6 * losses.auxiliary)


def test_the_attack_of_trades_starts_near_the_image_and_raises_the_divergence(tiny):
    recorder, network = recorded()
    trades(network, tiny("trades"), crop(), torch.arange(2), LABELS)
    clean, first, *_, last = recorder.seen
    assert 0 < (first - clean).abs().max() < 0.01
    assert (last - clean).abs().max() == pytest.approx(8 / 255, abs=1e-6)
    target = recorder.linear(clean.flatten(1))
    apart = [divergence(target, recorder.linear(x.flatten(1))).sum().item() for x in (first, last)]
    assert apart[1] > 10 * apart[0]


def test_the_vertex_lies_gamma_perturbations_away_but_in_the_image_range():
    x, x_adv = torch.tensor([0.5, 0.02, 0.97]), torch.tensor([0.53, 0.0, 1.0])
    assert vertex(x, x_adv, 2.0).tolist() == pytest.approx([0.56, 0.0, 1.0])


def test_labels_fade_towards_the_vertex():
    attack = Attack(epsilon=0.1, step_size=0.1, steps=1, gamma=2.0, lambda_1=1.0, lambda_2=0.1)
    share = torch.tensor([1.0, 0.0, 0.5])  # the image, the vertex, half way
    found = faded(torch.tensor([2, 0, 1]), share, attack, classes=3)
    expected = [[0, 0, 1], [0.1, 0.45, 0.45], [0.225, 0.55, 0.225]]
    assert torch.allclose(found, torch.tensor(expected))


def test_avmixup_is_soft_cross_entropy_at_the_mixed_image(tiny, monkeypatch):
    recorder, network = recorded()
    monkeypatch.setattr("training.robust.torch.rand", lambda count: torch.tensor([1.0, 0.25]))
    losses = avmixup(network, tiny("avmixup"), crop(), torch.arange(2), LABELS)
    mixed = recorder.seen[-1]
    assert torch.allclose(mixed[0], torch.tensor(0.2))  # the image itself
    assert (mixed[1] - 0.2).abs().max() == pytest.approx(0.75 * 2 * 8 / 255, abs=1e-6)
    log_p = recorder.linear(mixed.flatten(1)).log_softmax(1)
    weight = 0.25 * 1.0 + 0.75 * 0.1
    second = weight * log_p[1, 1] + (1 - weight) / 9 * (log_p[1].sum() - log_p[1, 1])
    assert losses.total.item() == pytest.approx(-(log_p[0, 0] + second).item() / 2, rel=1e-5)


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


def test_each_adversarial_training_takes_its_own_fields_and_no_others(tiny):
    attack = tiny("pgd-at").attack.model_dump()
    with pytest.raises(RecipeError, match=r"'pgd-at' takes .*: none; given: beta"):
        load_recipe("pgd-at", {"attack": {**attack, "beta": 6.0}})
    with pytest.raises(RecipeError, match=r"'trades' takes .*: beta; given: none"):
        load_recipe("trades", {"attack": attack})
    with pytest.raises(RecipeError, match=r"'avmixup' takes .*: gamma, lambda_1, lambda_2; given: gamma"):
        load_recipe("avmixup", {"attack": {**attack, "gamma": 2.0}})
