"""Training the Pix2Pix purifier: Alg. 2 with the objective of Eq. (5).

Nazim Mezhoudi, Son Vu: Self-Supervised Learning for Adversarial Robustness, ETIS 2022.

What the paper leaves open or contradicts, and what we chose:
- Eq. (2) prints 1 - log D(x', G(x')) as its second expectation; meant is log(1 - D(x', G(x'))). Instead of minimizing that the
  generator maximizes log D(x', G(x')), as in Isola et al. (CVPR 2017, Sec. 3.3).
- L_p: "the distance between feature representations" without a formula; the mean squared error, as for the pixels ("MSE for the
  pixel-loss", Sec. 4.1).
- The critic: "five convolutional layers with the first one being strided", leaky ReLU, dropout and batch normalization, and
  9x9 patches. Without padding a 4x4 convolution of stride 2, three 3x3 and one 1x1 give just those 9x9 judgements of a 32x32
  image, each of a 16x16 patch.
- T and kappa of Alg. 1 are not given; see `PerceptualSettings`.
- Of two convolution blocks of VGG-19 we take the last activation (`conv2-2`), and of another network a layer as deep in pixels.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from training.addons import Setting, register_trainer
from training.gan import GanSettings, GanTrainer
from training.perceptual import Perceptual


class Pix2PixSettings(GanSettings):
    """Settings of a recipe for `pix2pix`."""

    alpha: float = Field(default=100.0, ge=0, description="weight of the perceptual loss; Eq. (5), Sec. 4.1")
    lam: float = Field(default=10.0, ge=0, description="lambda, weight of the pixel loss; Eq. (5), Sec. 4.1")
    critic_dropout: float = Field(default=0.5, ge=0, lt=1, description="Sec. 3.5 without a number; Isola et al.")


class PatchCritic(nn.Sequential):
    """D of Sec. 3.5: one logit for each patch, from an image (N, 6, H, W), the perturbed one above the one to be judged."""

    def __init__(self, width: int, dropout: float) -> None:
        def block(channels_in: int, channels_out: int) -> list[nn.Module]:
            convolution = nn.Conv2d(channels_in, channels_out, 3, bias=False)
            return [convolution, nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.2), nn.Dropout2d(dropout)]

        super().__init__(
            nn.Conv2d(6, width, 4, stride=2),
            nn.LeakyReLU(0.2),
            *block(width, 2 * width),
            *block(2 * width, 4 * width),
            *block(4 * width, 8 * width),
            nn.Conv2d(8 * width, 1, 1),
        )


class Pix2PixGame:
    """Eq. (5)."""

    def __init__(self, setting: Setting, settings: Pix2PixSettings, perceptual: Perceptual, critic: nn.Module) -> None:
        self._precision, self._settings = setting.precision, settings
        self._perceptual, self._critic = perceptual, critic

    def purifier_losses(self, x: Tensor, x_adv: Tensor, z: Tensor) -> dict[str, Tensor]:
        """See `Game`."""
        with torch.no_grad():
            wanted = self._perceptual.features(x)
        perceptual = F.mse_loss(self._perceptual.features(z), wanted)  # L_p
        return {
            "adversarial": F.softplus(-self._judged(x_adv, z)).mean(),  # Eq. (2): -log D(x', G(x'))
            "perceptual": self._settings.alpha * perceptual,
            "pixel": self._settings.lam * F.mse_loss(z, x),  # L_L2
        }

    def critic_loss(self, x: Tensor, x_adv: Tensor, z: Tensor) -> Tensor:
        """Eq. (2), to be minimized: -log D(x', x) - log(1 - D(x', G(x')))."""
        return F.softplus(-self._judged(x_adv, x)).mean() + F.softplus(self._judged(x_adv, z)).mean()

    def _judged(self, x_adv: Tensor, image: Tensor) -> Tensor:
        """Logits of D. (N, 3, H, W) twice -> (N, 1, h, w)."""
        pair = torch.cat([x_adv, image], dim=1).contiguous(memory_format=torch.channels_last)
        with self._precision():
            return self._critic(pair).float()  # type: ignore[no-any-return]


@register_trainer("pix2pix")
def pix2pix(setting: Setting) -> GanTrainer:
    """Alg. 2."""
    settings = Pix2PixSettings.model_validate(setting.recipe.settings)
    perceptual = Perceptual(setting, settings)
    critic = PatchCritic(settings.critic_width, settings.critic_dropout)
    critic = critic.to(device=setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return GanTrainer(setting, settings, perceptual, critic, Pix2PixGame(setting, settings, perceptual, critic))
