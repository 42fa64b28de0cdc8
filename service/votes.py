"""From the probabilities of one or more votes to a ranking of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """A class, its mean softmax probability after purification, and how many votes it won."""

    label: str
    index: int
    probability: float
    votes: int


def predictions(votes: Sequence[Tensor], labels: Sequence[str], top_k: int, digits: int) -> tuple[Prediction, ...]:
    """The `top_k` best classes (fewer where there are fewer): by votes won, then by mean probability.

    votes: at least one, each the probabilities (K,) that one purified copy of the image got; it votes for its best class.
    digits: the decimals that are told.
    """
    mean = torch.stack(list(votes)).mean(dim=0).tolist()
    won = torch.stack([vote.argmax() for vote in votes]).bincount(minlength=len(mean)).tolist()
    order = sorted(range(len(mean)), key=lambda index: (-won[index], -mean[index]))
    return tuple(Prediction(labels[index], index, round(mean[index], digits), won[index]) for index in order[:top_k])
