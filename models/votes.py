"""Several answers about one image taken as one: how the service answers, and how an evaluation counts a majority."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

# Seeds are below: JSON readers with 64-bit floats (JavaScript) keep them exactly.
SEED_LIMIT = 2**53


def seeds_of(seed: int, votes: int) -> list[int]:
    """The seeds of so many votes on one image."""
    return [(seed + vote) % SEED_LIMIT for vote in range(votes)]


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


def scores(votes: Tensor) -> Tensor:
    """What an image's votes say, as numbers that rank the classes as `tallied` does: votes won plus mean probability.

    votes: (N, V, K), the probabilities that each of V purified copies got. (N, K), from 0 to V + 1.
    """
    found = (tallied(own) for own in votes.tolist())
    rows = [[won + mean for won, mean in zip(each.won, each.mean, strict=True)] for each in found]
    return votes.new_tensor(rows).view(len(votes), votes.shape[2])  # no image is a batch, too
