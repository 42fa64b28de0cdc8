"""Training the NRP purifier: Alg. 2 with the loss of Eq. (8).

Muzammal Naseer, Salman Khan, Munawar Hayat, Fahad Shahbaz Khan, Fatih Porikli: A Self-supervised Approach for Adversarial
Robustness, CVPR 2020.

What the paper leaves open or contradicts, and what we chose:
- Sec. 3.2 says "relativistic average GAN", Eq. (7) prints the plain relativistic loss, without the average. We take the average
  (Jolicoeur-Martineau, ICLR 2019): each critic output is compared with the mean of the other kind's over the batch.
- The critic's loss isn't printed; it is Eq. (7) with the roles exchanged, plus the other half, as in ESRGAN (Wang et al. 2018).
- Eq. (6) as printed: the L2 norm of each image's difference, averaged over the batch. (As a mean square, gamma = 0.01 would
  make it vanish beside the feature loss.)
- The critic: five blocks of "convolutional layers followed by batch-norm and leaky-relu and then a fully connected layer"; in
  each a 3x3 convolution and a 4x4 one of stride 2, channels doubling up to eight times the first, as in ESRGAN's. Before
  the fully connected layer we average over places, so that any crop from 32x32 up will do.
- "conv3.3" of VGG-16 on other networks: a layer at its resolution, a quarter, but not the last (Sec. 3.4 (b): deeper ones
  "become too specific to the label space").
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from training.addons import Setting, register_trainer
from training.gan import GanSettings, GanTrainer
from training.perceptual import Perceptual


class NrpSettings(GanSettings):
    """Settings of a recipe for `nrp` and `nrp-resg`."""

    alpha: float = Field(default=5e-3, ge=0, description="weight of the adversarial loss; Sec. 4.1")
    gamma: float = Field(default=1e-2, ge=0, description="weight of the pixel loss; Sec. 4.1")
    lam: float = Field(default=1.0, ge=0, description="lambda, weight of the feature loss; Sec. 4.1")


class VggCritic(nn.Sequential):
    """C_phi of Sec. 3.3. (N, 3, H, W), at least 32x32 -> (N, 1), higher for images that look clean."""

    def __init__(self, width: int) -> None:
        def block(channels_in: int, channels_out: int) -> list[nn.Module]:
            same = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
            half = nn.Conv2d(channels_out, channels_out, 4, stride=2, padding=1, bias=False)
            return [
                layer
                for convolution in (same, half)
                for layer in (convolution, nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.2))
            ]

        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        blocks = [layer for pair in zip([3, *widths], widths, strict=False) for layer in block(*pair)]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1))


class NrpGame:
    """Eq. (5) to (8)."""

    def __init__(self, setting: Setting, settings: NrpSettings, perceptual: Perceptual, critic: nn.Module) -> None:
        self._precision, self._settings = setting.precision, settings
        self._perceptual, self._critic = perceptual, critic

    def purifier_losses(self, x: Tensor, x_adv: Tensor, z: Tensor) -> dict[str, Tensor]:
        """See `Game`; Eq. (8)."""
        with torch.no_grad():
            wanted, real = self._perceptual.features(x), self._judged(x)
        feature = (self._perceptual.features(z) - wanted).abs().mean()  # Eq. (5), Delta: mean absolute error
        return {
            "adversarial": self._settings.alpha * relativistic(self._judged(z), real),  # Eq. (7)
            "perceptual": self._settings.lam * feature,
            "pixel": self._settings.gamma * (z - x).flatten(1).norm(dim=1).mean(),  # Eq. (6)
        }

    def critic_loss(self, x: Tensor, x_adv: Tensor, z: Tensor) -> Tensor:
        """See `Game`: clean images above the mean purified one, purified ones below the mean clean one."""
        real, fake = self._judged(x), self._judged(z)
        return relativistic(real, fake) + relativistic(-fake, -real)

    def _judged(self, x: Tensor) -> Tensor:
        """C_phi(x). (N, 3, H, W) -> (N, 1)."""
        with self._precision():
            return self._critic(x.contiguous(memory_format=torch.channels_last)).float()  # type: ignore[no-any-return]


def relativistic(higher: Tensor, lower: Tensor) -> Tensor:
    """Eq. (7) with the average: -log sigma(higher - mean(lower)), averaged. (N, 1) twice -> scalar."""
    return F.softplus(lower.mean() - higher).mean()


@register_trainer("nrp")
@register_trainer("nrp-resg")
def nrp(setting: Setting) -> GanTrainer:
    """Alg. 2."""
    settings = NrpSettings.model_validate(setting.recipe.settings)
    perceptual = Perceptual(setting, settings)
    critic = VggCritic(settings.critic_width).to(device=setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return GanTrainer(setting, settings, perceptual, critic, NrpGame(setting, settings, perceptual, critic))
