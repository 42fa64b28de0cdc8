"""From the probabilities of one or more votes to a ranking of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass


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
    """The `top_k` best classes (fewer where there are fewer): by votes won, then by mean probability.

    votes: at least one, each the probabilities (K,) that one purified copy of the image got; it votes for its best class.
    digits: the decimals that are told.
    """
    alone = len(votes) == 1  # as almost always
    mean = votes[0] if alone else [sum(column) / len(votes) for column in zip(*votes, strict=True)]
    won = [0] * len(mean)
    for vote in votes:
        won[max(range(len(vote)), key=vote.__getitem__)] += 1
    order = sorted(range(len(mean)), key=lambda index: (-won[index], -mean[index]))
    return tuple(Prediction(labels[i], i, round(mean[i], digits), won[i]) for i in order[:top_k])
