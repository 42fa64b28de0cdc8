"""What NRP and Pix2Pix share in training (Alg. 2 of both papers): a purifier and a critic that learn in turns from pairs of clean
images x and perturbed ones x'."""

from collections.abc import Mapping
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from training.addons import Setting
from training.loop import set_rate
from training.perceptual import Perceptual, PerceptualSettings


class GanSettings(PerceptualSettings):
    """What both trainers need besides the perturbation."""

    learning_rate: float = Field(default=1e-4, gt=0, description="Adam's, for both networks; both papers, Sec. 4.1")
    decay_from: float = Field(
        default=1.0, ge=0, le=1, description="share of the training after which it falls linearly to 0 (ours); 1: never"
    )
    critic_width: int = Field(default=64, ge=1, description="the critic's channels at full size; Isola et al., ESRGAN")

    def rate(self, share: float) -> float:
        """The learning rate when `share` in [0, 1) of the training is done."""
        return self.learning_rate * min(1.0, (1 - share) / max(1 - self.decay_from, 1e-9))


class Game(Protocol):
    """The losses of one paper. x: clean; x_adv: perturbed; z: purified; all (N, C, H, W)."""

    def purifier_losses(self, x: Tensor, x_adv: Tensor, z: Tensor) -> dict[str, Tensor]:
        """Weighted terms, by name; the purifier minimizes their sum."""
        ...

    def critic_loss(self, x: Tensor, x_adv: Tensor, z: Tensor) -> Tensor:
        """z: without a graph."""
        ...


class GanTrainer:
    """The protocol of `training.addons.AddOnTrainer` around the losses of `game`."""

    def __init__(
        self, setting: Setting, settings: GanSettings, perceptual: Perceptual, critic: nn.Module, game: Game
    ) -> None:
        self._setting, self._settings, self._perceptual, self._game = setting, settings, perceptual, game
        self._critic = critic
        self.exported: nn.Module = setting.network.to(memory_format=torch.channels_last)
        self.networks: Mapping[str, nn.Module] = {"purifier": self.exported, "critic": critic}
        # Adam's beta_1 = 0.9 and beta_2 = 0.999 are Pix2Pix's (Sec. 4.1); NRP gives none.
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
            for name, network in self.networks.items()
        }

    def step(self, indices: Tensor, share: float) -> dict[str, Tensor]:
        """Alg. 2, one mini-batch; see `training.loop.Trainer`."""
        for optimizer in self.optimizers.values():
            set_rate(optimizer, self._settings.rate(share))
        with torch.device(self._setting.device):
            x = self._setting.crop(indices.to(self._setting.device))  # NRP l. 2
            x_adv = self._perceptual.perturbed(x)  # l. 3
        with self._setting.precision():
            z = self.exported(x_adv).float()  # l. 4
        self._critic.requires_grad_(False)  # it is not its turn
        terms = self._game.purifier_losses(x, x_adv, z)
        self._descend("purifier", torch.stack(list(terms.values())).sum())  # l. 5
        self._critic.requires_grad_(True)
        critic_loss = self._game.critic_loss(x, x_adv, z.detach())
        self._descend("critic", critic_loss)  # l. 6
        return {**{name: term.detach() for name, term in terms.items()}, "critic": critic_loss.detach()}

    def _descend(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[name].step()
