"""Several answers about one image taken as one: how the service answers, and how an evaluation counts a majority."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tally:
    """won: votes of each class (K,). mean: its mean probability (K,). ranking: the classes, best first."""

    won: Sequence[int]
    mean: Sequence[float]
    ranking: Sequence[int]


def tallied(votes: Sequence[Sequence[float]]) -> Tally:
    """Classes by votes won, then by mean probability.

    votes: at least one, each the probabilities (K,) that one purified copy of the image got; it votes for its best class.
    """
    alone = len(votes) == 1  # as almost always
    mean = votes[0] if alone else [sum(column) / len(votes) for column in zip(*votes, strict=True)]
    won = [0] * len(mean)
    for vote in votes:
        won[max(range(len(vote)), key=vote.__getitem__)] += 1
    return Tally(won, mean, sorted(range(len(mean)), key=lambda index: (-won[index], -mean[index])))
