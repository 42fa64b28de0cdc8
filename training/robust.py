"""Adversarial training: classifiers that are robust by themselves, which the add-on purifiers protect.

- `adversarial`: Madry et al. (ICLR 2018, https://arxiv.org/abs/1706.06083), Eq. (2.1): the cross entropy of attacked images.
  `pgd-at` is theirs and SOAP's (A.3); `fgsm-at` is its cheapest form, one step from a random start (Wong et al., ICLR 2020,
  https://arxiv.org/abs/2001.03994).
- `trades`: Zhang et al. (ICML 2019, https://arxiv.org/abs/1901.08573), Alg. 1: the cross entropy of clean images, and how far
  the attack moves the prediction.
- `avmixup`: Lee et al. (CVPR 2020, https://arxiv.org/abs/2003.02484), Alg. 1: points between an image and its adversarial
  vertex, with labels that fade on the way.

What the papers leave open, and what we chose:
- Random starts are uniform in the ball; the one step is longer than its radius (10/255 for 8/255), as Wong et al. found best.
- The attacks of `adversarial` and `avmixup` see batch norm in training mode, as in Madry's and Wong's public code: they fool the
  function that the step then trains, and its running statistics move in their forward passes too. The attack of `trades`
  sees it in eval mode, as in its authors' code.
- Attacks run in the precision of the training step.
- The adversarial vertex is clipped to [0, 1], as every image here.

Training against one step can collapse within an epoch: the network learns to mask that step, and any longer attack breaks it
("catastrophic overfitting", Wong et al.). `robust_accuracy` puts a number into each epoch's log that shows it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.classifiers import Classifier, frozen
from training.attacks import AttackSettings
from training.attacks.ascent import ascend
from training.attacks.blind import in_chunks
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


def trades(network: Classifier, recipe: Recipe, crop: Cropper, indices: Tensor, labels: Tensor) -> Losses:
    """Cross entropy of the clean images plus beta times KL(p(x) || p(x_adv)), whose ascent makes x_adv, Alg. 1."""
    attack = recipe.attack
    assert attack is not None
    assert attack.beta is not None
    x = crop(indices)
    network.eval()
    clean = network(x).detach()
    x_adv = attacked(lambda image: divergence(clean, network(image)), x, attack, 0.001 * torch.randn_like(x))
    network.train()
    logits = network(x)
    return joint(logits, labels, divergence(logits, network(x_adv)).mean(), attack.beta)


def divergence(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """KL(p || p_adv) of the softmax outputs, per image. (N, K), (N, K) -> (N,), each >= 0."""
    p, p_adv = logits.float().log_softmax(1), logits_adv.float().log_softmax(1)
    return F.kl_div(p_adv, p, reduction="none", log_target=True).sum(1)


def avmixup(network: Classifier, recipe: Recipe, crop: Cropper, indices: Tensor, labels: Tensor) -> Losses:
    """Soft cross entropy between each image and its adversarial vertex, at a share drawn from U(0, 1) = Beta(1, 1)."""
    attack = recipe.attack
    assert attack is not None
    assert attack.gamma is not None
    x = crop(indices)
    x_adv = attacked(_cross_entropy(network, labels), x, attack, _uniform(x, attack.epsilon))
    share = torch.rand(len(x))
    logits = network(torch.lerp(vertex(x, x_adv, attack.gamma), x, share.view(-1, 1, 1, 1))).float()
    classification = F.cross_entropy(logits, faded(labels, share, attack, logits.shape[1]))
    return Losses(classification, classification, torch.zeros(()), (logits.argmax(1) == labels).sum(), len(x))


def vertex(x: Tensor, x_adv: Tensor, gamma: float) -> Tensor:
    """The adversarial vertex x + gamma (x_adv - x), Lee et al., in [0, 1]. (N, C, H, W), (N, C, H, W) -> the same."""
    return (x + gamma * (x_adv - x)).clamp(0, 1)


def faded(labels: Tensor, share: Tensor, attack: Attack, classes: int) -> Tensor:
    """Targets at `share` of the way from the vertex to the image. (N,), (N,) in [0, 1] -> (N, K), rows that sum to 1.

    The label weighs lambda_1 at the image and lambda_2 at the vertex; the other classes share the rest evenly.
    """
    assert attack.lambda_1 is not None
    assert attack.lambda_2 is not None
    weight = (share * attack.lambda_1 + (1 - share) * attack.lambda_2)[:, None]  # (N, 1)
    return torch.where(F.one_hot(labels, classes).bool(), weight, (1 - weight) / (classes - 1))


def attacked(loss: Callable[[Tensor], Tensor], x: Tensor, attack: Attack, noise: Tensor) -> Tensor:
    """Sign ascent on a per-image loss from `x + noise`. x, noise: (N, C, H, W), x in [0, 1] -> (N, C, H, W) in [0, 1]."""
    settings = AttackSettings(
        name="training", mode="static", **attack.model_dump(include={"epsilon", "step_size", "steps"})
    )
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
