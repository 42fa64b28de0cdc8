"""The whole defence as an attacker sees it, and what an attack on it leaves."""

from dataclasses import dataclass

from torch import Tensor

from models.catalog import Defense
from models.purifiers import Purified
from models.votes import SEED_LIMIT
from training.attacks.settings import AttackSettings


@dataclass(frozen=True)
class Survived:
    """right: (N,) bool, which images the whole defence got right whenever the attack asked it.

    image: what the attacker sends: the first that fooled the defence, else the last, of a random defence always the last.
    (N, C, H, W)
    flags: what a library had to say against the result.
    """

    right: Tensor
    image: Tensor
    flags: tuple[str, ...] = ()


class Asker:
    """Answers of a defence to an attack on `count` images, the data set's from `first` on.

    Where the purifier draws random numbers each look has fresh seeds, which follow from the attack's seed, the image and how
    often there was a look at it before: the attacker does not know those that the service will draw.
    """

    def __init__(self, defense: Defense, settings: AttackSettings, first: int, count: int) -> None:
        self.defense, self._settings, self._first = defense, settings, first
        self._drawn = [0] * count  # seeds so far: a look takes as many as there are votes

    def __call__(self, x: Tensor, rows: Tensor) -> Purified:
        """What the service answers. x: (n, C, H, W) in [0, 1], changed images; rows: (n,), which of the `count` they are."""
        return self.defense.purify(x, self.seeds(rows))

    def seeds(self, rows: Tensor) -> list[int] | None:
        """A fresh seed for each of the rows; None where the purifier draws nothing."""
        if not self.defense.info.random:
            return None
        return [self._seed(row) for row in rows.tolist()]

    def _seed(self, row: int) -> int:
        drawn = self._drawn[row]
        self._drawn[row] += self.defense.votes
        return draws(self._settings, self._first + row, drawn)


def draws(settings: AttackSettings, index: int, draw: int) -> int:
    """The seed of an attack's `draw`-th draw on the data set's image `index`."""
    return ((settings.seed * 1_000_003 + index) * 10_007 + draw) % SEED_LIMIT
