"""Contrastive training of the head of `reverse` (Mao et al., ICCV 2021, Sec. 3.2 and 4.3; SimCLR, Chen et al. 2020).

The classifier is frozen: only the two layers of the head learn, from clean images, by Eq. (4) with the rest of the batch as
negatives. The bank of negatives that purification uses instead is filled at the start, since it holds the classifier's own
features.

What the paper leaves open, and what we chose: the learning rate stays constant (so does the public code's, at 1e-4 where the
paper says 1e-3); the public code also cuts a window from the padded image before each view, which the resized crop does already.
"""

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.augment import DRAWS, Views
from models.networks.reverse import ContrastiveHead, contrastive_loss
from training.addons import Setting, register_trainer
from training.data import to_float


class ContrastiveSettings(BaseModel):
    """A recipe's `[settings]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam, Sec. 4.3")
    temperature: float = Field(default=0.2, gt=0, description="tau, Sec. 4.3")
    views: int = Field(
        default=2, ge=2, le=16, description="of each image; Sec. 7.D has 4, the public code trains with 2"
    )


@register_trainer("reverse")
class ContrastiveTrainer:
    """See `training.addons`.

    Raises:
        ValueError: the recipe's settings are wrong, or its network doesn't fit the classifier.
    """

    def __init__(self, setting: Setting) -> None:
        assert isinstance(setting.network, ContrastiveHead)
        self.setting, self.head = setting, setting.network
        self.settings = ContrastiveSettings.model_validate(setting.recipe.settings)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=self.settings.learning_rate)
        self.networks: Mapping[str, nn.Module] = {"head": self.head}
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {"adam": self.optimizer}
        self.exported: nn.Module = self.head
        self._fill_bank()

    def _fill_bank(self) -> None:
        """Features of one view each of randomly chosen training images."""
        generator = torch.Generator().manual_seed(self.setting.recipe.seed)
        rows = len(self.head.bank)
        chosen = torch.randint(len(self.setting.images), (rows,), generator=generator)
        uniform = torch.rand(rows, DRAWS, generator=generator)
        parts = [
            self._features(to_float(self.setting.images.images[indices]), draws)
            for indices, draws in zip(chosen.split(64), uniform.split(64), strict=True)
        ]
        bank = torch.cat(parts)
        if bank.shape != self.head.bank.shape:
            raise ValueError(
                f"the classifier has {bank.shape[1]} features, the network takes {self.head.bank.shape[1]}: "
                f"set arguments.features = {bank.shape[1]}"
            )
        self.head.bank.copy_(bank)

    def _features(self, x: Tensor, uniform: Tensor) -> Tensor:
        """The frozen classifier's features of a view of each image. (N, 3, H, W), (N, DRAWS) -> (N, features)."""
        with torch.no_grad():
            view = Views.drawn(uniform.to(x.device)).of(x)
            with self.setting.precision():
                return self.setting.classifier.features(view).float()

    def step(self, indices: Tensor, share: float) -> dict[str, Tensor]:
        """See `Trainer`. `matched`: share of the views whose nearest neighbour in the batch is of the same image."""
        x = self.setting.crop(indices)
        views = [self._features(x, torch.rand(len(x), DRAWS)) for _ in range(self.settings.views)]
        own, others = batch_cosines(self.head(torch.stack(views, dim=1)))
        loss = contrastive_loss(own, others, self.settings.temperature).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach(), "matched": matched(own.detach(), others.detach())}


def batch_cosines(z: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of each image's views with each other, and with the views of the other images; its own are -inf there.

    z: (N, V, D), of length 1. -> (N, V, V), (N, V, N V).
    """
    count, views = z.shape[:2]
    own = z @ z.mT
    all_pairs = (z.flatten(0, 1) @ z.flatten(0, 1).T).view(count, views, count, views)
    same = torch.eye(count, dtype=torch.bool, device=z.device)[:, None, :, None]
    return own, all_pairs.masked_fill(same, -torch.inf).flatten(2)


def matched(own: Tensor, others: Tensor) -> Tensor:
    """Share of the views that another view of the same image is nearest to. (N, V, V), (N, V, M) -> scalar."""
    itself = torch.eye(own.shape[1], dtype=torch.bool, device=own.device)
    return (own.masked_fill(itself, -torch.inf).amax(2) > others.amax(2)).float().mean()
