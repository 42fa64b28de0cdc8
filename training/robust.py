"""Adversarial training: classifiers that are robust by themselves, which the add-on purifiers protect.

- `adversarial`: Madry et al. (ICLR 2018, https://arxiv.org/abs/1706.06083), Eq. (2.1): the cross entropy of attacked images.
  `fgsm-at` is its cheapest form, one step from a random start (Wong et al., ICLR 2020, https://arxiv.org/abs/2001.03994).

What the papers leave open, and what we chose:
- Random starts are uniform in the ball; one step is longer than its radius (10/255 for 8/255), as Wong et al. found best.
- The attack sees batch norm in training mode, as in both groups' public code: it fools the function that the step then trains.
  Running statistics move in its forward passes too.
- The attack runs in the precision of the training step.

Training against one step can collapse within an epoch: the network learns to mask that step, and any longer attack breaks it
("catastrophic overfitting", Wong et al. Sec. 5.4). `robust_accuracy` puts a number into each epoch's log that shows it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.classifiers import Classifier, frozen
from training.attacks import AttackSettings, ascend, in_chunks
from training.augment import Cropper
from training.data import ImageData
from training.recipe import Attack, Recipe
from training.soap import Losses, joint

WATCHED = 250  # images; the standard error is about 3 points, a collapse is 30


def adversarial(network: Classifier, recipe: Recipe, crop: Cropper, indices: Tensor, labels: Tensor) -> Losses:
    """Cross entropy of images attacked from a uniform random start, Madry et al. Eq. (2.1)."""
    assert recipe.attack is not None
    x = crop(indices)
    x_adv = attacked(_cross_entropy(network, labels), x, recipe.attack, _uniform(x, recipe.attack.epsilon))
    return joint(network(x_adv), labels, torch.zeros(()), 0.0)


def attacked(loss: Callable[[Tensor], Tensor], x: Tensor, attack: Attack, noise: Tensor) -> Tensor:
    """Sign ascent on a per-image loss from `x + noise`. x, noise: (N, C, H, W), x in [0, 1] -> (N, C, H, W) in [0, 1]."""
    settings = AttackSettings(name="training", mode="static", **attack.model_dump(include=AttackSettings.model_fields))
    return ascend(loss, x, settings, start=(x + noise).clamp(0, 1) - x)


def _uniform(x: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x).uniform_(-epsilon, epsilon)


def _cross_entropy(network: Classifier, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss that attacks ascend. (N,) -> ((N, C, H, W) -> (N,))."""
    return lambda image: F.cross_entropy(network(image).float(), labels, reduction="none")


def robust_accuracy(network: Classifier, recipe: Recipe, images: ImageData) -> dict[str, float]:
    """Accuracy of the frozen network under PGD-10 on the first training images, unaugmented; of adversarial trainings only.

    Steps of a quarter of the budget, from the image itself, so the number is the network's alone.
    """
    if recipe.attack is None:
        return {}
    epsilon, network = recipe.attack.epsilon, frozen(network, images.images.device)
    attack = Attack(epsilon=epsilon, step_size=epsilon / 4, steps=10)
    correct = 0
    for _, x, y in in_chunks(images.floats(0, WATCHED), images.labels[:WATCHED]):
        x_adv = attacked(_cross_entropy(network, y), x, attack, torch.zeros_like(x))
        correct += int((network(x_adv).argmax(1) == y).sum())
    return {"pgd10_accuracy": correct / min(WATCHED, len(images))}
