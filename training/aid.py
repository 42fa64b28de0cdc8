"""Training of AID-Purifier's discriminator: Alg. 1, AVmixup (Hwang, Lee, Rhee 2021, https://openreview.net/forum?id=3Uk9_JRVwiF).

The classifier is frozen. An image is attacked with PGD, its vertex lies gamma times as far, and the discriminator learns from a
random point between the image and the vertex how far along it is, Eq. (1) with soft targets. Such a target leaves a loss
of 1/2 nat on average even where it is predicted exactly; `error`, the mean |p_adv - t|, has no such floor.

What the paper leaves open or contradicts, and what we chose:
- The attack in training is "PGD". The public code takes 10 steps of 1/255; A.4 leaves all but the ball and the step size to
  Foolbox, whose PGD starts at random and takes 40. The recipes say which is theirs.
- Alg. 1, l. 6 doesn't clip the vertex. The public code does, to [0, 1], and so do we: no image to be purified lies outside.
- u is drawn for each image, as in the public code.
"""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from models.networks.aid import AidDiscriminator
from training.addons import Setting, register_trainer
from training.recipe import Attack
from training.robust import attacked, vertex


class AidSettings(BaseModel):
    """What an AID recipe's `settings` may say. Lengths are l_inf, in [0, 1] units; the defaults are CIFAR-10's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gamma: float = Field(default=1.5, ge=1, description="the vertex lies so many perturbations away (A.3)")
    epsilon: float = Field(default=8 / 255, gt=0, le=1, description="radius of the attack's ball (A.4)")
    step_size: float = Field(default=1 / 255, gt=0, le=1, description="the attack's (A.4)")
    steps: int = Field(default=10, ge=1, description="the attack's (public code)")
    learning_rate: float = Field(default=0.01, gt=0, description="of SGD (A.3)")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="A.3")
    weight_decay: float = Field(default=2e-4, ge=0, description="A.3")

    def attack(self) -> Attack:
        """PGD on the classifier."""
        return Attack(epsilon=self.epsilon, step_size=self.step_size, steps=self.steps)


@register_trainer("aid")
class AidTrainer:
    """See `Trainer`.

    Raises:
        ValueError: the recipe's settings are wrong, or the classifier lacks a tap.
    """

    def __init__(self, setting: Setting) -> None:
        assert isinstance(setting.network, AidDiscriminator)
        self.setting, self.exported = setting, setting.network
        self.settings = AidSettings.model_validate(setting.recipe.settings)
        self.exported.check(setting.classifier)
        self.optimizer = torch.optim.SGD(
            self.exported.parameters(),
            lr=self.settings.learning_rate,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
        )
        self.networks, self.optimizers = {"discriminator": self.exported}, {"sgd": self.optimizer}

    def step(self, indices: Tensor, share: float) -> dict[str, Tensor]:
        """See `Trainer`; the learning rate is constant."""
        indices = indices.to(self.setting.device)
        with torch.device(self.setting.device), self.setting.precision():
            x = self.setting.crop(indices)
            mixed, targets = mixup(x, vertex(x, self._attacked(x, indices), self.settings.gamma))
            with torch.no_grad():
                activations = self.setting.classifier.tapped(mixed, self.exported.taps)
            logits = self.exported(activations).float()
        loss = F.binary_cross_entropy_with_logits(logits, targets)  # Eq. (1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()  # Alg. 1, l. 12
        return {"loss": loss.detach(), "error": (logits.detach().sigmoid() - targets).abs().mean()}

    def _attacked(self, x: Tensor, indices: Tensor) -> Tensor:
        """Alg. 1, l. 4: x + PGD(x, y; theta_C), from a uniformly random start in the ball. (B, C, H, W) -> the same."""
        labels = self.setting.labels(indices)

        def cross_entropy(image: Tensor) -> Tensor:
            return F.cross_entropy(self.setting.classifier(image).float(), labels, reduction="none")

        noise = torch.empty_like(x).uniform_(-self.settings.epsilon, self.settings.epsilon)
        return attacked(cross_entropy, x, self.settings.attack(), noise)


def mixup(x: Tensor, x_av: Tensor) -> tuple[Tensor, Tensor]:
    """Random points between images and their vertices, and how far along each is.

    (B, C, H, W), (B, C, H, W) -> (B, C, H, W), (B,) in [0, 1].
    """
    u = torch.rand(len(x))  # Alg. 1, l. 7
    mixed = torch.lerp(x_av, x, u.view(-1, 1, 1, 1))  # l. 8: u x + (1 - u) x_AV
    return mixed, 1 - u  # l. 9: u t_clean + (1 - u) t_adv, with t_clean = 0 and t_adv = 1
