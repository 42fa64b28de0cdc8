"""From the probabilities of one or more votes to the classes that an answer names."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.votes import tallied


@dataclass(frozen=True)
class Prediction:
    """A class, its mean softmax probability after purification, and how many votes it won."""

    label: str
    index: int
    probability: float
    votes: int


def predictions(
    votes: Sequence[Sequence[float]], labels: Sequence[str], top_k: int, digits: int
) -> tuple[Prediction, ...]:
    """The `top_k` best classes (fewer where there are fewer), ranked by `tallied`.

    votes: see there. digits: the decimals that are told.
    """
    found = tallied(votes)
    best = found.ranking[:top_k]
    return tuple(Prediction(labels[i], i, round(found.mean[i], digits), found.won[i]) for i in best)
