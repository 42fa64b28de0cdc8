"""Trainers of purifier networks (add-ons), by the network's name, and what each of them gets.

A trainer is a class with the protocol of `training.loop.Trainer` whose instance also names, in `exported`, the one of its
networks that goes into the checkpoint. It is one file, `training/NAME.py`, with `@register_trainer("NETWORK")` above the class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from models.classifiers import Classifier
from models.registry import Registry
from training.augment import Cropper
from training.data import ImageData
from training.loop import Trainer
from training.recipe import AddOnRecipe


class AddOnTrainer(Trainer, Protocol):
    """exported: the network that goes into the checkpoint; one of `networks`' values."""

    @property
    def exported(self) -> nn.Module: ...


@dataclass(frozen=True)
class Setting:
    """Everything an add-on's trainer works with; tensors and networks are on `device`.

    classifier: frozen (eval mode, no parameter gradients). network: fresh, in training mode. crop: augmented training images
    by index. images: the training set.
    """

    recipe: AddOnRecipe
    classifier: Classifier
    network: nn.Module
    images: ImageData
    crop: Cropper
    device: torch.device

    def labels(self, indices: Tensor) -> Tensor:
        """(B,) -> (B,) int64."""
        return self.images.labels[indices]

    def precision(self) -> torch.autocast:
        """The context for forward passes of networks that learn."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")


# By the network's name.
TRAINERS: Registry[Callable[[Setting], AddOnTrainer]] = Registry("trainer of purifier network")
register_trainer = TRAINERS.register


def trainer(setting: Setting) -> AddOnTrainer:
    """The trainer of a recipe's network.

    Raises:
        ValueError: it has none, or the recipe's `settings` are wrong.
    """
    return TRAINERS.builder(setting.recipe.network)(setting)
