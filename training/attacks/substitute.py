"""Black-box: a substitute of the defence, trained on the labels that it answers, and images made on the substitute.

Practical Black-Box Attacks against Machine Learning: Papernot, McDaniel, Goodfellow, Jha, Celik, Swami, ASIACCS 2017,
https://arxiv.org/abs/1602.02697. Their Alg. 1 is `train_substitute`. `substitute_attack` by FGSM is what SOAP's Table 4 measures
(Shi et al., ICLR 2021, Sec. 4.2).

What the papers leave open, or public code does otherwise, and what we chose:
- New images go down the label's output, towards where the answer changes, by a negative `step`; the paper's go up. With an FCN
  against our MNIST FCN down left the target 71 % of 200 images right after FGSM, up 77 % (means of three seeds).
- J is the derivative of the logit, as in CleverHans, not of the softmax output, which is flat where a substitute is sure.
- A round trains on from the weights of the last one, as in CleverHans. From fresh weights the attacks were weaker.
- New images are clipped to [0, 1]: the service takes nothing else.
- The images to start with should be of many kinds: MNIST's test images come writer by writer, and from 150 in a row the
  substitutes got 70 % of the others right, not 84 %.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from models.catalog import CHUNK, Defense
from models.classifiers import Classifier, build_classifier, frozen
from training.attacks.ascent import ascend
from training.attacks.asking import Asker, Survived
from training.attacks.settings import AttackSettings

# The attacker's own images count from here, past every test set, so that no image that is sent has the seeds of one of them.
OWN = 500_000


class SubstituteSettings(BaseModel):
    """How the attacker trains a substitute. Sources: P is Papernot et al., C CleverHans' `mnist_blackbox`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str = Field(description="of the substitute, a registered name; it need not be the target's")
    arguments: dict[str, object] = Field(default={}, description="of that architecture")
    queries: int = Field(default=150, ge=1, description="images to start with, S_0 (P; SOAP Sec. 4.2)")
    augmentations: int = Field(default=6, ge=0, le=12, description="rho, each doubles the set and its queries (P; C)")
    epochs: int = Field(default=10, ge=1, description="over the set of each round (C)")
    step: float = Field(default=-0.1, ge=-1, le=1, description="lambda in [0, 1] units (P; C), down where negative")
    learning_rate: float = Field(default=0.001, gt=0, description="of Adam (C)")
    batch_size: int = Field(default=128, ge=2, description="at most (C)")
    seed: int = Field(default=0, ge=0, description="of the first weights and the order of the images")

    @property
    def asked(self) -> int:
        """How many labels a training asks of the target."""
        return self.queries << self.augmentations


@dataclass(frozen=True)
class Substitute:
    """classifier: frozen, answers as the target does, more or less. queries: how many labels that took."""

    classifier: Classifier
    queries: int


def train_substitute(ask: Callable[[Tensor], Tensor], x: Tensor, settings: SubstituteSettings) -> Substitute:
    """Papernot et al., Alg. 1. ask: the target's labels, (N, C, H, W) -> (N,); x: (`queries`, C, H, W) in [0, 1], S_0.

    Torch's global random numbers stay as they are.

    Raises:
        ValueError: there is no such architecture, an argument doesn't fit it, or x isn't of `queries` images.
    """
    if len(x) != settings.queries:
        raise ValueError(f"a substitute starts from {settings.queries} images as `queries` says; got {len(x)}")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        network = build_classifier(settings.architecture, **settings.arguments).to(x.device)
        optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
        labels = ask(x)
        _fit(network, optimizer, x, labels, settings)
        for _ in range(settings.augmentations):
            new = augmented(network, x, labels, settings)
            x, labels = torch.cat([x, new]), torch.cat([labels, ask(new)])  # Alg. 1, S_{rho+1}
            _fit(network, optimizer, x, labels, settings)
    return Substitute(frozen(network, x.device), len(x))


def _fit(
    network: Classifier, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, settings: SubstituteSettings
) -> None:
    """A round: epochs on the cross entropy of the target's labels, in batches of sizes that differ by one at most."""
    network.train()
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(x)).to(x.device).tensor_split(-(-len(x) // settings.batch_size)):
            optimizer.zero_grad()
            with torch.enable_grad():
                F.cross_entropy(network(x[rows]), labels[rows]).backward()
            optimizer.step()
    network.eval()


def augmented(network: Classifier, x: Tensor, labels: Tensor, settings: SubstituteSettings) -> Tensor:
    """The new images of a round, x + lambda sign(J_F(x)[label]). (N, C, H, W), (N,) -> (N, C, H, W) in [0, 1]."""
    new = []
    for image, label in zip(x.split(settings.batch_size), labels.split(settings.batch_size), strict=True):
        leaf = image.clone().requires_grad_()
        with torch.enable_grad():
            output = network(leaf).gather(1, label[:, None])  # F(x)[label], (N, 1)
            (gradient,) = torch.autograd.grad(output.sum(), leaf)
        new.append((image + settings.step * gradient.sign()).clamp(0, 1))
    return torch.cat(new)


def substitute_attack(
    defense: Defense,
    x: Tensor,
    y: Tensor,
    settings: AttackSettings,
    first: int,
    unseen: Tensor,
    how: SubstituteSettings,
) -> Survived:
    """Train a substitute of the whole defence, then attack through it: `substituted`, then `transferred`.

    unseen: (`queries`, C, H, W), the attacker's own images.
    """
    return transferred(defense, substituted(defense, settings, unseen, how), x, y, settings, first)


def substituted(defense: Defense, settings: AttackSettings, unseen: Tensor, how: SubstituteSettings) -> Substitute:
    """A substitute of the whole defence, asked on unseen, (`queries`, C, H, W), and on what is made of it."""
    asker = Asker(defense, settings, OWN, how.asked)
    return train_substitute(lambda x: asker(x, torch.arange(len(x))).logits.argmax(1), unseen, how)


def transferred(
    defense: Defense, substitute: Substitute, x: Tensor, y: Tensor, settings: AttackSettings, first: int
) -> Survived:
    """Ascend the substitute's cross entropy (FGSM where there is one step); ask the whole defence of the last image alone.

    x: (N, C, H, W) in [0, 1], the data set's from `first` on; y: (N,), their true labels.
    """

    def made(image: Tensor, labels: Tensor) -> Tensor:
        return ascend(lambda x: F.cross_entropy(substitute.classifier(x), labels, reduction="none"), image, settings)

    x_adv = torch.cat([made(*part) for part in zip(x.split(CHUNK), y.split(CHUNK), strict=True)])
    found = Asker(defense, settings, first, len(x))(x_adv, torch.arange(len(x)))
    return Survived(found.logits.argmax(1) == y, x_adv)
